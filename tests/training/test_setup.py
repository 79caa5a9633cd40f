"""What is refused before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_packed import TRAIN, small_packed

from cifar_dist.config import Config, DataConfig, ModelConfig, TrainConfig
from cifar_dist.distributed.start import start_engine
from cifar_dist.errors import UserError
from cifar_dist.training.setup import build_setup

IMAGENET_STEM = ModelConfig("resnet18", {"stem": "imagenet"})
"""It reduces small images to one position, so batch normalisation of one sample has a single value."""


def set_up(data: Path, model: ModelConfig, batch_size: int, accumulate: int) -> None:
    train = TrainConfig(batch_size=batch_size, accumulate=accumulate, threads=1)
    config = Config(data=DataConfig(path=str(data)), model=model, train=train)
    with start_engine(config) as engine:
        build_setup(config, engine.ranks)


@pytest.mark.parametrize(("batch_size", "accumulate", "works"), [(26, 2, 24), (4, 4, 8), (52, 1, 51)])
def test_batch_normalisation_of_a_single_value_is_refused_with_a_size_that_works(
    tmp_path: Path, batch_size: int, accumulate: int, works: int
) -> None:
    data = small_packed(tmp_path, "npy").root
    with pytest.raises(
        UserError, match=rf"of the {TRAIN} training samples.* resnet18; use --train.batch_size {works}$"
    ):
        set_up(data, IMAGENET_STEM, batch_size, accumulate)
    set_up(data, IMAGENET_STEM, works, accumulate)


def test_one_sample_per_step_is_enough_for_other_networks(tmp_path: Path) -> None:
    """They have more than one position, or no batch normalisation."""
    data = small_packed(tmp_path, "npy").root
    set_up(data, ModelConfig("tiny-cnn"), 52, 1)
    set_up(data, ModelConfig("tiny-resnet", {"widths": [4, 8]}), 52, 1)
