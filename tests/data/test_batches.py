"""The batches of a process: the same bytes whether resident or streamed, from any step, on any number of processes."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_packed import TRAIN, small_packed

from cifar_dist.config import DataConfig
from cifar_dist.data.batches import Batch, Images, TrainBatches
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.order import own_parts
from cifar_dist.data.pack import pack
from cifar_dist.errors import UserError

CPU = torch.device("cpu")
STREAMED = DataConfig(resident_mb=0)


@pytest.fixture(scope="module", params=["png", "npy"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return small_packed(tmp_path_factory.mktemp("batches"), request.param)


def batches(
    packed: Manifest, config: DataConfig, size: int = 10, accumulate: int = 1, rank: int = 0, processes: int = 1
) -> TrainBatches:
    return TrainBatches(
        packed,
        config,
        seed=3,
        batch_size=size,
        parts=processes * accumulate,
        own=own_parts(processes * accumulate, rank, processes),
        device=CPU,
    )


def flat(steps: Iterator[list[Batch]]) -> list[Batch]:
    return [batch for step in steps for batch in step]


def same(one: Batch, other: Batch) -> bool:
    names = [field.name for field in dataclasses.fields(Batch)]
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@settings(deadline=None, max_examples=25)
@given(st.data(), st.integers(1, 60), st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 2, 5, 1000]))
def test_resident_and_streamed_are_the_same_bytes(
    packed: Manifest, data: st.DataObject, size: int, accumulate: int, processes: int, read_ahead: int
) -> None:
    """From any step of any epoch, however far ahead images are decoded (here more than an epoch)."""
    place = (size, accumulate, data.draw(st.integers(0, processes - 1)), processes)
    block = data.draw(st.integers(1, 9))
    resident = batches(packed, DataConfig(shuffle_block=block), *place)
    streamed = batches(packed, DataConfig(shuffle_block=block, resident_mb=0, read_ahead=read_ahead), *place)
    assert resident.images.resident
    assert not streamed.images.resident
    epoch, first = data.draw(st.integers(0, 99)), data.draw(st.integers(0, resident.steps_per_epoch))
    one, other = (list(b.epoch(epoch, first)) for b in (resident, streamed))
    assert len(one) == len(other) == resident.steps_per_epoch - first
    assert all(len(step) == accumulate for step in one)
    for a, b in zip(flat(iter(one)), flat(iter(other)), strict=True):
        assert same(a, b)


@pytest.mark.parametrize("config", [DataConfig(), STREAMED], ids=["resident", "streamed"])
def test_resuming_from_a_step_replays_nothing(packed: Manifest, config: DataConfig) -> None:
    source = batches(packed, config)
    whole = list(source.epoch(1))
    for first in range(source.steps_per_epoch + 1):
        rest = list(source.epoch(1, first))
        assert len(rest) == len(whole) - first
        assert all(same(a[0], b[0]) for a, b in zip(rest, whole[first:], strict=True))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_an_epoch_is_every_sample_once_on_any_number_of_processes(packed: Manifest, processes: int) -> None:
    """Each step has the same samples; only their distribution among the ranks differs."""
    alone = [sorted(step[0].ids.tolist()) for step in batches(packed, DataConfig()).epoch(4)]
    steps: list[list[int]] = [[] for _ in alone]
    for rank in range(processes):
        mine = batches(packed, STREAMED, accumulate=2, rank=rank, processes=processes)
        for number, step in enumerate(mine.epoch(4)):
            for batch in step:
                steps[number] += batch.ids[batch.weight == 1].tolist()
    assert [sorted(step) for step in steps] == alone
    assert sorted(i for step in steps for i in step) == list(range(TRAIN))
    assert [mine.size(step) for step in range(mine.steps_per_epoch)] == [len(step) for step in alone]


def test_images_and_labels_belong_to_the_ids(packed: Manifest) -> None:
    """Compared with the packed source, in which a sample's number is its key."""
    source = np.load(packed.root.parent / "source.npz")
    number = torch.tensor([int(key) for key in packed.keys("train")])
    for batch in flat(batches(packed, STREAMED, size=16).epoch(0)):
        assert np.array_equal(batch.images.numpy(), source["x_train"][number[batch.ids]])
        assert batch.labels.tolist() == source["y_train"][number[batch.ids]].tolist()
        assert batch.images.dtype == torch.uint8


def test_nothing_held_out_trains_on_val_too(packed: Manifest, tmp_path: Path) -> None:
    source = packed.root.parent / "source.npz"
    held = pack(source, tmp_path / "held", samples_per_shard=7, val_fraction=0.2, show=False)
    assert 0 < held.samples("val") == TRAIN - held.samples("train")
    number = torch.tensor([int(key) for split in ("train", "val") for key in held.keys(split)])
    epoch = flat(batches(held, DataConfig(hold_out=False), size=16).epoch(0))
    assert sorted(number[torch.cat([batch.ids for batch in epoch])].tolist()) == list(range(TRAIN))
    arrays = np.load(source)
    for batch in epoch:
        assert np.array_equal(batch.images.numpy(), arrays["x_train"][number[batch.ids]])
        assert batch.labels.tolist() == arrays["y_train"][number[batch.ids]].tolist()


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_stream_that_is_closed_early_leaves_nothing_behind(packed: Manifest, taken: int) -> None:
    """After a stop in the middle of an epoch no thread is left, and the next epoch is complete."""
    threads = {*threading.enumerate()}
    source = batches(packed, DataConfig(resident_mb=0, read_ahead=3), size=4)
    epoch = source.epoch(0)
    left = list(islice(epoch, taken))
    del epoch
    assert {*threading.enumerate()} <= threads
    whole = list(source.epoch(0))
    assert len(whole) == source.steps_per_epoch
    assert all(same(a[0], b[0]) for a, b in zip(left, whole, strict=False))


def test_the_budget_decides_what_is_resident(packed: Manifest) -> None:
    assert Images(packed, "train", DataConfig(resident_mb=1), CPU).resident
    assert not Images(packed, "train", STREAMED, CPU).resident


@pytest.mark.parametrize("config", [DataConfig(), STREAMED], ids=["resident", "streamed"])
def test_a_changed_shard_is_refused_before_the_first_batch(tmp_path: Path, config: DataConfig) -> None:
    packed = small_packed(tmp_path, "npy")
    shard = packed.root / "train-000001.tar"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"train-000001\.tar"):
        batches(packed, config)


def test_a_shard_that_breaks_while_streaming_stops_the_stream_by_name(tmp_path: Path) -> None:
    packed = small_packed(tmp_path, "npy")
    threads = {*threading.enumerate()}
    source = batches(packed, DataConfig(resident_mb=0, read_ahead=2))
    for shard in packed.shards("train"):
        os.truncate(packed.root / shard.name, 100)
    with pytest.raises(UserError, match=r"train-00000\d\.tar: sample"):
        flat(source.epoch(0))
    assert {*threading.enumerate()} <= threads


def test_samples_without_a_label_cannot_be_trained_on(packed: Manifest) -> None:
    (first, *rest) = packed.shards("train")
    unlabelled = dataclasses.replace(first, labels=np.full_like(first.labels, -1))
    broken = dataclasses.replace(packed, splits={"train": (unlabelled, *rest)})
    with pytest.raises(UserError, match=r"'train' has samples without .*; add them \(KEY.cls\), then: cifar-dist pack"):
        batches(broken, DataConfig())
    val = dataclasses.replace(packed, splits={"train": packed.shards("train"), "val": (unlabelled,)})
    with pytest.raises(UserError, match=r"which includes val .* has samples without .*; use --data.hold_out true$"):
        batches(val, DataConfig(hold_out=False))
