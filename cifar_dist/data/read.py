"""Random access to the images of a packed split, by sample id, through the manifest's offsets.

No tar is walked and nothing is unpacked: an image is ``pread(shard, size, offset)``, decoded by code that can
execute nothing (images by Pillow, arrays by numpy without pickles). A damaged shard fails loudly and by name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_dist.data.image import decode
from cifar_dist.data.manifest import Manifest, Shard
from cifar_dist.errors import UserError

_CHUNK = 1 << 20


class ShardReader:
    """The images of one split.

    Args:
        manifest: the packed dataset.
        split: one of its splits.

    Raises:
        UserError: no such split, or a shard is missing or has another size than the manifest says.
    """

    def __init__(self, manifest: Manifest, split: str) -> None:
        self._manifest = manifest
        self._shards = manifest.shards(split)
        self._starts = np.cumsum([0, *(shard.samples for shard in self._shards)])
        self._files: list[int] = []
        for shard in self._shards:
            self._files.append(self._open(shard))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _damaged(self, shard: Shard, what: str) -> UserError:
        root = self._manifest.root
        return UserError(
            f"{root / shard.name}: {what}; check the dataset with: cifar-dist verify {root}, and pack it again"
        )

    def _open(self, shard: Shard) -> int:
        try:
            file = os.open(self._manifest.root / shard.name, os.O_RDONLY)
        except OSError as error:
            raise self._damaged(shard, f"cannot be opened ({error.strerror})") from None
        size = os.fstat(file).st_size
        if size != shard.bytes:
            os.close(file)
            raise self._damaged(shard, f"the file has {size} bytes and the manifest says {shard.bytes}")
        return file

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())

    def check(self, progress: Callable[[int], None] | None = None) -> None:
        """Compare every shard's sha256 with the manifest; ``progress`` is told the bytes read.

        Raises:
            UserError: the first shard that differs.
        """
        for shard, file in zip(self._shards, self._files, strict=True):
            digest = hashlib.sha256()
            for offset in range(0, shard.bytes, _CHUNK):
                try:
                    chunk = os.pread(file, _CHUNK, offset)
                except OSError as error:
                    raise self._damaged(shard, f"cannot be read ({error.strerror})") from None
                digest.update(chunk)
                if progress:
                    progress(len(chunk))
            if digest.hexdigest() != shard.sha256:
                raise self._damaged(shard, "its sha256 is not the manifest's: the file was changed")

    def image(self, sample: int) -> NDArray[np.uint8]:
        """uint8 [height, width, channels].

        Raises:
            UserError: the member is not an image of the manifest's shape.
        """
        number = int(np.searchsorted(self._starts, sample, side="right")) - 1
        shard, position = self._shards[number], sample - int(self._starts[number])
        size, offset = int(shard.image_size[position]), int(shard.image_offset[position])
        try:
            image = decode(os.pread(self._files[number], size, offset), self._manifest.codec)
        except Exception as error:  # a decoder fed with anything raises almost anything
            what = f"sample {shard.keys[position]} cannot be decoded ({str(error)[:100]!a})"
            raise self._damaged(shard, what) from None
        if image.shape != self._manifest.shape or image.dtype != np.uint8:
            raise self._damaged(shard, f"sample {shard.keys[position]} is {image.dtype} {image.shape}")
        return image

    def images(self, ids: Tensor) -> Tensor:
        """uint8 [len(ids), height, width, channels], on the CPU. Thread-safe."""
        batch = np.empty((len(ids), *self._manifest.shape), dtype=np.uint8)
        for row, sample in enumerate(ids.tolist()):
            batch[row] = self.image(sample)
        return torch.from_numpy(batch)

    def all(self, threads: int = 4) -> Tensor:
        """All images in id order, uint8 [samples, height, width, channels], decoded by a pool of threads."""
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(self.images, torch.arange(len(self)).split(1024))))
