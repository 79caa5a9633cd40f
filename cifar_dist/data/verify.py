"""A packed dataset, checked byte by byte against its manifest, and described."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_dist.data.image import decode
from cifar_dist.data.manifest import Manifest, Shard
from cifar_dist.data.order import epoch_order, global_batch, steps_per_epoch
from cifar_dist.data.randomness import permutation
from cifar_dist.data.tar import members
from cifar_dist.errors import UserError
from cifar_dist.formatting import progress

MIXING_BATCH = 500


@dataclass(frozen=True)
class SplitReport:
    """One split.

    Attributes:
        samples, shards, bytes: how many there are.
        class_counts: int64 [classes], samples of each class; empty without labels.
    """

    samples: int
    shards: int
    bytes: int
    class_counts: NDArray[np.int64]


@dataclass(frozen=True)
class Mixing:
    """How far the classes in a batch are from those of the whole split, as a mean total-variation distance.

    Attributes:
        batch: samples in a batch.
        stored: of batches read in the order of the shards.
        epoch: of batches in the order of an epoch.
        uniform: of batches of a uniform permutation: what sampling alone gives, and no order can beat on average.
    """

    batch: int
    stored: float
    epoch: float
    uniform: float


@dataclass(frozen=True)
class VerifyReport:
    """What was found in a dataset without a fault.

    Attributes:
        manifest: the dataset.
        splits: split name to what it holds.
        mixing: of the split train; None where there is none, or a sample without a label.
    """

    manifest: Manifest
    splits: dict[str, SplitReport]
    mixing: Mixing | None

    def __str__(self) -> str:
        """The report as lines to print."""
        data = self.manifest
        height, width, channels = data.shape
        lines = [
            f"{data.root}: {data.name}, {len(data.classes)} classes, {width}x{height}x{channels} {data.codec}, "
            f"fingerprint {data.fingerprint}: all shards are whole"
        ]
        for name, split in self.splits.items():
            line = f"  {name:5}  {split.samples:7,} samples  {split.shards:4} shards  {split.bytes / 2**20:8.1f} MiB"
            if len(split.class_counts):
                low, high = int(split.class_counts.min()), int(split.class_counts.max())
                line += f"  {low:,} to {high:,} per class" if low < high else f"  {low:,} per class"
            lines.append(line)
        if self.mixing:
            mixing = self.mixing
            lines.append(
                f"  mixing  distance of the classes in a batch of {mixing.batch} from the split's: "
                f"{mixing.epoch:.3f} in an epoch's order, {mixing.uniform:.3f} in a uniform one, "
                f"{mixing.stored:.3f} as stored"
            )
        return "\n".join(lines)


def verify(folder: str | Path, *, shuffle_block: int = 64, show: bool = True) -> VerifyReport:
    """Check every byte that a run could read: sizes, checksums, tar headers, labels, and that each image decodes.

    Args:
        folder: a packed dataset.
        shuffle_block: of the order whose mixing is measured; ``data.shuffle_block`` of a run.
        show: show progress on stderr.

    Raises:
        UserError: no valid manifest; or shards that are missing or damaged, all of them, one line each.
    """
    manifest = Manifest.load(folder)
    problems = []
    shards = [shard for split in manifest.splits.values() for shard in split]
    with progress(f"verifying {manifest.root.name}", sum(shard.samples for shard in shards), show=show) as advance:
        for shard in shards:
            problem = _problem(manifest, shard)
            if problem is not None:
                problems.append(f"  {shard.name}: {problem}")
            advance(shard.samples)
    if problems:
        head = f"{folder}: {len(problems)} of {len(shards)} shards are damaged; fetch them again, or make it again with"
        raise UserError(f"{head}: {manifest.made_with}", problems)
    labelled = "train" in manifest.splits and bool((manifest.labels("train") >= 0).all())
    return VerifyReport(
        manifest=manifest,
        splits={name: _describe(manifest, name) for name in manifest.splits},
        mixing=_mixing(manifest, shuffle_block) if labelled else None,
    )


def total_variation(labels: Tensor, order: Tensor, batch: int, classes: int) -> float:
    """Mean over the batches of an order of half the L1 distance between a batch's class shares and the whole's.

    0: every batch has exactly the shares of the whole. With 10 equal classes, batches of one class have 0.9.

    Args:
        labels: int64 [samples].
        order: int64 [samples], sample ids.
        batch: samples in a batch; a last one that is shorter is left out, unless it is the only one.
        classes: number of classes.
    """
    whole = torch.bincount(labels, minlength=classes) / len(labels)
    full = max(1, len(order) // batch)
    distances = [
        0.5 * (torch.bincount(labels[ids], minlength=classes) / len(ids) - whole).abs().sum()
        for ids in (global_batch(order, step, batch) for step in range(full))
    ]
    return float(torch.stack(distances).mean())


def _mixing(manifest: Manifest, shuffle_block: int) -> Mixing:
    labels = torch.from_numpy(manifest.labels("train"))
    sizes = [shard.samples for shard in manifest.shards("train")]
    batch, count = min(MIXING_BATCH, len(labels)), len(manifest.classes)
    # About a thousand batches: the mean of fewer says little.
    rounds = range(-(-1000 // steps_per_epoch(len(labels), batch)))
    epochs = [epoch_order(sizes, 0, epoch, shuffle_block) for epoch in rounds]
    uniform = [permutation(0, epoch, len(labels), "verify") for epoch in rounds]
    return Mixing(
        batch=batch,
        stored=total_variation(labels, torch.arange(len(labels)), batch, count),
        epoch=float(np.mean([total_variation(labels, order, batch, count) for order in epochs])),
        uniform=float(np.mean([total_variation(labels, order, batch, count) for order in uniform])),
    )


def _describe(manifest: Manifest, split: str) -> SplitReport:
    labels, shards = manifest.labels(split), manifest.shards(split)
    return SplitReport(
        samples=len(labels),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        class_counts=np.bincount(labels[labels >= 0], minlength=len(manifest.classes)),
    )


def _problem(manifest: Manifest, shard: Shard) -> str | None:
    """What is wrong with a shard, in one line; None when nothing is."""
    path = manifest.root / shard.name
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"{'truncated: ' * (size < shard.bytes)}{size:,} of {shard.bytes:,} bytes"
        data = path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    digest = hashlib.sha256(data).hexdigest()
    if digest != shard.sha256:
        return f"sha256 is {digest[:16]}..., the manifest says {shard.sha256[:16]}...: the file was changed"
    try:
        return _member_problem(manifest, shard, data)
    except (tarfile.TarError, ValueError, EOFError, AssertionError) as error:
        return f"is no WebDataset tar ({str(error)[:100]!a})"


def _member_problem(manifest: Manifest, shard: Shard, data: bytes) -> str | None:
    """Compare what webdataset reads from the tar, and the tar's own headers, with the manifest."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    lies_at = members(io.BytesIO(data))
    files = tar_file_expander([{"url": shard.name, "stream": io.BytesIO(data)}])
    samples = {sample["__key__"]: sample for sample in group_by_keys(files)}
    if not list(samples) == list(lies_at) == list(shard.keys):
        return f"webdataset reads {len(samples):,} samples from it, and not the {shard.samples:,} of the manifest"
    for row, key in enumerate(shard.keys):
        places: dict[str, tuple[int, int]] = {
            manifest.codec: (int(shard.image_offset[row]), int(shard.image_size[row]))
        }
        if len(shard.label_offset):
            places["cls"] = (int(shard.label_offset[row]), int(shard.label_size[row]))
        for suffix, (offset, size) in places.items():
            if lies_at[key].get(suffix) != (offset, size):
                return f"'{key}.{suffix}' does not lie where the manifest says"
            if samples[key].get(suffix) != data[offset : offset + size]:
                return f"webdataset reads '{key}.{suffix}' differently"
        if len(shard.label_offset) and int(samples[key]["cls"]) != shard.labels[row]:
            return f"'{key}.cls' is {samples[key]['cls'][:20]!r}, the manifest says {shard.labels[row]}"
        try:
            image = decode(samples[key][manifest.codec], manifest.codec)
        except Exception as error:  # a decoder fed with anything raises almost anything
            return f"'{key}.{manifest.codec}' cannot be decoded ({error})"
        if image.shape != manifest.shape or image.dtype != np.uint8:
            return f"'{key}.{manifest.codec}' is {image.dtype} {image.shape}, the manifest says {manifest.shape}"
    return None
