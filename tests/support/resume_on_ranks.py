"""Runs that change their engine repeatedly: ``python resume_on_ranks.py RECIPE``; test_sharding.py reads them.

For each optimizer: a run of DDP, and one of all engines in turn. One process then continues AdamW's. A single
interpreter imports DeepSpeed, and torch's compiler, which its first step requires.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from cifar_dist import recipe
from cifar_dist.distributed.stop_signals import StopSignals
from support import forked_ranks
from support.running import ROOT

OPTIMIZERS = {
    # A group a stage, some asleep; averages that begin within an epoch.
    "sgd": [
        *("--optim.layer_decay", "0.5", "--model.unfreeze", "0.5"),
        *("--optim.clip_norm", "0.5", "--train.accumulate", "2"),
        *("--average.name", "swa", "--average.start", "0.4"),
    ],
    "adamw": ["--optim.name", "adamw", "--optim.lr", "0.003", "--average.name", "ema", "--average.decay", "0.9"],
}
SETTINGS = ["--train.epochs", "2", "--checkpoint.background", "false", "--run.collective_timeout", "900"]
IN_PARTS = ["--checkpoint.sharded", "true"]
TURNS = [
    ("cpu", 3, signal.SIGUSR1),
    ("zero1", 7, signal.SIGUSR1),
    ("zero3", 14, signal.SIGKILL),  # an epoch ends with step 13, and a checkpoint
    ("fsdp", 16, signal.SIGUSR1),
    ("zero2-offload", 20, signal.SIGUSR1),
    ("cpu", 0, 0),
]
"""Files of launch/, in the order in which a run continues with them: each until a signal comes after a step."""


def settings(config: str, processes: int) -> dict[str, str]:
    """Return the variables in which ``accelerate launch`` passes a file of launch/ to its processes."""
    number = ["--num_processes", str(processes)]
    words = ["--config_file", str(ROOT / "launch" / f"{config}.yaml"), *number, "train.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    prepare = prepare_deepspeed_cmd_env if arguments.use_deepspeed else prepare_multi_gpu_env
    prepared = prepare(arguments)
    variables = prepared[1] if isinstance(prepared, tuple) else prepared
    return {name: value for name, value in variables.items() if name.startswith("ACCELERATE_")}


def train(launch: str, words: list[str], leave: int = 0, number: int = 0, *, processes: int = 2) -> None:
    """Train, or resume training; each process sends itself signal ``number`` after step ``leave``."""
    from cifar_dist.distributed.start import start_engine
    from cifar_dist.training import usage_meter
    from cifar_dist.training.measurements import StepMeasurements
    from cifar_dist.training.trainer import Trainer

    class Leaving(Trainer):
        def after_step(self, measured: StepMeasurements) -> None:
            super().after_step(measured)
            if measured.step == leave:
                signal.raise_signal(number)

    usage_meter._SHORTEST = 1e-9  # rate the arithmetic of these short epochs, too: rank 0 does it alone
    for variable in [variable for variable in os.environ if variable.startswith("ACCELERATE_")]:
        del os.environ[variable]
    os.environ.update(settings(launch, processes))
    config = recipe.load(words[0], words[1:])

    def work() -> None:
        with StopSignals() as signals, start_engine(config, signals) as place:
            trainer = Leaving(config, place)
            groups = torch.distributed.distributed_c10d._world.pg_map if processes > 1 else ()
            for group in groups:  # that of the job, and the engine's own
                assert group._get_backend(torch.device("cpu")).options._timeout.total_seconds() == 900
            assert trainer.run() == (75 if leave else 0)

    # The rank that is killed last may fail before, because it has lost the other.
    forked_ranks.run(processes, work, codes=(-signal.SIGKILL, 1) if number == signal.SIGKILL else (0,))


def main(path: str) -> None:
    """Train them all."""
    import deepspeed.compile.init_z1_and_2  # noqa: F401
    import transformers.integrations.deepspeed  # noqa: F401 - Accelerate imports it beside DeepSpeed

    for optimizer, words in OPTIMIZERS.items():
        common = [path, *SETTINGS, *words, "--run.name"]
        train("cpu", [*common, f"{optimizer}-ddp"])
        parts = IN_PARTS if optimizer == "adamw" else []
        for launch, leave, number in TURNS:
            train(launch, [*common, f"{optimizer}-all", *parts], leave, number)
    for run in ("adamw-ddp", "adamw-all"):
        longer = ["--run.from", run, "--train.epochs", "3", "--train.max_steps", "28"]
        train("cpu", [path, *OPTIMIZERS["adamw"], *longer, "--run.name", f"{run}-alone"], processes=1)


if __name__ == "__main__":
    main(sys.argv[1])
