"""``accelerate launch`` in this process: what its ranks find in their environment, and what becomes of its errors."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from cifar_dist.errors import JoinTimeoutError, UserError
from cifar_dist.exit_codes import EXIT_BAD_INPUT, EXIT_DONE
from cifar_dist.files.checkout import CHECKOUT
from cifar_dist.launch.agreed_code import Failure, agreed_code, failures_of
from cifar_dist.launch.job import Job
from cifar_dist.launch.joining import join_machines
from cifar_dist.launch.options import LaunchRequest
from cifar_dist.launch.parent_death import announce_launcher
from cifar_dist.launch.typed_command import command_with_cpu
from cifar_dist.terminal.notice import notice
from cifar_dist.terminal.progress import waiting

_TORCH_LOG = "TORCH_CPP_LOG_LEVEL"


def launch_ranks(words: Sequence[str], asked: LaunchRequest, job: Job, forwarded: Iterable[int]) -> int:
    """Run ``accelerate launch *words`` in this process and return the exit code of its ranks.

    Args:
        words: options of ``accelerate launch``, and the program with its arguments.
        asked: what they say about machines.
        job: what the ranks do.
        forwarded: signals that reach the ranks in another way, and which this process ignores.

    Raises:
        JoinTimeoutError: another machine of the job did not come, or all have left.
        UserError: Accelerate does not know an option, torchrun would start ranks again that agreed to end, or this
            machine would end the elastic job of others.
    """
    announce_launcher()
    os.setsid()  # Ctrl-C reaches only the agent, which forwards it once
    for number in forwarded:
        signal.signal(number, signal.SIG_IGN)  # the ranks inherit this until they install their own handlers
    _prepare_environment()
    if asked.use_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # Accelerate passes it on to a single process only
    elif asked.gpu_ids:
        os.environ["CUDA_VISIBLE_DEVICES"] = asked.gpu_ids  # as Accelerate for the ranks: this process counts the same
    logging.disable(logging.ERROR)

    with waiting("loading Accelerate"), _without_stacks_of_torch():
        from accelerate.commands.launch import launch_command, launch_command_parser
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError

        from cifar_dist.launch import elastic

    parser = launch_command_parser()
    parser.error = _refuse
    elastic.add_options(parser)
    arguments = parser.parse_args([f"--log_dir={os.devnull}", *words])  # else torchrun leaves an empty folder in /tmp
    if elastic.is_elastic(arguments):
        elastic.prepare(arguments, asked, job)
    else:
        _refuse_restarts(arguments, asked)
        arguments.max_restarts = 0
        _join_other_machines(arguments, asked, job)
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        return agreed_code(failures_of(error.failures))
    except subprocess.CalledProcessError as error:
        return agreed_code([Failure("the process", error.returncode)])
    except RendezvousError as error:
        if elastic.has_found_meeting() and job.is_finished():
            notice("the run is finished; this machine was not needed")
            return EXIT_DONE
        raise JoinTimeoutError(elastic.describe_failure(arguments.rdzv_endpoint, error)) from None
    except UserError:  # of this machine of an elastic job
        raise
    except (ValueError, ConnectionError) as error:  # a wrong option, or a port in use
        hint = f"; without GPUs, {command_with_cpu()}" if "cuda" in str(error).lower() else ""
        notice(f"accelerate launch: {str(error).rstrip('.')}{hint}")
        return EXIT_BAD_INPUT
    return EXIT_DONE


def options_of_accelerate() -> dict[str, str]:
    """Return the options of ``accelerate launch`` by name and abbreviation, without dashes in front and inside.

    Returns:
        The name of each; empty for one that has no value.
    """
    with waiting("loading Accelerate"):
        from accelerate.commands.launch import launch_command_parser

        from cifar_dist.launch import elastic

    parser = launch_command_parser()
    elastic.add_options(parser)
    found: dict[str, str] = {}
    for action in parser._actions:
        names = [option.lstrip("-").replace("-", "_") for option in action.option_strings]
        found |= dict.fromkeys(names, max(names, key=len) if names and action.nargs != 0 else "")
    return found


def _join_other_machines(arguments: argparse.Namespace, asked: LaunchRequest, job: Job) -> None:
    """Wait for the launchers of the other machines, where there are several and each has its own.

    Raises:
        JoinTimeoutError: some did not come.
    """
    if asked.machines > 1 and asked.host:
        arguments.main_process_port = asked.port  # with 0, as in launch/, each machine would choose its own
        if arguments.rdzv_backend == "static":
            join_machines(asked.machine_rank, asked.machines, asked.host, asked.port, job.join_timeout)


def _refuse_restarts(arguments: argparse.Namespace, asked: LaunchRequest) -> None:
    """Refuse ``--max_restarts`` outside of an elastic job, whose agent knows which exit codes the ranks agreed on.

    Raises:
        UserError: it is not 0.
    """
    if arguments.max_restarts:
        meeting = f"--nnodes={asked.machines} --rdzv_endpoint={asked.host or '127.0.0.1'}:{asked.port}"
        way = f"add {meeting}"
        if asked.machines > 1:
            way = f"replace --num_machines with {meeting}, and count the --num_processes of one machine"
        problem = "alone would also start ranks again that stopped on request"
        raise UserError(f"--max_restarts={arguments.max_restarts} {problem}; {way}")


def _refuse(problem: str) -> NoReturn:
    raise UserError(f"accelerate launch: {problem}; its options: accelerate launch --help")


def _prepare_environment() -> None:
    """Set what the launcher and its ranks read from the environment."""
    for name in [name for name in os.environ if name.startswith("PET_")]:  # options of torchrun, in pods of Kubernetes
        del os.environ[name]  # they would count the machines of another command than this one
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # otherwise torchrun would handle TERM, INT and HUP
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's default, which it would announce in five lines
    _prepend("PATH", Path(sys.executable).parent)  # DeepSpeed finds programs by name
    # The ranks import the package that this process runs, not another one in the working folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    if str(CHECKOUT) != sysconfig.get_path("purelib"):  # else it is on the path
        _prepend("PYTHONPATH", CHECKOUT)


@contextmanager
def _without_stacks_of_torch() -> Iterator[None]:
    """Have torch, imported inside, leave out the C++ stacks of connections that a machine at the end of its job closes.

    What it cannot do is raised as well. The ranks do not inherit this.
    """
    is_set = _TORCH_LOG in os.environ
    os.environ.setdefault(_TORCH_LOG, "FATAL")
    try:
        yield
    finally:
        if not is_set:
            del os.environ[_TORCH_LOG]


def _prepend(variable: str, folder: Path) -> None:
    os.environ[variable] = os.pathsep.join([str(folder), *filter(None, [os.environ.get(variable)])])
