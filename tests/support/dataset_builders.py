"""Small datasets on disk, in the exact formats of the real ones."""

from __future__ import annotations

import io
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from cifar_dist.data.manifest import Manifest

CLASSES_10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = [f"fine_{n}" for n in range(100)]


def copy_relabelled(data: Path, out: Path, split: str) -> Path:
    """Copy a packed dataset, with other labels of the first shard of ``split`` in its manifest; return ``out``."""
    shutil.copytree(data, out)
    manifest = Manifest.load(data)
    first, *others = manifest.splits[split]
    changed = replace(first, labels=(first.labels + 1) % len(manifest.classes))
    replace(manifest, splits={**manifest.splits, split: (changed, *others)}).save(out)
    return out


def random_images(samples: int, seed: int = 0, side: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (samples, side, side, 3), dtype=np.uint8)


def planes(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert images [N, H, W, 3] to CIFAR's rows [N, 3 * H * W]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1))


def python_2_pickle(value: object) -> bytes:
    """Pickle as Python 2's cPickle does with protocol 2, memo included: the form of the published CIFAR files."""
    memo = count(1)

    def put() -> bytes:
        index = next(memo)
        return b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<I", index)

    def string(data: bytes) -> bytes:
        return (b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))) + data + put()

    def write(item: object) -> bytes:
        match item:
            case bool():
                raise TypeError(item)
            case int() if 0 <= item < 256:
                return b"K" + bytes([item])
            case int() if 0 <= item < 65536:
                return b"M" + struct.pack("<H", item)
            case int():
                return b"J" + struct.pack("<i", item)
            case bytes():
                return string(item)
            case list():
                return b"]" + put() + b"(" + b"".join(write(part) for part in item) + b"e"
            case dict():
                return b"}" + put() + b"(" + b"".join(write(k) + write(v) for k, v in item.items()) + b"u"
            case np.ndarray():
                shape = b"".join(write(side) for side in item.shape) + (b"\x86" if item.ndim == 2 else b"\x85") + put()
                return (
                    b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
                    + b"K\x00\x85" + put() + string(b"b") + b"\x87" + put() + b"R" + put() + b"(K\x01" + shape
                    + b"cnumpy\ndtype\n" + put() + string(b"u1") + b"K\x00K\x01\x87" + put() + b"R" + put()
                    + b"(K\x03" + string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
                    + string(item.tobytes()) + b"tb"
                )  # fmt: skip
        raise TypeError(type(item))

    return b"\x80\x02" + write(value) + b"."


def cifar10(folder: Path, per_batch: int = 4) -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    """Write CIFAR-10's Python files into ``folder``; return the images and labels of each split."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    made = {name: (random_images(per_batch, seed), _labels(per_batch, 10, seed)) for seed, name in enumerate(names)}
    for name, (images, labels) in made.items():
        batch = {
            b"batch_label": b"a batch",
            b"labels": labels,
            b"data": planes(images),
            b"filenames": [f"image_{n}.png".encode() for n in range(per_batch)],
        }
        (folder / name).write_bytes(python_2_pickle(batch))
    meta = {b"num_cases_per_batch": per_batch, b"label_names": [c.encode() for c in CLASSES_10], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(python_2_pickle(meta))
    return _joined(made, names[:5], names[5])


def cifar10_binary(folder: Path, per_batch: int = 4) -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    made = {name: (random_images(per_batch, seed), _labels(per_batch, 10, seed)) for seed, name in enumerate(names)}
    for name, (images, labels) in made.items():
        rows = zip(labels, planes(images), strict=True)
        (folder / name).write_bytes(b"".join(bytes([label]) + row.tobytes() for label, row in rows))
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES_10) + "\n\n")
    return _joined(made, names[:5], names[5])


def cifar100(folder: Path, samples: int = 12) -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    folder.mkdir(parents=True, exist_ok=True)
    made = {name: (random_images(samples, seed), _labels(samples, 100, seed)) for seed, name in enumerate(_SPLITS_100)}
    for name, (images, labels) in made.items():
        batch = {
            b"filenames": [f"image_{n}.png".encode() for n in range(samples)],
            b"batch_label": b"training batch 1 of 1",
            b"fine_labels": labels,
            b"coarse_labels": [label // 5 for label in labels],
            b"data": planes(images),
        }
        (folder / name).write_bytes(python_2_pickle(batch))
    meta = {b"fine_label_names": [c.encode() for c in FINE], b"coarse_label_names": [b"coarse"] * 20}
    (folder / "meta").write_bytes(python_2_pickle(meta))
    return _joined(made, ["train"], "test")


def cifar100_binary(folder: Path, samples: int = 12) -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        f"{name}.bin": (random_images(samples, seed), _labels(samples, 100, seed))
        for seed, name in enumerate(_SPLITS_100)
    }
    for name, (images, labels) in made.items():
        rows = zip(labels, planes(images), strict=True)
        (folder / name).write_bytes(b"".join(bytes([label // 5, label]) + row.tobytes() for label, row in rows))
    (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
    (folder / "coarse_label_names.txt").write_text("coarse\n")
    return _joined(made, ["train.bin"], "test.bin")


_SPLITS_100 = ("train", "test")


def _labels(samples: int, classes: int, seed: int) -> list[int]:
    labels: list[int] = np.random.default_rng(1000 + seed).integers(0, classes, samples).tolist()
    return labels


def _joined(
    made: Mapping[str, tuple[NDArray[np.uint8], list[int]]], train: Sequence[str], test: str
) -> dict[str, tuple[NDArray[np.uint8], list[int]]]:
    images = np.concatenate([made[name][0] for name in train])
    return {"train": (images, [label for name in train for label in made[name][1]]), "test": made[test]}


def image_file(image: NDArray[np.uint8], form: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, format=form)
    return data.getvalue()


def class_folder(samples: Mapping[str, int], seed: int = 0, side: int = 32) -> dict[str, bytes]:
    """Write an image folder: ``{"train/cat": 3}`` gives ``train/cat/0000.png`` to ``train/cat/0002.png``."""
    images: Iterator[NDArray[np.uint8]] = iter(random_images(sum(samples.values()), seed, side))
    return {
        f"{place}/{n:04d}.png": image_file(next(images)) for place, number in samples.items() for n in range(number)
    }


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_archive(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a tar, tar.gz or zip, by the path's suffix."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def labelled_npz(path: Path, samples: int, classes: int = 3, side: int = 6, test: int = 0) -> Path:
    """Write a labelled npz of random images."""
    images = random_images(samples + test, seed=samples, side=side)
    labels = np.arange(samples + test) * 7 % classes
    arrays: dict[str, ArrayLike] = {"x_train": images[:samples], "y_train": labels[:samples]}
    if test:
        arrays |= {"x_test": images[samples:], "y_test": labels[samples:]}
    return write_npz(path, arrays)


def write_npz(path: Path, arrays: Mapping[str, ArrayLike]) -> Path:
    """Write an npz of arrays with any names."""
    np.savez(path, allow_pickle=True, **arrays)  # the type checker takes the keyword for one of the arrays otherwise
    return path
