"""Start the engine that the launcher was asked for: the one place that builds one from a config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from cifar_dist.config import Config, TrainConfig, plugins
from cifar_dist.cpu.load import load_since, threads_of_each
from cifar_dist.cpu.malloc import keep_freed_memory
from cifar_dist.cpu.openmp import share_cores, use_threads
from cifar_dist.distributed.arithmetic import set_arithmetic
from cifar_dist.distributed.asked_engine import AskedEngine
from cifar_dist.distributed.collective_timeout import waits_explained
from cifar_dist.distributed.compiled_code import keep_compiled_code
from cifar_dist.distributed.data_parallel import DataParallel
from cifar_dist.distributed.deepspeed_zero import DeepSpeedZero, DeepSpeedZero3
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.first_exchange import first_exchange
from cifar_dist.distributed.fixed_parts import FixedParts
from cifar_dist.distributed.fully_sharded import FullySharded
from cifar_dist.distributed.gpu_checks import check_gpus, check_own_gpu, describe_unused_gpu
from cifar_dist.distributed.launch_checks import check_cpu_is_used, check_launch
from cifar_dist.distributed.launcher_settings import check_launcher_settings
from cifar_dist.distributed.out_of_memory import describe_preparation, explained
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.same_settings import (
    check_same_devices,
    check_same_launch,
    check_same_settings,
    describe_launch,
)
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.errors import StopRequested, UserError, first_line, printable
from cifar_dist.launch.joining import join_ranks
from cifar_dist.launch.launched import is_first_of_machine, is_main_process, local_processes, was_asked_for
from cifar_dist.terminal.notice import notice
from cifar_dist.terminal.progress import waiting


@contextmanager
def start_engine(config: Config, signals: StopSignals | None = None, *, trains: bool = True) -> Iterator[Engine]:
    """Join this process with the others of the job, and leave them at the end of the block. Collective.

    A block that raises does not leave them: on NCCL that waits for the other ranks, which wait for this one. The
    process must end at once instead, as :func:`cifar_dist.process_exit.exit_with` ends it, and the launcher the others.

    Args:
        config: the run.
        signals: requests to stop, which end the wait for the others, and later :meth:`Engine.poll`. One that comes
            while the process group is formed ends the process.
        trains: False where the run is evaluated only, on any number of processes and with any engine.

    Raises:
        UserError: another number of processes than was asked for or than there are GPUs, a setting that the engine or
            device lacks, no compiler for ``train.compile``, or ranks with other settings than rank 0's.
        MachineError: other ranks have another engine, or only some compute on GPUs.
        JoinTimeoutError: some processes did not come.
        RankError: they cannot exchange anything.
        StopRequested: this process was asked to stop while it waited for them.
    """
    signals = signals or StopSignals()  # which receives none
    check_launch(config.run.processes if trains else 0)
    asked = AskedEngine.of_launcher()
    if trains:
        check_engine(config, asked)
    set_arithmetic(config.train)
    cpu = _prepare_device(config.train.threads)
    if not trains:
        config = _without_training(config, cpu=cpu)
    store = join_ranks(
        config.run.join_timeout,
        lambda: _stop_if_asked(signals),
        description=describe_launch(asked.description, cpu=cpu),
        check=check_same_launch,
    )
    with waits_explained(config.run.collective_timeout):
        slow = waiting("starting", show=is_main_process())  # DeepSpeed takes seconds
        with signals.ending_waits(), slow, first_exchange(config.run.join_timeout, cpu=cpu):
            engine = _engine_class(config.train, asked)(config, cpu=cpu)
        engine.signals = signals
        set_arithmetic(config.train)  # again: Accelerate turns TF32 on where a GPU compiles an fp32 network
        del store  # torch's own has taken its place
        check_same_settings(config, engine.ranks)
        if trains:
            engine.ranks.run_on_all(lambda: check_launcher_settings(config, engine.precision.name))
            check_same_devices(config.optim, engine.device_name, engine.ranks)
        if cpu:
            _leave_busy_cores(engine.ranks, config.train.threads)
        elif engine.updates_on_cpu:  # whose weights are many; the launcher gave the process one thread
            use_threads(config.train.threads or share_cores(local_processes()))
        if engine.ranks.is_main and (code := plugins.code_of(config)):
            notice(f"importing plug-ins: {', '.join(map(printable, code))}")
        if trains and config.train.compile != "no":
            keep_compiled_code()
            engine.ranks.run_on_all(lambda: _check_compiler(engine.ranks.device))
        with explained(lambda: describe_preparation(config.data.resident_mb, engine.description)):
            yield engine
    engine.close()


def check_engine(config: Config, asked: AskedEngine) -> None:
    """Refuse settings that the engine of a run cannot honour.

    Raises:
        UserError: with the first of them, and what to use instead.
    """
    create = _engine_class(config.train, asked)
    for limit in create.limits:
        limit.check(config, create.description)


def _prepare_device(threads: int) -> bool:
    """Check the GPUs, or share the cores; return whether this process computes on the CPU.

    Args:
        threads: ``train.threads``.

    Raises:
        UserError: a GPU that it has and cannot use, or may not.
    """
    cpu = not torch.cuda.is_available() or was_asked_for("CPU")
    if cpu:
        if is_first_of_machine() and (unused := describe_unused_gpu()):
            notice(unused)
        use_threads(threads or share_cores(local_processes()))
        keep_freed_memory()
    else:
        check_cpu_is_used()
        check_gpus(torch.cuda.device_count())
        check_own_gpu()
    return cpu


def _without_training(config: Config, *, cpu: bool) -> Config:
    """Return the config of a run that is evaluated here, without what only training needs."""
    train = replace(config.train, compress_gradients="no")
    if train.precision == "int8":  # of which only training gains
        train = replace(train, precision="auto")
    if cpu and train.precision == "fp16":  # whose loss a GPU scales
        if is_main_process():
            notice("the run was trained in fp16, which requires a GPU; evaluated as with --train.precision auto")
        train = replace(train, precision="auto")
    return replace(config, train=train)


def _stop_if_asked(signals: StopSignals) -> None:
    if signals.received:
        raise StopRequested(signals.received)


def _leave_busy_cores(ranks: Ranks, asked: int) -> None:
    """Use as many threads as there are cores that no other program uses, equally many in all processes. Collective.

    Args:
        ranks: this process among all.
        asked: threads of this process; 0 for a choice. Of several machines only some may have been asked for theirs.
    """
    loads = [load for load in ranks.gather_objects(load_since()) if load is not None]
    if not asked and len(loads) == ranks.world_size:
        use_threads(threads_of_each(loads))


def _check_compiler(device: torch.device) -> None:
    """Compile one operation, so that a missing or broken compiler is found before training.

    Raises:
        UserError: ``torch.compile`` does not work here.
    """
    try:
        torch.compile(lambda values: values * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # of a compiler, that has many
        raise UserError(
            f"train.compile: torch.compile does not work here ({first_line(error)}); install a C++ compiler and "
            "Python's headers (apt-get install g++ python3-dev), or use --train.compile no"
        ) from None


def _engine_class(train: TrainConfig, asked: AskedEngine) -> type[Engine]:
    """The engine of ``train.engine``: that of the launch config, or a plug-in."""
    if train.engine != "auto":
        return _load_plugin(train.engine)
    if asked.kind == "DEEPSPEED":
        return DeepSpeedZero3 if asked.stage == "3" else DeepSpeedZero
    if asked.kind == "FSDP":
        return FullySharded
    return FixedParts if train.parts else DataParallel


def _load_plugin(spec: str) -> type[Engine]:
    try:
        found = plugins.load(spec)
    except ValueError as error:
        raise UserError(f"train.engine: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise UserError(f"train.engine: {spec} is not a subclass of cifar_dist.distributed.engine.Engine")
    if missing := found.__abstractmethods__:
        raise UserError(f"train.engine: {spec} lacks the method {', '.join(sorted(missing))}; see docs/extending.md")
    return found
