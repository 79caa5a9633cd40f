"""Training steps of a recipe on the pretend CUDA device, counted.

``python -m support.pretend_steps PACKED RECIPE...`` prints a line for each recipe.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from dataclasses import replace

import torch

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.data import static_mix
from cifar_dist.distributed.agreement import Agreement, StopPoll
from cifar_dist.distributed.loss_scaler import LossScaler
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.stop_requests import StopRequests
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.evaluation.split import Split
from cifar_dist.models import transfer
from cifar_dist.optim.optimizers import build_optimizer
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepLog
from cifar_dist.training.setup import build_setup
from support import engines, forked_ranks
from support.pretend_cuda import CUDA, Counts, counts, move, pretend

_PARTS = {
    "augmentation": ("data/augment.", "data/mix.", "data/normalize.", "data/operations", "data/randomness", "data/tr"),
    "network": ("models/", "backward", "training/learner."),
    "optimizer": ("optim/", "distributed/wrapped_model."),  # which calls it
}


def count_step(config: Config, steps: int = 3, *, scales_loss: bool = False) -> Counts:
    """Train ``steps`` steps and return the counts of the last. Call it in a process that ends.

    Args:
        scales_loss: as in fp16, whose arithmetic the device does not have.
    """
    torch.set_num_threads(1)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)  # one process without a group: DDP's buckets are made where no device is pretended
    static_mix.compile_static = lambda function, *_: function  # nothing can be compiled for the device
    engine = engines.engine(config)
    if scales_loss:
        engine.accelerator.scaler = LossScaler("cpu")  # torch's for a GPU refuses to work without one
    with pretend():
        engine.ranks = ranks = Ranks(0, 1, CUDA, first_of_node=True)
        setup = build_setup(config, ranks)
        move(setup.module, torch.channels_last if config.train.channels_last else torch.preserve_format)
        stages = [stage.parameters for stage in transfer.stages(setup.module)]
        optimizer = build_optimizer(config.optim, setup.module, stages, gradual=config.model.unfreeze > 0)
        engine.accelerator.state.device = CUDA
        learner = Learner(replace(setup, optimizer=optimizer), engine)
        agreement, log = Agreement(ranks, StopRequests(StopSignals())), StepLog(ranks)
        for measured in learner.steps(0, steps, setup.learning_rate):
            agreement.after_step(measured.step, measured.ids, measured.finite)
            log.add(measured)
            log.take(wait=False)
            if measured.step < steps:
                counts.clear()
    return counts


def count_waits_of_predictions(config: Config) -> dict[str, int]:
    """Predict all training samples; return the waits before the last batch. Call it in a process that ends."""
    torch.set_num_threads(1)
    engine = engines.engine(config)
    before_last: dict[str, int] = {}
    with pretend():
        ranks = Ranks(0, 1, CUDA, first_of_node=True)
        setup = build_setup(config, ranks)
        move(setup.module, torch.channels_last if config.train.channels_last else torch.preserve_format)
        data = Split(CUDA, config, setup.manifest, "train", trained_on=setup.manifest)
        poll = StopPoll(ranks, StopRequests(StopSignals()))

        def asked() -> None:
            poll()
            before_last.update(+counts.waits)

        counts.clear()
        data.predict(InferenceModel(setup.module, ranks, engine.precision), config.distinct_tta, poll=asked)
    return before_last


def split(counted: Counts) -> dict[str, int]:
    """Return the launches of each part of a step."""
    found = {part: counted.of(*rooms) for part, rooms in _PARTS.items()}
    return {**found, "rest": counted.launches.total() - sum(found.values())}


def _print(name: str, packed: str) -> None:
    words = [
        "--data.path",
        packed,
        "--run.dir",
        tempfile.mkdtemp(),
        "--train.batch_size",
        "10",
        "--model.pretrained",
        "",
    ]
    counted = count_step(recipe.load(name, [*words, "--train.precision", "no", "--train.threads", "1"]))
    parts = " | ".join(map(str, [counted.launches.total(), *split(counted).values(), counted.waits.total()]))
    print(f"| `{name}` | {parts} |", flush=True)


if __name__ == "__main__":
    print("| recipe | launches | augmentation | network | optimizer | rest | waits |\n|" + " --- |" * 7, flush=True)
    for shipped in sys.argv[2:] or recipe.shipped():
        forked_ranks.run(1, functools.partial(_print, shipped, sys.argv[1]))
    os._exit(0)
