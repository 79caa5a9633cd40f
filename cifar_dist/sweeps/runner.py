"""Train the runs of a sweep on this machine, each in its own process.

Finished runs are skipped and interrupted runs resume, so repeating the command is always safe, also while another one
trains a part of the runs; what that leaves unfinished is trained at the end. A run that fails is reported, and the
others continue. A request to stop is forwarded to the runs in progress, which save a checkpoint and exit with 75; the
sweep then exits with 75 too, unless only failed runs are left.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cifar_dist.config.plugin_errors import describe_plugin_failure
from cifar_dist.cpu.openmp import share_cores
from cifar_dist.errors import UserError, quoted
from cifar_dist.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_IN_USE, EXIT_REQUEUE, how_it_ended
from cifar_dist.formatting import duration, percent
from cifar_dist.launch.configs import find_config
from cifar_dist.launch.parent_death import signal_when_this_ends
from cifar_dist.launch.signal_queue import SignalQueue
from cifar_dist.launch.suspension import suspended_together
from cifar_dist.launch.typed_command import VARIABLE, typed_command
from cifar_dist.report.results import name_final, read_result
from cifar_dist.sweeps.sweep import Run, Sweep
from cifar_dist.terminal.notice import print_over
from cifar_dist.terminal.screen import STOPPING

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_LINES_SHOWN = 20  # of the captured output of a failed run


@dataclass
class _Job:
    run: Run
    number: int
    slot: int
    process: subprocess.Popen[bytes]
    output: IO[bytes] | None  # captured stdout and stderr, if several runs train at a time


def check(sweep: Sweep) -> None:
    """Detect, before any run starts, missing data and weights, settings that do not fit, and folders of other runs.

    Raises:
        UserError: the first problem, with the name of the run or row.
    """
    from cifar_dist.data.manifest import Manifest

    for run in sweep.runs:
        if found := run.other_setting():
            raise UserError(f"{run.folder.path} was started with {found[1]}; {_way_to_train_again(run)}")
    configs = {row.name: row.runs[0].config for row in sweep.rows}
    begun = {run.name for run in sweep.runs if run.is_finished() or run.folder.newest_checkpoint()}
    manifests = {path: Manifest.load(path) for path in dict.fromkeys(config.data.path for config in configs.values())}

    from cifar_dist.models import try_build
    from cifar_dist.models.pretrained import check_pretrained
    from cifar_dist.run_folder.opening import refuse_other_data
    from cifar_dist.training.requirements import check_before_start

    for run in sweep.runs:
        if run.folder.exists() and run.folder.manifest.is_file():
            refuse_other_data(run.folder, manifests[run.config.data.path], _way_to_train_again(run))
    for row in sweep.rows:
        config = configs[row.name]
        manifest = manifests[config.data.path]
        try:
            network = try_build(config.model, shape=manifest.shape, classes=len(manifest.classes))
            if not begun.issuperset(run.name for run in row.runs):
                check_pretrained(network, config.model.pretrained, config.model.name)
            if not all(run.is_finished() for run in row.runs):
                check_before_start(config, manifest, network)
        except (Exception, SystemExit) as error:
            reason = str(error) if isinstance(error, UserError) else describe_plugin_failure(error)
            if not reason:
                raise
            raise UserError(f"row '{row.name}': {reason}") from None


def _way_to_train_again(run: Run) -> str:
    """Say how the name of an existing run of other settings or data becomes free for this one."""
    rename = f"cifar-dist runs rename {quoted(run.folder.path)} NEW"
    return f"keep that run under another name ({rename}), delete it, or use another --run.dir for this sweep"


def run_all(sweep: Sweep, *, launch: str | None = None, jobs: int = 1) -> int:
    """Train every unfinished run and return the exit code.

    Args:
        sweep: the sweep; call :func:`check` first.
        launch: name of a config in ``launch/``, or its path, to launch each run with. None: one process per run.
        jobs: number of runs at a time, each on its own GPU if there are several.

    Raises:
        UserError: the launch config does not exist, or ``jobs`` is combined with ``launch``.
    """
    if launch and jobs > 1:
        raise UserError("--jobs has no effect with --launch, where each run uses the entire machine; drop one of them")
    command = _base_command(launch)
    waiting = [(number, run) for number, run in enumerate(sweep.runs, 1) if not run.is_intact()]
    total = len(sweep.runs)
    say(f"{sweep.name}: {sweep.size}, {total - len(waiting)} finished before")
    report_other_runs(sweep)
    devices = _visible_gpus() if jobs > 1 else []
    started: list[_Job] = []
    elsewhere: list[tuple[int, Run]] = []  # in use by other processes when they were started
    tried_again = False  # these, once and after all others
    failed: list[str] = []
    sent: set[int] = set()  # the signals that runs in progress have received
    stopping = False
    with contextlib.closing(SignalQueue(_SIGNALS)) as requests, suspended_together():
        while started or (waiting and not stopping):
            while waiting and len(started) < jobs and not stopping:
                number, run = waiting.pop(0)
                say(f"{number} of {total}: {run.name}")
                slot = min(set(range(len(started) + 1)) - {one.slot for one in started})
                words = [*run.words, *_share_of_cores(run, 1 if devices else jobs)]
                started.append(_start_job([*command, *words], run, number, slot, devices, quiet=jobs > 1))
            for request in requests.new():
                stopping = True
                sent.add(_forward(request, started))
            for one in [one for one in started if one.process.poll() is not None]:
                started.remove(one)
                code = one.process.returncode
                stopping = stopping or code == EXIT_REQUEUE  # stopping a run stops the sweep
                interrupted = _is_interruption(code, sent)
                if code == EXIT_IN_USE:
                    elsewhere.append((one.number, one.run))
                elif code != EXIT_DONE and not interrupted:
                    failed.append(one.run.name)
                _report_end(one, code, total, interrupted)
            if not (started or waiting or tried_again):
                waiting, tried_again = [(number, run) for number, run in elsewhere if not _is_settled(run)], True
            time.sleep(0.05)
    return _report(sweep, failed, [run.name for _, run in elsewhere], stopping)


def _report(sweep: Sweep, failed: Sequence[str], elsewhere: Sequence[str], stopping: bool) -> int:
    """Say what is left of a sweep, and return the exit code."""
    if failed:
        say(f"{len(failed)} of {sweep.size} failed: {', '.join(failed)}")
    left = [run.name for run in sweep.runs if not run.is_finished() and run.name not in failed]
    if stopping and left:
        say(f"stopped; resume with:\n  {typed_command()}")
        return EXIT_REQUEUE
    in_use, lost = ([name for name in left if (name in elsewhere) == known] for known in (True, False))
    if in_use:
        say(f"{len(in_use)} of {sweep.size} in use by other processes: {', '.join(in_use)}; repeat this after them")
    if lost:
        say(f"{len(lost)} of {sweep.size} ended without results: {', '.join(lost)}; repeat this")
    if failed or left:
        return EXIT_FAILED if failed or lost else EXIT_IN_USE
    say(sweep.all_finished)
    return EXIT_DONE


def _is_settled(run: Run) -> bool:
    """Whether a run is finished, or another process trains it."""
    return run.is_finished() or run.folder.in_use()


def report_other_runs(sweep: Sweep) -> None:
    """Print one line for each run whose plug-in has changed since, or that was evaluated otherwise than the sweep says.

    It has the way to repeat that.
    """
    for run in sweep.runs:
        ending = run.folder.final_evaluation()
        if (plugin := run.other_plugin()) and not run.folder.in_use():
            so_far = "" if run.is_finished() else " so far, and continues with the one here"
            again = f"rm -r {quoted(run.folder.path)}"
            say(f"{run.name} was trained with another {plugin}{so_far}; to train it again, repeat this after: {again}")
        elif ending is not None and (found := run.other_evaluation()):
            again = f"rm -r {quoted(ending.path)}"
            say(f"{run.name} was evaluated with another {found}; to evaluate it again, repeat this after: {again}")


def _forward(request: signal.Signals, started: Sequence[_Job]) -> signal.Signals:
    """Forward a request to stop to the runs in progress; return the signal that they receive."""
    forwarded = signal.SIGTERM if request == signal.SIGHUP else request
    if request == signal.SIGINT:  # a second one ends a run at once
        print_over(STOPPING, sys.stdout)
    for one in started:
        one.process.send_signal(forwarded)
    return forwarded


def say(text: str) -> None:
    print(f"sweep: {text}", flush=True)


def _is_interruption(code: int, sent: set[int]) -> bool:
    """Whether a run ended with this code because it was asked to.

    Args:
        code: of the run; a signal that killed it is negative.
        sent: the signals that it may have received from the sweep.
    """
    return code == EXIT_REQUEUE or any(code in (-number, 128 + number) for number in sent)


def _report_end(one: _Job, code: int, total: int, interrupted: bool) -> None:
    """Print one line for a run that ended, after the last lines of its captured output if it failed."""
    if code == EXIT_DONE:
        result = read_result(one.run.folder)
        accuracies = [("val", result.val_accuracy), (name_final([result.eval_split]), result.test_accuracy)]
        figures = [f"{split} {percent(value)}" for split, value in accuracies if value is not None]
        outcome = ", ".join(["finished", *figures, duration(result.seconds)])
    elif interrupted:
        outcome = "interrupted"
    elif code == EXIT_IN_USE:
        outcome = "is in use by another process"
    else:
        outcome = how_it_ended(code)
        if one.output is not None:
            one.output.seek(0)
            for line in one.output.read().decode(errors="replace").splitlines()[-_LINES_SHOWN:]:
                print(f"    {line}")
    say(f"{one.number} of {total}: {one.run.name} {outcome}")
    if one.output is not None:
        one.output.close()


# ---- processes --------------------------------------------------------------------------------------------------


def _base_command(launch: str | None) -> list[str]:
    """Return the command line to which a run's arguments are appended.

    Raises:
        UserError: a launch config that does not exist.
    """
    start = ["train"] if launch is None else ["launch", str(find_config(launch))]
    return [sys.executable, "-m", "cifar_dist", *start]


def _share_of_cores(run: Run, jobs: int) -> list[str]:
    """Return the words that give a new run its share of this machine's cores, unless its recipe says how many."""
    if jobs == 1 or run.config.train.threads or run.folder.exists():
        return []
    return ["--train.threads", str(share_cores(jobs))]


def _start_job(command: Sequence[str], run: Run, number: int, slot: int, devices: Sequence[str], quiet: bool) -> _Job:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "PATH": path, VARIABLE: ""}  # the sweep itself says how to resume
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    output = tempfile.TemporaryFile() if quiet else None  # noqa: SIM115 - closed with the run
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if quiet else None,
        start_new_session=True,  # Ctrl-C reaches only this process, which forwards it once
        preexec_fn=signal_when_this_ends(signal.SIGTERM),  # no run outlives the sweep
    )
    return _Job(run, number, slot, process, output)


def _visible_gpus() -> list[str]:
    """List the GPUs to distribute, as CUDA_VISIBLE_DEVICES names them; CUDA ignores all from the first invalid name.

    Of several parts of a GPU (MIG), one process sees the first only.
    """
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return list(map(str, range(count)))
    names = [name.strip() for name in given.split(",")]
    parts = list(itertools.takewhile(lambda name: name.startswith("MIG-"), names))
    return parts if parts and count else names[:count]
