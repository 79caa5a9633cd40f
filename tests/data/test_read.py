"""Random access to packed images: the bytes that WebDataset readers find, and damage reported by shard."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from support.malicious import Malicious
from support.running import spawn
from support.small_packed import TEST, TRAIN, small_packed

from cifar_dist.data.image import Codec, Lossless, encode
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.pack import pack
from cifar_dist.data.read import ShardReader
from cifar_dist.data.shard import Shard
from cifar_dist.errors import StorageError, UserError, blame

CODECS: tuple[Lossless, ...] = get_args(Lossless)


@pytest.fixture(params=CODECS)
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    return small_packed(tmp_path, request.param)


@pytest.mark.parametrize(("split", "count"), [("train", TRAIN), ("test", TEST)])
def test_images_and_labels_are_those_in_the_tars(packed: Manifest, split: str, count: int) -> None:
    """The reference is read by tarfile, Pillow and NumPy, without the manifest."""
    images, labels = [], []
    for shard in packed.shards(split):
        with tarfile.open(packed.root / shard.name) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                match member.name.rpartition(".")[2]:
                    case "png":
                        images.append(np.asarray(Image.open(io.BytesIO(data))))
                    case "npy":
                        images.append(np.load(io.BytesIO(data)))
                    case "cls":
                        labels.append(int(data))
    reader = ShardReader(packed, split)
    reader.check()
    assert len(reader) == count
    everything = reader.all()
    assert everything.dtype == torch.uint8
    assert np.array_equal(everything.numpy(), np.stack(images))
    assert packed.labels(split).tolist() == labels
    ids = torch.tensor([count - 1, 0, 7, 6, 7])
    assert torch.equal(reader.images(ids), everything[ids])
    assert reader.images(ids[:0]).shape == (0, *packed.shape)
    reader.close()


def test_images_are_those_that_webdataset_reads(packed: Manifest) -> None:
    from webdataset import WebDataset

    tars = [str(packed.root / shard.name) for shard in packed.shards("train")]
    reader = ShardReader(packed, "train")
    samples = list(WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == packed.keys("train")
    for number, sample in enumerate(samples):
        assert np.array_equal(reader.image(number), sample[packed.codec])
        assert packed.labels("train")[number] == sample["cls"]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "the manifest says"),
        (lengthen, "the manifest says"),
        (flip_a_bit, "the file was changed"),
        (Path.unlink, "No such file or directory"),
        (become_a_folder, "the manifest says"),
    ],
)
def test_damage_is_reported_with_the_shards_name(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    packed = small_packed(tmp_path, "png")
    damage(packed.root / "train-000003.tar")
    with pytest.raises(UserError, match=r"train-000003\.tar") as caught:
        ShardReader(packed, "train").check()
    assert says in str(caught.value)
    assert f"cifar-dist verify {packed.root}" in str(caught.value)
    assert "\n" not in str(caught.value)
    ShardReader(packed, "test").check()


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_one_bit_anywhere_in_a_shard_is_found(tmp_path: Path, place: float) -> None:
    packed = small_packed(tmp_path, "npy")
    shard = packed.root / "test-000001.tar"
    data = bytearray(shard.read_bytes())
    data[round(place * (len(data) - 1))] ^= 0x80
    shard.write_bytes(data)
    with pytest.raises(UserError, match="test-000001"):
        ShardReader(packed, "test").check()


def test_an_unknown_split_is_refused(packed: Manifest) -> None:
    with pytest.raises(UserError, match="no split 'val'; it has train, test"):
        ShardReader(packed, "val")


def one_member(folder: Path, data: bytes, codec: Codec) -> Manifest:
    """Return a consistent manifest whose only sample is ``data``."""
    (folder / "train-000000.tar").write_bytes(data)
    place = np.array([0]), np.array([len(data)])
    sha256 = hashlib.sha256(data).hexdigest()
    empty = np.array([], dtype=np.int64)
    shard = Shard("train-000000.tar", len(data), sha256, ("victim",), np.array([0]), *place, empty, empty)
    return Manifest("hostile", ("a",), (6, 5, 3), codec, {}, (0.5,) * 3, (0.2,) * 3, {"train": (shard,)}, folder)


IMAGES = {codec: encode(np.zeros((6, 5, 3), dtype=np.uint8), codec) for codec in CODECS}


@st.composite
def nearly_images(draw: st.DrawFn) -> tuple[bytes, Codec]:
    """The bytes of an image, with a few changed or truncated; or arbitrary bytes."""
    codec = draw(st.sampled_from(CODECS))
    if draw(st.booleans()):
        return draw(st.binary(max_size=40)), codec
    data = bytearray(IMAGES[codec])
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)):
        data[place] = value
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data), codec


@settings(deadline=None, max_examples=300)
@given(nearly_images())
def test_a_member_is_an_image_of_the_right_shape_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, member: tuple[bytes, Codec]
) -> None:
    reader = ShardReader(one_member(tmp_path_factory.getbasetemp(), *member), "train")
    reader.check()
    found = image_or_error(reader)
    reader.close()
    if isinstance(found, str):
        assert "train-000000.tar: sample victim" in found
        assert "\n" not in found
    else:
        assert found.shape == (6, 5, 3)
        assert found.dtype == np.uint8


def image_or_error(reader: ShardReader) -> NDArray[np.uint8] | str:
    try:
        return reader.image(0)
    except UserError as error:
        return str(error)


def npz() -> bytes:
    data = io.BytesIO()
    np.savez(data, np.zeros((6, 5, 3), dtype=np.uint8))
    return data.getvalue()


def header(shape: tuple[int, ...]) -> bytes:
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return data.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        npz(),
        b"\x80\x04N.",  # a pickle
        encode(np.zeros((6, 5, 1), dtype=np.uint8), "npy"),
        encode(np.zeros((6, 5, 3), dtype=np.float64), "npy"),
        header((10**15,)),
        header((6, 5, -3)),
        b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16,
        b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535,
        IMAGES["png"],
    ],
    ids=["empty", "npz", "pickle", "shape", "type", "huge", "negative", "nested", "long", "png"],
)
def test_a_member_that_is_not_an_image_is_a_user_error(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match=r"train-000000\.tar: sample victim") as caught:
        ShardReader(one_member(tmp_path, data, "npy"), "train").image(0)
    assert "\n" not in str(caught.value)


def test_a_pickle_in_an_array_is_not_executed(tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.array([Malicious(tmp_path / "executed")], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="victim"):
        ShardReader(one_member(tmp_path, array.getvalue(), "npy"), "train").image(0)
    assert not (tmp_path / "executed").exists()


def test_a_shard_that_is_cut_while_it_is_open_is_a_user_error(tmp_path: Path) -> None:
    packed = small_packed(tmp_path, "png")
    reader = ShardReader(packed, "train")
    os.truncate(packed.root / "train-000002.tar", 700)
    with pytest.raises(UserError, match=r"train-000002\.tar: sample"):
        reader.all()


def test_a_fault_of_the_disk_is_not_taken_for_damage(tmp_path: Path) -> None:
    """To pack the data again would not help. Reading this file at its beginning is an input/output error."""
    reader = ShardReader(small_packed(tmp_path, "png"), "test")
    unreadable = os.open("/proc/self/mem", os.O_RDONLY)
    os.dup2(unreadable, reader._files[0])
    os.close(unreadable)
    for read, what in ((lambda: reader.image(0), "sample 00000000"), (reader.check, "the file")):
        with pytest.raises(UserError) as error:
            read()
        assert f"test-000000.tar: {what} cannot be read (Input/output error); check its disk or" in str(error.value)
        assert isinstance(blame(error.value), StorageError)


def test_offsets_come_from_the_manifest(packed: Manifest) -> None:
    """A wrong offset is detected by the bytes that it points to, which are not read as an image."""
    (first, *rest) = packed.shards("train")
    wrong = dataclasses.replace(first, image_offset=first.image_offset - 512)
    broken = dataclasses.replace(packed, splits={"train": (wrong, *rest)})
    with pytest.raises(UserError, match="cannot be decoded"):
        ShardReader(broken, "train").image(0)


@pytest.mark.parametrize(
    ("hard", "says"), [(4096, "90"), (64, "has 90 shards in a split, and a process here may open 64")]
)
def test_a_split_may_have_more_shards_than_files_may_be_open(tmp_path: Path, hard: int, says: str) -> None:
    """A process raises its own limit; where that is not enough, the error names the limit and no shard."""
    pack("digits", tmp_path / "many", samples_per_shard=14, codec="npy", show=False)
    script = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))\n"
        "from cifar_dist.data.manifest import Manifest\n"
        "from cifar_dist.data.read import ShardReader\n"
        "from cifar_dist.errors import StorageError, UserError, blame\n"
        "try: reader = ShardReader(Manifest.load(sys.argv[1]), 'train')\n"
        "except UserError as error: print(error)\n"
        "else: print(len(reader.image(1258)) and len(reader._files))\n"
    )
    done = spawn(["-c", script, str(tmp_path / "many")])[0]
    assert says in done.stdout, done.stderr
