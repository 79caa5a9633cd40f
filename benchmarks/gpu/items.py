"""The table of items: what is tested or measured, and how long it takes on a GPU of a data centre."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from gpu.bench import Bench, Machine
from gpu.correctness import (
    ddp,
    ddp_with,
    demo,
    evaluate,
    exchange,
    fixed_parts,
    fsdp_to_ddp,
    kill_and_resume,
    lost_rank,
    run_gpu_tests,
    same_seed,
    sharded,
)
from gpu.measurements import peer, speedrun, steps, train

PARTS = ("correctness", "speed", "recipes")
EXCHANGE = "exchange"
"""The item without which the others on several GPUs are skipped."""
# The network has more than DDP's first bucket, 1 MB, after which the compiler splits its graph.
_GRAPHS = ("--train.compile", "reduce-overhead", "--model.options.widths", "[64, 128, 256]")
_FP16 = ("--train.precision", "fp16")
_ROUNDED = ("--train.compress_gradients", "fp16", "--train.sync_batchnorm", "true")


@dataclass(frozen=True)
class Item:
    """A row of the table.

    Attributes:
        name: of the item, and of its run.
        part: one of :data:`PARTS`.
        seconds: estimate on one GPU; the item begins only if so many are left, and a command of it that takes three
            times as many, at least 90, has failed.
        work: does it and returns what was found; raises FailedError, SkippedError or UnfinishedError.
        several_gpus: whether its ranks use several GPUs together, where the machine has them.
        open_ended: a training run that takes all the time left, and resumes.
    """

    name: str
    part: str
    seconds: float
    work: Callable[[Bench], str]
    several_gpus: bool = False
    open_ended: bool = False

    @property
    def reads_cifar(self) -> bool:
        """Whether it needs CIFAR-10; those of the first part train on the digits."""
        return self.part != PARTS[0]

    def exchanges(self, machine: Machine) -> bool:
        """Whether GPUs exchange in it."""
        return self.several_gpus and machine.gpus > 1

    def runs_alone(self, machine: Machine) -> bool:
        """Whether nothing may run beside it: its time counts, as in the first part none does, or GPUs exchange in it.

        An exchange proceeds while it runs on all of them at once, and a GPU runs one process at a time.
        """
        return self.part != PARTS[0] or self.exchanges(machine)


ITEMS: tuple[Item, ...] = (
    Item(EXCHANGE, "correctness", 20, exchange, several_gpus=True),
    Item("gpu-tests", "correctness", 180, run_gpu_tests),
    Item("ddp", "correctness", 60, ddp, several_gpus=True),
    Item("parts", "correctness", 90, fixed_parts, several_gpus=True),
    Item("fsdp-to-ddp", "correctness", 55, fsdp_to_ddp, several_gpus=True),
    Item("lost-rank", "correctness", 55, lost_rank, several_gpus=True),
    Item("ddp.graphs", "correctness", 55, ddp_with("ddp.graphs", on_gpus=_GRAPHS), several_gpus=True),
    Item("ddp.fp16", "correctness", 40, ddp_with("ddp.fp16", *_ROUNDED, on_gpus=_FP16), several_gpus=True),
    Item("evaluate", "correctness", 50, evaluate, several_gpus=True),
    Item("fp32", "correctness", 45, demo("fp32", "--train.precision", "no")),
    Item("bf16", "correctness", 30, demo("bf16", "--train.precision", "bf16")),
    Item("fp16", "correctness", 30, demo("fp16", *_FP16, on_gpu=True)),
    Item("compile", "correctness", 50, demo("compile", "--train.compile", "true")),
    Item("kill-resume", "correctness", 90, kill_and_resume),
    Item("same-seed", "correctness", 75, same_seed),
    Item("zero2", "correctness", 50, sharded("zero2", "DeepSpeed ZeRO-2"), several_gpus=True),
    Item("zero3", "correctness", 60, sharded("zero3", "DeepSpeed ZeRO-3"), several_gpus=True),
    Item("fsdp", "correctness", 40, sharded("fsdp", "FSDP"), several_gpus=True),
    Item("speedrun", "speed", 85, speedrun("speedrun-94", "no")),
    Item("speedrun.graphs", "speed", 110, speedrun("speedrun-94", "reduce-overhead")),
    Item("airbench94", "speed", 120, peer("AIRBENCH94", "airbench94_muon.py")),
    Item("hiverge", "speed", 180, peer("HIVERGE", "cifar10_speedrun.py")),
    Item("speedrun.cpu-quick", "speed", 110, speedrun("cpu-quick", "reduce-overhead")),
    Item("steps.speedrun-94", "speed", 25, steps("speedrun-94")),
    Item("steps.custom-resnet", "speed", 30, steps("custom-resnet")),
    Item("steps.se-resnet-randaugment", "speed", 70, steps("se-resnet-randaugment")),
    Item("steps.resnet18", "speed", 30, steps("resnet18")),
    *(
        Item(name, "recipes", 40, train(name, "speedrun-94", "--run.seed", name[-1]), several_gpus=True)
        for name in ("speedrun-94.s0", "speedrun-94.s1", "speedrun-94.s2")
    ),
    *(
        Item(name, "recipes", 60, train(name.replace("/", "-"), name), several_gpus=True, open_ended=True)
        for name in (
            *("speedrun-96", "custom-resnet", "resnet18", "se-resnet-randaugment", "small-resnet", "se-resnet"),
            *("resnet34-scratch", "se-resnet-stochastic-depth", "small-resnet/baseline", "wrn-28-10"),
        )
    ),
)
"""In the order in which they run, see :mod:`gpu.schedule`; the recipes in that of the value of their figures."""


def choose(names: Collection[str], machine: Machine) -> list[Item]:
    """The items with these names and of parts with them, or all; and the exchange, if others need it."""
    chosen = [item for item in ITEMS if not names or item.part in names or item.name in names]
    needs_exchange = any(item.exchanges(machine) for item in chosen)
    return [item for item in ITEMS if item in chosen or (needs_exchange and item.name == EXCHANGE)]
