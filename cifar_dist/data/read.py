"""Random access to the images of a packed split, by sample id, through the offsets in the manifest.

Tars are neither scanned nor unpacked: an image is ``pread(shard, size, offset)``, decoded by code that cannot execute
its input (images by Pillow, arrays by NumPy without pickles). A corrupt shard raises an error that names it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import weakref
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data.image import decode, decoding_problem
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.shard import Shard
from cifar_dist.errors import UserError, quoted

if TYPE_CHECKING:
    from torch import Tensor


class ShardReader:
    """The images of one split.

    Args:
        manifest: the packed dataset.
        split: one of its splits.

    Raises:
        UserError: the split does not exist, or a shard is missing or its size differs from the manifest.
    """

    def __init__(self, manifest: Manifest, split: str) -> None:
        self._manifest = manifest
        self._shards = manifest.shards(split)
        self._starts = np.cumsum([0, *(shard.samples for shard in self._shards)])
        self._files: list[int] = []
        weakref.finalize(self, _close, self._files)
        _allow_files(len(self._shards))
        for shard in self._shards:
            self._files.append(self._open(shard))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _damage_error(self, shard: Shard, what: str) -> UserError:
        root = self._manifest.root
        return UserError(
            f"{root / shard.name}: {what}; find all damage with: cifar-dist verify {quoted(root)}, then pack it again"
        )

    def _reading_error(self, shard: Shard, what: str, error: OSError) -> UserError:
        """Say that the disk, or its server, is at fault. The shard may be intact."""
        root = self._manifest.root
        return UserError(
            f"{root / shard.name}: {what} cannot be read ({error.strerror}); check its disk or file server, then: "
            f"cifar-dist verify {quoted(root)}"
        )

    def _open(self, shard: Shard) -> int:
        try:
            file = os.open(self._manifest.root / shard.name, os.O_RDONLY)
        except OSError as error:
            if error.errno == errno.EMFILE:
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                raise UserError(
                    f"{self._manifest.root} has {len(self._shards):,} shards in a split, and a process here may open "
                    f"{limit:,} files; raise the limit (ulimit -n), or pack it again with larger shards"
                ) from None
            raise self._damage_error(shard, f"cannot be opened ({error.strerror})") from None
        size = os.fstat(file).st_size
        if size != shard.bytes:
            os.close(file)
            raise self._damage_error(shard, f"the file has {size:,} bytes, the manifest says {shard.bytes:,}")
        return file

    def close(self) -> None:
        _close(self._files)

    def check(self) -> None:
        """Compare the sha256 of every shard with the manifest.

        Raises:
            UserError: a shard differs; the message names the first.
        """
        for shard, file in zip(self._shards, self._files, strict=True):
            try:
                with open(file, "rb", closefd=False) as stream:
                    stream.seek(0)  # a second call begins at the end of the first
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise self._reading_error(shard, "the file", error) from None
            if digest != shard.sha256:
                raise self._damage_error(shard, "its sha256 differs from the manifest's: the file was changed")

    def image(self, sample: int) -> NDArray[np.uint8]:
        """Read one image, uint8 [height, width, channels].

        Raises:
            UserError: the member is not an image of the manifest's shape.
        """
        number = int(np.searchsorted(self._starts, sample, side="right")) - 1
        shard, position = self._shards[number], sample - int(self._starts[number])
        size, offset = int(shard.image_size[position]), int(shard.image_offset[position])
        try:
            content = os.pread(self._files[number], size, offset)
        except OSError as error:
            raise self._reading_error(shard, f"sample {shard.keys[position]}", error) from None
        try:
            image = decode(content, self._manifest.codec)
        except Exception as error:  # a decoder given arbitrary bytes may raise almost anything
            what = f"sample {shard.keys[position]} cannot be decoded ({decoding_problem(error)!a})"
            raise self._damage_error(shard, what) from None
        if image.shape != self._manifest.shape or image.dtype != np.uint8:
            expected = f"uint8 {self._manifest.shape}"
            raise self._damage_error(
                shard, f"sample {shard.keys[position]} is {image.dtype} {image.shape}, the manifest says {expected}"
            )
        return image

    def images(self, ids: Tensor) -> Tensor:
        """Read the images ``ids``, uint8 [len(ids), height, width, channels], to the CPU. Thread-safe."""
        import torch

        return self.fill(torch.empty((len(ids), *self._manifest.shape), dtype=torch.uint8), ids)

    def fill(self, batch: Tensor, ids: Tensor) -> Tensor:
        """Read the images ``ids`` into ``batch``, as :meth:`images` returns it; returns ``batch``. Thread-safe."""
        rows = batch.numpy()
        for row, sample in enumerate(ids.tolist()):
            rows[row] = self.image(sample)
        return batch

    def all(self) -> Tensor:
        """Read all images in id order, uint8 [samples, height, width, channels].

        In this thread: Pillow decodes with the interpreter's lock, and several threads would only wait for each other.
        """
        import torch

        return self.images(torch.arange(len(self)))


def _allow_files(count: int) -> None:
    """Raise this process's limit of open files to what it may be raised to, if ``count`` files more may exceed it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard and soft < 2 * count + 512:  # another split may be open as well, sockets and libraries
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())
