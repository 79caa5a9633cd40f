"""Runs that change their engine midway: ``python resume_on_ranks.py RECIPE RUNS``; test_sharding.py reads the folders.

For each optimizer: an uninterrupted run of each engine, and from the middle of them on, continuations by others and by
the same. One interpreter imports DeepSpeed and torch's compiler, which its first step asks for, once.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from cifar_dist import recipe
from cifar_dist.distributed.stop_signals import StopSignals
from support import forked_ranks
from support.running import ROOT

ENGINES = {"ddp": "cpu", "fsdp": "fsdp", "zero1": "zero1", "zero2": "zero2-offload", "zero3": "zero3"}
"""The launch config of each."""

OPTIMIZERS = {
    # A group a stage, some asleep.
    "sgd": [
        *("--optim.layer_decay", "0.5", "--model.unfreeze", "0.5"),
        *("--optim.clip_norm", "0.5", "--train.accumulate", "2"),
    ],
    "adamw": ["--optim.name", "adamw", "--optim.lr", "0.003"],
}
CONTINUED = [
    *(("zero2", "zero2"), ("zero2", "fsdp"), ("fsdp", "fsdp"), ("fsdp", "ddp"), ("ddp", "zero1"), ("zero1", "zero3")),
    *(("zero3", "zero3"), ("zero3", "zero2")),
]
MIDDLE = 8
SETTINGS = ["--train.epochs", "1", "--checkpoint.every_steps", str(MIDDLE), "--checkpoint.keep", "9"]


def settings(config: str) -> dict[str, str]:
    """The variables in which ``accelerate launch`` passes a file of launch/ to its processes."""
    words = ["--config_file", str(ROOT / "launch" / f"{config}.yaml"), "--num_processes", "2", "train.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    prepare = prepare_deepspeed_cmd_env if arguments.use_deepspeed else prepare_multi_gpu_env
    prepared = prepare(arguments)
    variables = prepared[1] if isinstance(prepared, tuple) else prepared
    return {name: value for name, value in variables.items() if name.startswith("ACCELERATE_")}


def train(engine: str, path: str, name: str, optimizer: str) -> None:
    """Train on two processes, or resume training."""
    from cifar_dist.distributed.start import start_engine
    from cifar_dist.training.trainer import Trainer

    for variable in [variable for variable in os.environ if variable.startswith("ACCELERATE_")]:
        del os.environ[variable]
    os.environ.update(settings(ENGINES[engine]))
    config = recipe.load(path, ["--run.name", name, *SETTINGS, *OPTIMIZERS[optimizer]])

    def work() -> None:
        with start_engine(config) as place:
            assert Trainer(config, place, StopSignals()).run() == 0

    forked_ranks.run(2, work)


def cut(source: Path, target: Path, middle: int = MIDDLE) -> None:
    """A copy of a finished run as it was after the step ``middle``."""
    shutil.copytree(source, target, symlinks=True)
    for checkpoint in (target / "checkpoints").iterdir():
        if checkpoint.is_symlink():
            checkpoint.unlink()
        elif checkpoint.name > f"step-{middle:08d}":
            shutil.rmtree(checkpoint)
    shutil.rmtree(target / "final")
    shutil.rmtree(target / "evaluations")


def main(path: str, runs: Path) -> None:
    """Train them all."""
    import deepspeed.compile.init_z1_and_2  # noqa: F401
    import transformers.integrations.deepspeed  # noqa: F401 - Accelerate imports it beside DeepSpeed

    for optimizer in OPTIMIZERS:
        for engine in ENGINES:
            train(engine, path, f"{optimizer}-{engine}", optimizer)
        for first, second in CONTINUED:
            name = f"{optimizer}-{first}-{second}"
            cut(runs / f"{optimizer}-{first}", runs / name)
            train(second, path, name, optimizer)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
