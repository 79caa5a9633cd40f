"""Two processes, and three of FSDP, that predict the digits: ``python predict_on_ranks.py DIGITS OUT``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_dist.config import Config, DataConfig, EvalConfig, TrainConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.fully_sharded import is_sharded
from cifar_dist.evaluation.split import Split
from support import forked_ranks
from support.dataset_builders import write_npz
from support.engines import engine

UNSURE_BELOW = 0.1242  # of a fifth of the samples, and of none in some batches of 7
CASES = [("0", 64, 1.0), ("mirror", 64, 1.0), ("translate", 7, UNSURE_BELOW), ("3", 1000, 1.0)]
"""Views, batch size and eval.tta_below: of 270 samples batches of 64 do not divide, and 1000 leave a rank with nothing
to do."""


class Drawing(nn.Module):
    """Draws where it predicts, as Monte-Carlo dropout does: what belongs to a batch, and not to the rank."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits + 1e-3 * torch.rand_like(logits)


def predict_on(place: Engine, digits: Path) -> dict[str, NDArray[np.float32]]:
    manifest = Manifest.load(digits)
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    layers = nn.Conv2d(3, 8, 3, stride=2), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, 10), Drawing()
    model = nn.Sequential(*layers)
    # The ranks' batch statistics have drifted apart, as they do under DDP; rank 0 has the run's.
    assert norm.running_mean is not None
    torch.nn.init.constant_(norm.running_mean, 0.1 * place.ranks.rank)
    inference = place.prepare_for_inference(model)
    assert is_sharded(model, place.ranks.world_size) is (place.kind == "fsdp")
    logits = {}
    polls = 0

    def poll() -> None:
        nonlocal polls
        polls += 1

    for tta, batch_size, below in CASES:
        config = Config(
            data=DataConfig(resident_mb=0 if tta == "0" else 64),
            eval=EvalConfig(batch_size=batch_size, tta_below=below),
        )
        split = Split(place.ranks.device, config, manifest, "test", manifest)
        predictions = split.predict(inference, tta, poll=poll)
        assert model.training, "evaluation leaves the mode it found"
        assert predictions.labels is not None
        assert predictions.labels.tolist() == manifest.labels("test").tolist()
        assert (0 < predictions.viewed < len(predictions.logits)) == (below < 1), predictions.viewed
        logits[tta] = predictions.logits.numpy()
    rounds = [-(-len(logits[tta]) // (size * place.ranks.world_size)) for tta, size, _ in CASES]
    assert polls == sum(rounds), "all ranks poll equally often: a poll is collective"
    return logits


def rank() -> None:
    place = engine(Config(train=TrainConfig(threads=1)))
    path = Path(sys.argv[2], f"{place.ranks.rank}-of-{place.ranks.world_size}.npz")
    write_npz(path, predict_on(place, Path(sys.argv[1])))
    place.close()


if __name__ == "__main__":
    forked_ranks.run(2, rank)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    forked_ranks.run(3, rank)
