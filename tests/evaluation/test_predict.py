"""Every sample is predicted exactly once, with the same bits on any number of processes with equally many threads."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import predict_on_ranks
from support.engines import engine
from support.predict_on_ranks import CASES, predict_on
from support.running import spawn
from torch import Tensor, nn

from cifar_dist.config import AugmentConfig, Config, EvalConfig, TrainConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.normalize import Normalize, normalization_statistics
from cifar_dist.data.read import ShardReader
from cifar_dist.data.shard import Shard
from cifar_dist.errors import UserError
from cifar_dist.evaluation.predict import Predictions, predict
from cifar_dist.evaluation.split import Split


def test_any_number_of_processes_gives_the_same_bits(all_digits: Path, tmp_path: Path) -> None:
    """Also where each holds a shard of the weights, and one has no images."""
    alone = predict_on(engine(Config(train=TrainConfig(threads=1))), all_digits)
    (done,) = spawn([predict_on_ranks.__file__, str(all_digits), str(tmp_path)])
    assert done.returncode == 0, done.stderr
    for processes in (2, 3):
        for rank in range(processes):
            together = np.load(tmp_path / f"{rank}-of-{processes}.npz")
            for tta, *_ in CASES:
                assert np.isfinite(together[tta]).all()
                assert together[tta].tobytes() == alone[tta].tobytes(), f"rank {rank} of {processes}, tta {tta}"


def test_the_number_of_threads_changes_rounding_only(all_digits: Path) -> None:
    """A CPU's matrix products split their sums by thread, so logits differ by a few units in the last place."""
    one, two = (predict_on(engine(Config(train=TrainConfig(threads=threads))), all_digits) for threads in (1, 2))
    for tta, *_ in CASES:
        np.testing.assert_allclose(one[tta], two[tta], rtol=0, atol=1e-5)


def test_views_of_unsure_images_only(all_digits: Path) -> None:
    """Those below the threshold get the logits of all views, the others keep their own; the number is reported."""
    manifest = Manifest.load(all_digits)
    torch.manual_seed(0)
    model = engine().prepare_for_inference(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))

    def predict_below(below: float) -> Predictions:
        config = Config(eval=EvalConfig(batch_size=100, tta="translate", tta_below=below))
        return Split(model.ranks.device, config, manifest, "test", manifest).predict(model, "translate")

    everything, some, nothing = (predict_below(below) for below in (1.0, 0.22, 0.01))
    below_one = predict_below(1 - 1e-7)  # nothing is as sure as that
    count = len(everything.logits)
    assert (everything.viewed, below_one.viewed, nothing.viewed) == (count, count, 0)
    assert torch.equal(below_one.logits, everything.logits)
    assert torch.equal(nothing.logits, everything.plain_logits)
    unsure = everything.plain_logits.softmax(dim=1).amax(dim=1) < 0.22
    assert some.viewed == int(unsure.sum())
    assert 0 < some.viewed < count
    torch.testing.assert_close(
        some.logits, torch.where(unsure[:, None], everything.logits, everything.plain_logits), rtol=0, atol=1e-5
    )


class Counting(nn.Module):
    """Predicts from the first pixel, so that the order of the images is visible."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0].clone()


class Noisy(nn.Module):
    """Draws where it predicts, as Monte-Carlo dropout does."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), 10) + np.random.randn() + random.random()


def test_a_network_that_draws_predicts_the_same_again(all_digits: Path) -> None:
    manifest = Manifest.load(all_digits)
    model = engine().prepare_for_inference(Noisy())
    split = Split(model.ranks.device, Config(eval=EvalConfig(batch_size=50)), manifest, "test", manifest)
    first, again = (split.predict(model, "0").logits for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[:50], first[50:100]), "each batch has draws of its own"


def test_predictions_are_in_the_order_of_sample_ids(all_digits: Path) -> None:
    manifest = Manifest.load(all_digits)
    model = engine().prepare_for_inference(Counting())
    config = Config(eval=EvalConfig(batch_size=7))
    logits = Split(model.ranks.device, config, manifest, "test", manifest).predict(model, "0").logits
    normalize = Normalize(manifest.mean, manifest.std, torch.device("cpu"), channels_last=False)
    assert torch.equal(logits, normalize(ShardReader(manifest, "test").all())[:, :, 0, 0])


def test_images_are_normalised_as_the_recipe_says(all_digits: Path) -> None:
    manifest = Manifest.load(all_digits)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    config = Config(augment=AugmentConfig(mean=mean, std=std))
    model = engine().prepare_for_inference(Counting())
    logits = Split(model.ranks.device, config, manifest, "test", manifest).predict(model, "0").logits
    normalize = Normalize(mean, std, torch.device("cpu"), channels_last=False)
    assert torch.equal(logits, normalize(ShardReader(manifest, "test").all())[:, :, 0, 0])


def test_a_requested_stop_leaves_the_model_unchanged(all_digits: Path) -> None:
    manifest = Manifest.load(all_digits)
    model = engine().prepare_for_inference(Counting())
    split = Split(model.ranks.device, Config(eval=EvalConfig(batch_size=10)), manifest, "test", manifest)
    left = iter([None, None])

    def poll() -> None:
        try:
            next(left)
        except StopIteration:
            raise InterruptedError from None

    with pytest.raises(InterruptedError):
        split.predict(model, "0", poll=poll)
    assert model.module.training
    assert len(split.predict(model, "0").logits) == len(split.images)


def test_a_stream_that_ends_early_is_detected() -> None:
    model = engine().prepare_for_inference(Counting())
    images = torch.zeros(3, 4, 4, 3)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        predict(
            model,
            lambda requests: (images for _ in requests[1:]),
            count=6,
            views=lambda batch, ids: iter([(1.0, batch.permute(0, 3, 1, 2))]),
            batch_size=3,
        )


def test_a_split_has_labels_for_all_samples_or_none(all_digits: Path) -> None:
    manifest = Manifest.load(all_digits)
    shards = manifest.splits["test"]

    def opened(*test: Shard) -> Split:
        changed = replace(manifest, splits={**manifest.splits, "test": test})
        return Split(torch.device("cpu"), Config(), changed, "test", manifest)

    assert opened(*(replace(shard, labels=np.full_like(shard.labels, -1)) for shard in shards)).labels is None
    (*others, last) = shards
    one_missing = replace(last, labels=np.where(np.arange(last.samples) == 3, -1, last.labels))
    with pytest.raises(UserError, match=rf"1 of \d+ samples of test have no label, the first in {last.name}"):
        opened(*others, one_missing)


def test_images_of_another_shape_are_refused(all_digits: Path) -> None:
    manifest = Manifest.load(all_digits)
    with pytest.raises(
        UserError, match=r"is 32x32x3, but the run was trained on 28x28x1; pack its source again with --size 28$"
    ):
        Split(torch.device("cpu"), Config(), manifest, "test", replace(manifest, shape=(28, 28, 1)))


def test_statistics_come_from_the_recipe_else_from_the_data(all_digits: Path) -> None:
    manifest = Manifest.load(all_digits)
    assert normalization_statistics(AugmentConfig(), manifest) == (manifest.mean, manifest.std)
    own = AugmentConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    assert normalization_statistics(own, manifest) == (own.mean, own.std)
    with pytest.raises(UserError, match=r"augment\.mean has 1 value, but the images have 3 channels"):
        normalization_statistics(AugmentConfig(mean=(0.5,), std=(0.2,)), manifest)
