"""Verify a packed dataset byte by byte against its manifest, and describe it."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_dist.config import DataConfig
from cifar_dist.data.dataset_folder import FILE_NAME, find_tars
from cifar_dist.data.image import decode, decoding_problem
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.order import epoch_order, global_batch, steps_per_epoch
from cifar_dist.data.randomness import permutation
from cifar_dist.data.shard import Shard
from cifar_dist.data.statistics import channel_statistics, pixel_counts
from cifar_dist.data.tar import group_members, is_of_hidden
from cifar_dist.errors import UserError, printable, quoted
from cifar_dist.files.checksums import sha256
from cifar_dist.formatting import list_some
from cifar_dist.terminal.progress import progress

BALANCE_BATCH = 500
_MOST_OFF = 1e-3  # of a mean or std: decoders of JPEG differ by less


@dataclass(frozen=True)
class SplitReport:
    """Totals of one split.

    Attributes:
        samples, shards, bytes: counts.
        class_counts: int64 [classes], samples of each class; empty without labels.
    """

    samples: int
    shards: int
    bytes: int
    class_counts: NDArray[np.int64]

    @property
    def labels_shown(self) -> str:
        """The samples of each class in words."""
        if not len(self.class_counts):
            return "no labels"
        low, high = int(self.class_counts.min()), int(self.class_counts.max())
        return f"{low:,} to {high:,} per class" if low < high else f"{low:,} per class"


@dataclass(frozen=True)
class BatchBalance:
    """Mean total-variation distance between the class distribution of a batch and that of the split.

    Attributes:
        batch: samples per batch.
        stored: distance for batches in stored order.
        epoch: distance for batches in the order of an epoch.
        uniform: distance for batches of a uniform permutation: the sampling noise that remains with ideal mixing.
    """

    batch: int
    stored: float
    epoch: float
    uniform: float


@dataclass(frozen=True)
class VerifyReport:
    """The description of an intact dataset.

    Attributes:
        manifest: the dataset.
        splits: totals by split name.
        balance: for the split train; None if it does not exist or has no labels.
        unlisted: tars in the folder that the manifest does not list, so that no run reads them.
    """

    manifest: Manifest
    splits: dict[str, SplitReport]
    balance: BatchBalance | None
    unlisted: tuple[str, ...]

    def __str__(self) -> str:
        """Format the report as lines to print."""
        data = self.manifest
        height, width, channels = data.shape
        lines = [
            f"{data.root}: {data.name}, {len(data.classes)} classes, {width}x{height}x{channels} {data.codec}, "
            f"fingerprint {data.fingerprint}: all shards are intact"
        ]
        for name, split in self.splits.items():
            line = f"  {name:5}  {split.samples:7,} samples  {split.shards:4} shards  {split.bytes / 2**20:8.1f} MiB"
            lines.append(f"{line}  {split.labels_shown}")
        if self.balance:
            balance = self.balance
            lines.append(
                f"  mixing  class distribution of a batch of {balance.batch}, distance from the split's: "
                f"{balance.epoch:.3f} in epoch order, {balance.uniform:.3f} in uniform order, "
                f"{balance.stored:.3f} in stored order"
            )
        if self.unlisted:
            remedy = f"run cifar-dist index {quoted(data.root)}" if data.is_indexed else "move them away"
            lines.append(f"  unused  tars that the manifest does not list: {list_some(self.unlisted)}; {remedy}")
        return "\n".join(map(printable, lines))


def verify(folder: str | Path, *, shuffle_block: int = DataConfig.shuffle_block, show: bool = True) -> VerifyReport:
    """Verify everything that a run could read: sizes, checksums, tar headers, labels, each image, mean and std.

    Args:
        folder: a packed dataset.
        shuffle_block: ``data.shuffle_block`` of the epoch order whose mixing is measured.
        show: show progress on stderr.

    Raises:
        UserError: the manifest is invalid, or shards are missing or damaged; the message has one line for each. Or its
            mean or std are not those of the images, or only some samples of a split have labels.
    """
    manifest = Manifest.load(folder)
    problems = []
    shards = [shard for split in manifest.splits.values() for shard in split]
    normalising = {shard.name for shard in next(iter(manifest.splits.values()))}  # of train, if it exists
    counts = np.zeros((manifest.shape[2], 256), dtype=np.int64)
    with progress(f"verifying {manifest.root.name}", sum(shard.samples for shard in shards), show=show) as advance:
        for shard in shards:
            problem = _find_problem(manifest, shard, counts if shard.name in normalising else None)
            if problem is not None:
                problems.append(f"  {shard.name}: {problem}")
            advance(shard.samples)
    if problems:
        head = f"{folder}: {len(problems)} of {len(shards)} shards are missing or damaged; copy them again, or recreate"
        raise UserError(f"{head} the dataset with: {manifest.made_with}", problems)
    _require_statistics(manifest, counts)
    labelled = "train" in manifest.splits and manifest.is_labelled("train")
    return VerifyReport(
        manifest=manifest,
        splits={name: _describe(manifest, name) for name in manifest.splits},
        balance=_measure_balance(manifest, shuffle_block) if labelled else None,
        unlisted=tuple(sorted(set(find_tars(manifest.root)) - {shard.name for shard in shards})),
    )


def total_variation(labels: Tensor, order: Tensor, batch: int, classes: int) -> float:
    """Compute half the L1 distance between the class distributions of a batch and of the split, averaged over batches.

    0 means that every batch has exactly the split's distribution. With 10 classes of equal size, batches of a single
    class have 0.9.

    Args:
        labels: int64 [samples].
        order: int64 [samples], sample ids.
        batch: samples per batch; a shorter last batch is ignored, unless it is the only one.
        classes: number of classes.
    """
    overall = torch.bincount(labels, minlength=classes) / len(labels)
    full_batches = max(1, len(order) // batch)
    distances = [
        0.5 * (torch.bincount(labels[ids], minlength=classes) / len(ids) - overall).abs().sum()
        for ids in (global_batch(order, step, batch) for step in range(full_batches))
    ]
    return float(torch.stack(distances).mean())


def _require_statistics(manifest: Manifest, counts: NDArray[np.int64]) -> None:
    for name, said, true in zip(
        ("mean", "std"), (manifest.mean, manifest.std), channel_statistics(counts), strict=True
    ):
        if not np.allclose(said, true, rtol=0, atol=_MOST_OFF):
            shown = ", ".join(f"{value:.4f}" for value in true)
            raise UserError(
                f"{manifest.root / FILE_NAME}: {name} is {list(said)}, and that of the images is [{shown}]: the "
                f"manifest was changed; recreate the dataset with: {manifest.made_with}"
            )


def _measure_balance(manifest: Manifest, shuffle_block: int) -> BatchBalance:
    labels = torch.from_numpy(manifest.labels("train"))
    sizes = [shard.samples for shard in manifest.shards("train")]
    batch, count = min(BALANCE_BATCH, len(labels)), len(manifest.classes)
    # Average over about a thousand batches; the mean of fewer is noisy.
    rounds = range(-(-1000 // steps_per_epoch(len(labels), batch)))
    epochs = [epoch_order(sizes, 0, epoch, shuffle_block) for epoch in rounds]
    uniform = [permutation(0, epoch, len(labels), "verify") for epoch in rounds]
    return BatchBalance(
        batch=batch,
        stored=total_variation(labels, torch.arange(len(labels)), batch, count),
        epoch=float(np.mean([total_variation(labels, order, batch, count) for order in epochs])),
        uniform=float(np.mean([total_variation(labels, order, batch, count) for order in uniform])),
    )


def _describe(manifest: Manifest, split: str) -> SplitReport:
    labels, shards = manifest.labels(split), manifest.shards(split)
    counts = np.bincount(labels, minlength=len(manifest.classes)) if manifest.is_labelled(split) else labels[:0]
    return SplitReport(
        samples=len(labels),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        class_counts=counts,
    )


def _find_problem(manifest: Manifest, shard: Shard, counts: NDArray[np.int64] | None) -> str | None:
    """Describe what is wrong with a shard in one line, None if it is intact; its pixels are added to ``counts``."""
    path = manifest.root / shard.name
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"{'truncated: ' * (size < shard.bytes)}{size:,} of {shard.bytes:,} bytes"
        digest = sha256(path)
        if digest != shard.sha256:
            return f"sha256 is {digest[:16]}..., the manifest says {shard.sha256[:16]}...: the file was changed"
        with path.open("rb") as file:
            return _find_member_problem(manifest, shard, file, counts)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (tarfile.TarError, ValueError, EOFError, AssertionError) as error:
        return f"is not a WebDataset tar ({str(error)[:100]!a})"


def _find_member_problem(
    manifest: Manifest, shard: Shard, file: BinaryIO, counts: NDArray[np.int64] | None
) -> str | None:
    """Compare the manifest with what webdataset reads from the tar and with the tar's own headers."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    indexed = group_members(file).samples
    file.seek(0)
    members = tar_file_expander([{"url": shard.name, "stream": file}])
    samples = (sample for sample in group_by_keys(members) if not is_of_hidden(sample["__key__"]))
    for row, (sample, key) in enumerate(zip_longest(samples, shard.keys)):
        if sample is None or key not in indexed or sample["__key__"] != key:
            found = row + (sample is not None) + sum(1 for _ in samples)
            return f"webdataset reads {found:,} samples that differ from the manifest's {shard.samples:,}"
        places: dict[str, tuple[int, int]] = {
            manifest.codec: (int(shard.image_offset[row]), int(shard.image_size[row]))
        }
        if len(shard.label_offset):
            places["cls"] = (int(shard.label_offset[row]), int(shard.label_size[row]))
        for suffix, (offset, size) in places.items():
            if indexed[key].get(suffix) != (offset, size):
                return f"'{key}.{suffix}' is not at the offset that the manifest says"
            if sample.get(suffix) != os.pread(file.fileno(), size, offset):  # the position is webdataset's
                return f"webdataset reads '{key}.{suffix}' differently"
        if len(shard.label_offset) and int(sample["cls"]) != shard.labels[row]:
            return f"'{key}.cls' is {sample['cls'][:20]!r}, the manifest says {shard.labels[row]}"
        try:
            image = decode(sample[manifest.codec], manifest.codec)
        except Exception as error:  # a decoder given arbitrary bytes may raise almost anything
            return f"'{key}.{manifest.codec}' cannot be decoded ({decoding_problem(error)})"
        if image.shape != manifest.shape or image.dtype != np.uint8:
            return f"'{key}.{manifest.codec}' is {image.dtype} {image.shape}, the manifest says {manifest.shape}"
        if counts is not None:
            counts += pixel_counts(image[None])
    return None
