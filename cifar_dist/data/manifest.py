"""``manifest.json``: the contents of a packed dataset, down to the offset of every member of every shard.

A dataset is a folder of plain WebDataset tars and a manifest. The manifest gives random access to the tars: a sample id
is a position in it, and an image is ``shard[offset : offset + size]``. Everything that a run derives from data (steps
per epoch, order, labels) comes from here, the same on every rank, before a shard is opened. Nothing read from a
manifest is trusted: names must stay inside the folder, and offsets inside the shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.dataset_folder import FILE_NAME, FORMAT, explain_absence, is_dataset, refuse_part, refuse_run
from cifar_dist.data.image import Codec
from cifar_dist.data.image_files import MAX_SIDE
from cifar_dist.data.raw import IMAGE_FOLDER
from cifar_dist.data.shard import COLUMNS, UNLABELLED, Shard, column_difference
from cifar_dist.errors import UserError, quoted
from cifar_dist.files.atomic import write_atomic

VERSION = 1

INDEXED = "webdataset"
"""``source["kind"]`` of tars that another tool wrote."""

_CHECKSUM_KEY = ',"sha256":'
"""Before the checksum of the manifest itself, which is that of the bytes above."""


@dataclass(frozen=True)
class Manifest:
    """A packed dataset. Sample id ``i`` of a split is its i-th sample, counting through the shards in order.

    Attributes:
        name: short name of the dataset, for example ``cifar10``.
        classes: class names; a label is an index into them. Empty for an unlabelled dataset.
        shape: (height, width, channels) of every image, pixels are uint8.
        codec: image encoding, which is the suffix of the image's member.
        source: its origin: ``kind``, ``name``, ``sha256`` and the arguments of pack.
        mean, std: per channel, in [0, 1], over the training split.
        splits: split name to its shards.
        root: the folder it was loaded from or packed into.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    codec: Codec
    source: Mapping[str, object]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, tuple[Shard, ...]]
    root: Path

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of a split.

        Raises:
            UserError: the dataset has no such split.
        """
        if split not in self.splits:
            raise UserError(f"{self.root} has no split '{split}'; it has {', '.join(self.splits)}")
        return self.splits[split]

    def samples(self, split: str) -> int:
        return sum(shard.samples for shard in self.shards(split))

    def labels(self, split: str) -> NDArray[np.int64]:
        """Return the labels, int64 [samples], in sample-id order; -1 for a sample without one."""
        return np.concatenate([shard.labels for shard in self.shards(split)])

    def is_labelled(self, split: str) -> bool:
        """Whether the samples of a split have labels.

        Raises:
            UserError: only some of them have, or the dataset has no such split.
        """
        labels = self.labels(split)
        missing = int((labels == UNLABELLED).sum())
        if 0 < missing < len(labels):
            shard = next(shard.name for shard in self.shards(split) if UNLABELLED in shard.labels)
            raise UserError(
                f"{self.root}: {missing:,} of {len(labels):,} samples of {split} have no label, the first in {shard}; "
                f"add the labels (KEY.cls), or move that tar to another folder, then: {self.made_with}"
            )
        return not missing

    def keys(self, split: str) -> list[str]:
        return [key for shard in self.shards(split) for key in shard.keys]

    def names(self, split: str) -> list[str]:
        """Path of each sample's file in the source; empty if the manifest does not record it."""
        shards = self.shards(split)
        return [name for shard in shards for name in shard.names] if all(shard.names for shard in shards) else []

    def for_training(self, hold_out: bool) -> Manifest:
        """Return the dataset as a run trains on it, given its ``data.hold_out``.

        Without it, ``train`` has the samples of ``val`` after its own, and there is no ``val``.
        """
        if hold_out:
            return self
        splits = {split: shards for split, shards in self.splits.items() if split != "val"}
        return replace(self, splits={**splits, "train": self.shards("train") + self.splits.get("val", ())})

    @property
    def is_indexed(self) -> bool:
        """Whether another tool wrote the tars."""
        return self.source.get("kind") == INDEXED

    @property
    def is_of_image_folder(self) -> bool:
        return self.source.get("kind") == IMAGE_FOLDER

    @property
    def resized_to(self) -> int | None:
        """The pixels a side to which ``pack --size`` resized the images; None if it did not."""
        size = self.source.get("size")
        return size if isinstance(size, int) else None

    @property
    def made_with(self) -> str:
        """The command that creates the dataset again."""
        return f"cifar-dist {'index' if self.is_indexed else 'pack SOURCE'} {quoted(self.root)}"

    @property
    def shown(self) -> str:
        """A one-line summary for the reader."""
        return f"{', '.join(f'{self.samples(split)} {split}' for split in self.splits)}, {len(self.classes)} classes"

    @cached_property
    def fingerprint(self) -> str:
        """Return a short hash of the content: two packed datasets with the same fingerprint have the same bytes."""
        shards = [[split, shard.name, shard.sha256] for split, many in self.splits.items() for shard in many]
        return hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]

    def split_fingerprint(self, split: str) -> str:
        """Return a short hash of what is read from here, not from the shards: labels and positions of a split."""
        columns = [getattr(shard, column) for shard in self.shards(split) for column in COLUMNS]
        return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()[:16]

    def difference(self, trained_on: Manifest) -> str:
        """Say in brackets how this differs from what a run was trained on, so that it cannot continue on this.

        Classes that are renamed are the same ones: the shards have their numbers.

        Returns:
            The difference, ``(before, now after)``; empty if a run can continue.
        """
        if self.fingerprint != trained_on.fingerprint:
            return f"({trained_on.fingerprint}, now {self.fingerprint})"
        if len(self.classes) != len(trained_on.classes):
            return f"({len(trained_on.classes)} classes, now {len(self.classes)})"
        if (self.mean, self.std) != (trained_on.mean, trained_on.std):
            before, now = (f"mean {data.mean} and std {data.std}" for data in (trained_on, self))
            return f"({before}, now {now})"
        # The same shards in the same order; but a run takes labels and offsets from the manifest, not from them.
        shards = (chain.from_iterable(data.splits.values()) for data in (self, trained_on))
        return next(filter(None, map(column_difference, *shards)), "")

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "classes": list(self.classes),
            "shape": list(self.shape),
            "codec": self.codec,
            "source": dict(self.source),
            "mean": list(self.mean),
            "std": list(self.std),
            "splits": {split: [shard.to_json() for shard in shards] for split, shards in self.splits.items()},
        }

    def save(self, folder: Path) -> Path:
        """Write ``manifest.json`` into ``folder``, complete or not at all."""
        target = folder / FILE_NAME
        content = json.dumps(self.to_json(), separators=(",", ":")).removesuffix("}")
        write_atomic(target, f'{content}{_CHECKSUM_KEY}"{hashlib.sha256(content.encode()).hexdigest()}"}}\n')
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read and check the manifest of a dataset.

        Raises:
            UserError: the folder does not exist or is not a dataset, or as for :meth:`read`.
        """
        root = Path(folder)
        if not is_dataset(root):
            refuse_part(root)
            raise explain_absence(root)
        refuse_run(root)
        try:
            return cls.read(root)
        except UserError as error:
            raise UserError(f"{error}; pack the dataset again, into a new folder") from None

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Read and check ``root/manifest.json``, which exists.

        Raises:
            UserError: another format or version, or an invalid entry. The message has no remedy.
        """
        path = root / FILE_NAME
        try:
            content = path.read_bytes()
            raw = json.loads(content.decode())
            if raw["format"] != FORMAT:
                raise ValueError(f"its format is {raw['format']!r}, not {FORMAT!r}")
            if raw["version"] != VERSION:
                raise ValueError(f"its version is {raw['version']}, this program reads version {VERSION}")
            manifest = cls._from_json(raw, root)
            _require_checksum(raw, content)
            return manifest
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            what = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path} is not a valid manifest: {what}") from None

    @classmethod
    def _from_json(cls, raw: dict[str, Any], root: Path) -> Manifest:
        height, width, channels = (int(n) for n in raw["shape"])
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and 1 <= channels <= 4):
            raise ValueError(f"shape {raw['shape']} is not [height, width, channels] of a small image")
        if raw["codec"] not in get_args(Codec):
            raise ValueError(f"codec {raw['codec']!r} is none of {', '.join(get_args(Codec))}")
        manifest = cls(
            name=str(raw["name"]),
            classes=tuple(str(name) for name in raw["classes"]),
            shape=(height, width, channels),
            codec=raw["codec"],
            source=dict(raw["source"]),
            mean=tuple(float(x) for x in raw["mean"]),
            std=tuple(float(x) for x in raw["std"]),
            splits={
                str(split): tuple(Shard.from_json(shard) for shard in shards) for split, shards in raw["splits"].items()
            },
            root=root,
        )
        manifest._check()
        return manifest

    def _check(self) -> None:
        """Raise ValueError if the parts do not match each other."""
        for split, shards in self.splits.items():
            if not shards or any(shard.samples == 0 for shard in shards):
                raise ValueError(f"split '{split}' has no shards, or one without samples")
            labels = self.labels(split)
            if labels.min() < UNLABELLED or labels.max() >= len(self.classes):
                raise ValueError(f"split '{split}' has a label outside the {len(self.classes)} classes")
        names = [shard.name for shards in self.splits.values() for shard in shards]
        if len(set(names)) != len(names):
            raise ValueError("two shards have the same name")
        channels = self.shape[2]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std are not given for {channels} channels")
        if not all(0 <= x <= 1 for x in (*self.mean, *self.std)):
            raise ValueError("mean and std are not in [0, 1]")


def _require_checksum(raw: dict[str, Any], content: bytes) -> None:
    """Raise ValueError if a manifest is not what was written; labels and ids have no other protection.

    Those of earlier versions and of other programs have no checksum.
    """
    before, _, _ = content.rpartition(_CHECKSUM_KEY.encode())
    if "sha256" in raw and raw["sha256"] != hashlib.sha256(before).hexdigest():
        raise ValueError("it was changed after it was written; restore it, or delete its sha256 if the change is yours")
