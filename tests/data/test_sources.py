"""Every form of dataset is recognized and read, and an error in one is reported in one line."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import dataset_builders as build

from cifar_dist.data import archives
from cifar_dist.data.archives import member_names
from cifar_dist.data.image_folder import read_image_folder
from cifar_dist.data.raw import RawDataset
from cifar_dist.data.sources import Source, open_source
from cifar_dist.data.statistics import channel_statistics, pixel_counts
from cifar_dist.data.unlabelled import read_unlabelled
from cifar_dist.errors import UserError

open_quietly = functools.partial(open_source, show=False)


def one_line(source: str | Path, size: int | None = None) -> str:
    """Return the message with which a source is refused; assert that it is one line."""
    with pytest.raises(UserError) as error:
        open_quietly(str(source), size)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(a: RawDataset, b: RawDataset) -> bool:
    return (a.kind, a.classes, list(a.splits)) == (b.kind, b.classes, list(b.splits)) and all(
        np.array_equal(x.images, y.images) and np.array_equal(x.labels, y.labels) and np.array_equal(x.ids, y.ids)
        for x, y in zip(a.splits.values(), b.splits.values(), strict=True)
    )


CIFAR: dict[str, tuple[Callable[[Path], dict], str, list[str]]] = {
    "cifar-10-batches-py": (build.cifar10, "cifar10-python", build.CLASSES_10),
    "cifar-10-batches-bin": (build.cifar10_binary, "cifar10-binary", build.CLASSES_10),
    "cifar-100-python": (build.cifar100, "cifar100-python", build.FINE),
    "cifar-100-binary": (build.cifar100_binary, "cifar100-binary", build.FINE),
}


@pytest.mark.parametrize("folder", CIFAR)
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_published_cifar_files_are_read_exactly(tmp_path: Path, folder: str, form: str) -> None:
    make, kind, classes = CIFAR[folder]
    expected = make(tmp_path / folder)
    source = tmp_path / folder
    if form == "archive":
        files = {f"{folder}/{name}": data for name, data in build.read_folder(source).items()}
        source = build.write_archive(tmp_path / f"{folder}.tar.gz", {**files, f"{folder}/readme.html": b"hello"})

    opened = open_quietly(str(source))

    assert opened.data.kind == kind
    assert opened.data.classes == tuple(classes)
    assert list(opened.data.splits) == ["train", "test"]
    for split, (images, labels) in expected.items():
        assert np.array_equal(opened.data.splits[split].images, images)
        assert opened.data.splits[split].labels.tolist() == labels
        assert opened.data.splits[split].ids.tolist() == list(range(len(labels)))
    assert opened.origin["name"] == source.name
    assert opened.origin.get("sha256") == (
        hashlib.sha256(source.read_bytes()).hexdigest() if form == "archive" else None
    )


def test_files_that_no_published_archive_has_are_named(tmp_path: Path) -> None:
    build.cifar10(tmp_path / "c")
    (tmp_path / "c" / "readme.html").write_text("hello")
    assert open_quietly(str(tmp_path / "c")).data.notes == ()
    (tmp_path / "c" / "data_batch_6").write_bytes(b"more")
    (note,) = open_quietly(str(tmp_path / "c")).data.notes
    assert note == "passed over the files that are not of cifar10-python: 'data_batch_6'"


def test_a_missing_cifar_batch_is_named(tmp_path: Path) -> None:
    build.cifar10(tmp_path / "c")
    (tmp_path / "c" / "data_batch_4").unlink()
    assert "but not 'data_batch_4'" in one_line(tmp_path / "c")


def test_a_binary_batch_of_odd_size_is_refused(tmp_path: Path) -> None:
    build.cifar100_binary(tmp_path / "c")
    (tmp_path / "c" / "train.bin").write_bytes(bytes(3073))
    assert "is not a multiple of 3074" in one_line(tmp_path / "c")


def test_a_label_outside_the_classes_is_refused(tmp_path: Path) -> None:
    build.cifar10_binary(tmp_path / "c")
    (tmp_path / "c" / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    assert "label 10 of image 0 is not one of the 10 classes" in one_line(tmp_path / "c")


def test_cifar_pickles_with_other_contents_are_refused(tmp_path: Path) -> None:
    build.cifar10(tmp_path / "c")
    (tmp_path / "c" / "data_batch_2").write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}))
    assert "has no 'labels'" in one_line(tmp_path / "c")
    (tmp_path / "c" / "data_batch_2").write_bytes(pickle.dumps({"data": np.zeros((2, 3072)), "labels": [1, 2]}))
    assert "store images as an array of uint8" in one_line(tmp_path / "c")
    (tmp_path / "c" / "data_batch_2").write_bytes(pickle.dumps({"data": np.zeros((2, 3072), "u1"), "labels": [1]}))
    assert "has shape (1,) for 2 images" in one_line(tmp_path / "c")


LAYOUT = {"train/cat": 3, "train/dog": 2, "val/dog": 1, "test/cat": 2, "test/eel": 1}


def test_an_image_folder_is_the_same_as_folder_tar_and_zip(tmp_path: Path) -> None:
    files = build.class_folder(LAYOUT)
    wrapped = {f"mine/{name}": data for name, data in files.items()}
    backwards = dict(reversed(files.items()))
    folder = open_quietly(str(build.write_folder(tmp_path / "mine", files))).data

    assert folder.classes == ("cat", "dog", "eel")
    assert list(folder.splits) == ["train", "val", "test"]
    assert folder.splits["train"].labels.tolist() == [0, 0, 0, 1, 1]
    assert folder.splits["test"].labels.tolist() == [0, 0, 2]
    first = np.asarray(Image.open(io.BytesIO(files["train/cat/0000.png"])))
    assert np.array_equal(folder.splits["train"].images[0], first)
    for name, content in {
        "a.tar": wrapped,
        "a.tar.gz": backwards,
        "a.tgz": wrapped,
        "a.zip": {**backwards, "__MACOSX/train/cat/._0000.png": b"junk", "train/cat/.DS_Store": b"junk"},
    }.items():
        assert same(open_quietly(str(build.write_archive(tmp_path / name, content))).data, folder)


def test_without_split_folders_everything_is_train(tmp_path: Path) -> None:
    for prefix in ("", "top/"):
        files = {prefix + name: data for name, data in build.class_folder({"cat": 2, "dog": 1}).items()}
        data = open_quietly(str(build.write_archive(tmp_path / "a.zip", files))).data
        assert list(data.splits) == ["train"]
        assert data.splits["train"].labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["train/0000.png", "0000.png", "a/b/c/0000.png", "holiday/cat/0000.png"])
def test_an_image_in_the_wrong_place_is_named(tmp_path: Path, name: str) -> None:
    files = {**build.class_folder({"train/cat": 1}), name: build.image_file(build.random_images(1)[0])}
    assert f"'{name}' is not at SPLIT/CLASS/FILE" in one_line(build.write_folder(tmp_path / "f", files))


def test_a_folder_of_anything_else_says_what_is_expected(tmp_path: Path) -> None:
    assert "SPLIT/CLASS/FILE.png" in one_line(build.write_folder(tmp_path / "f", {"notes.txt": b"hello"}))


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    files = build.class_folder({"cat": 3})
    files["cat/0001.png"] = files["cat/0001.png"][:100]
    assert "'cat/0001.png' is not an intact PNG, JPEG, WebP, BMP or GIF image" in one_line(
        build.write_folder(tmp_path / "f", files)
    )


def test_images_of_different_sizes_ask_for_size(tmp_path: Path) -> None:
    files = build.class_folder({"cat": 1})
    files["dog/0000.png"] = build.image_file(np.zeros((20, 40, 3), np.uint8))
    folder = build.write_folder(tmp_path / "f", files)
    assert one_line(folder).endswith(
        "images differ in size ('cat/0000.png' is 32x32, 'dog/0000.png' is 40x20); add --size 32 to resize them all"
    )
    assert open_quietly(str(folder), 16).data.splits["train"].images.shape == (2, 16, 16, 3)


def test_every_colour_mode_becomes_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((8, 8), 7, np.uint8))
    files = {}
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        data = io.BytesIO()
        grey.convert("RGB").convert(mode, palette=Image.Palette.ADAPTIVE).save(
            data, format="JPEG" if mode == "CMYK" else "PNG"
        )
        files[f"grey/{mode}.{'jpg' if mode == 'CMYK' else 'png'}"] = data.getvalue()
    images = open_quietly(str(build.write_folder(tmp_path / "f", files))).data.splits["train"].images
    assert images.shape == (5, 8, 8, 3)
    assert images.max() <= 8  # 7, or 0 after dithering to black and white


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(data, format="PNG")
    assert "more than 8 bits" in one_line(build.write_folder(tmp_path / "f", {"deep/a.png": data.getvalue()}))


def test_labelled_npz(tmp_path: Path) -> None:
    images = build.random_images(5)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.array([[0], [2], [1], [2], [0]]), x_test=images[:2],
             y_test=np.array([1, 1], np.uint8))  # fmt: skip
    data = open_quietly(str(tmp_path / "a.npz")).data
    assert data.classes == ("0", "1", "2")
    assert np.array_equal(data.splits["train"].images, images)
    assert data.splits["train"].labels.tolist() == [0, 2, 1, 2, 0]
    assert data.splits["test"].labels.tolist() == [1, 1]
    np.savez_compressed(tmp_path / "c.npz", x_train=images[..., 0], y_train=np.arange(5))
    grey = open_quietly(str(tmp_path / "c.npz"), 16).data.splits["train"].images
    assert grey.shape == (5, 16, 16, 3)
    assert np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (("X_train", "Y_train"), "labelled images are named x_train, with labels in y_train"),
        (("images", "targets"), "found: 'images', 'targets'; labelled images are named x_train"),
        (("data", "labels"), "has no 'ids'; an unlabelled set requires 'data' and 'ids'"),
        (("x_validation", "y_val"), "has y_val but no x_val; add the images, or remove the labels"),
    ],
)
def test_an_npz_of_other_names_says_which_are_read(tmp_path: Path, names: tuple[str, str], complaint: str) -> None:
    np.savez(tmp_path / "a.npz", **dict(zip(names, (build.random_images(3), np.arange(3)), strict=True)))
    assert complaint in one_line(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("arrays", "remedy"),
    [
        ({"x_train": np.zeros((4, 8, 8, 3), "f4")}, "of uint8, for values from 0 to 1: (255 * images).round()"),
        ({"x_train": np.zeros((4, 3, 8, 8), "u1")}, "images.transpose(0, 2, 3, 1)"),
        ({"x_train": np.zeros((4, 8, 8, 4), "u1")}, "images[..., :3], without the transparency"),
        ({"y_train": np.array([0.0, 1, 0, 1])}, "is not a list of integers; store one integer per image (astype(int))"),
        ({"y_train": np.eye(2)[[0, 1, 0, 1]].astype(int)}, "one integer per image (argmax(1) of one-hot labels)"),
        ({"y_train": np.array(["cat", "dog", "cat", "dog"])}, "np.unique(names, return_inverse=True)"),
        ({"y_train": np.array([-1, 0, -1, 0])}, "label -1 of image 0 is negative; number the classes from 0"),
        ({"y_train": None}, "has x_train but no y_train; add the labels, or for images to predict"),
    ],
)
def test_arrays_of_another_shape_are_refused_with_the_expression_that_converts_them(
    tmp_path: Path, arrays: dict[str, np.ndarray | None], remedy: str
) -> None:
    all_arrays = {"x_train": build.random_images(4), "y_train": np.arange(4) % 2, **arrays}
    np.savez(tmp_path / "a.npz", **{name: array for name, array in all_arrays.items() if array is not None})
    assert remedy in one_line(tmp_path / "a.npz")


@pytest.mark.parametrize("lowest", [1, 5])
def test_labels_that_do_not_begin_at_0_are_refused(tmp_path: Path, lowest: int) -> None:
    labels = np.arange(6) % 3 + lowest
    np.savez(tmp_path / "a.npz", x_train=build.random_images(6), y_train=labels)
    assert f"class 0 has no image; number the classes from 0, as in y_train = y_train - {lowest}" in one_line(
        tmp_path / "a.npz"
    )
    np.savez(tmp_path / "b.npz", x_train=build.random_images(6), y_train=labels - lowest, y_coarse=labels)
    assert open_quietly(str(tmp_path / "b.npz")).data.notes == ("passed over the other arrays: 'y_coarse'",)


@pytest.mark.parametrize("name", ["images.npy", "train-images-idx3-ubyte.gz", "data.h5", "train_32x32.mat"])
def test_unsupported_file_formats_are_refused_with_a_supported_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert "save its arrays with: np.savez('NAME.npz', x_train=images, y_train=labels)" in one_line(tmp_path / name)


def test_an_array_may_be_larger_than_a_member_of_another_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", x_train=build.random_images(9), y_train=np.arange(9))
    monkeypatch.setattr(archives, "MAX_MEMBER", 10_000)
    assert len(open_quietly(str(tmp_path / "a.npz")).data.splits["train"]) == 9
    monkeypatch.setattr(archives, "MAX_ARRAY", 10_000)
    assert "store smaller images, or a folder of image files" in one_line(tmp_path / "a.npz")


def test_files_written_on_windows_are_read(tmp_path: Path) -> None:
    """Editors there begin a text with a byte order mark, and end its lines with CR LF."""
    path = tmp_path / "mine.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "a"\r\nembedded = "digits"\r\n')
    assert open_quietly(str(path)).name == "a"
    build.cifar10_binary(tmp_path / "c")
    names = (tmp_path / "c" / "batches.meta.txt").read_text().replace("\n", "\r\n")
    (tmp_path / "c" / "batches.meta.txt").write_bytes(b"\xef\xbb\xbf" + names.encode())
    assert open_quietly(str(tmp_path / "c")).data.classes == tuple(build.CLASSES_10)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", [str, str.encode])
def test_unlabelled_pickle(tmp_path: Path, protocol: int, key: Callable[[str], str | bytes]) -> None:
    images, ids = build.random_images(4), np.array([30, 10, 20, -1])
    for data in (images, build.planes(images)):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({key("data"): data, key("ids"): ids}, protocol))
        unlabelled = read_unlabelled(tmp_path / "a.pkl")
        assert np.array_equal(unlabelled.images, images)
        assert unlabelled.images.flags.writeable
        assert unlabelled.ids.tolist() == [30, 10, 20, -1]
        assert unlabelled.ids.dtype == np.int64


def test_unlabelled_npz_and_ids_in_a_list(tmp_path: Path) -> None:
    images = build.random_images(3)
    np.savez_compressed(tmp_path / "a.npz", data=images, ids=np.arange(3, dtype=np.uint16))
    assert np.array_equal(read_unlabelled(tmp_path / "a.npz").images, images)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"data": images, "ids": [5, np.int32(4), 3]}))
    assert read_unlabelled(tmp_path / "a.pkl").ids.tolist() == [5, 4, 3]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"data": np.zeros((2, 32, 32, 3), "u1")}, "has no 'ids'"),
        ({"data": np.zeros((2, 32, 32, 3), "u1"), "ids": [7, 7]}, "the id 7 occurs more than once"),
        ({"data": np.zeros((2, 32, 32, 3), "u1"), "ids": [1.0, 2.0]}, "is not a list of integers"),
        ({"data": np.zeros((2, 32, 32, 3), "u1"), "ids": [1, 2, 3]}, "shape (3,) for 2 images"),
        ({"data": np.zeros((2, 32, 32, 3), "f4"), "ids": [1, 2]}, "is float32; store images as an array of uint8"),
        ({"data": np.zeros((2, 100), "u1"), "ids": [1, 2]}, "has shape (2, 100)"),
        ({"data": np.zeros((0, 32, 32, 3), "u1"), "ids": []}, "has shape (0, 32, 32, 3)"),
        ([1, 2], "contains a list instead of a dictionary"),
    ],
)
def test_a_wrong_unlabelled_pickle_is_refused(tmp_path: Path, content: object, complaint: str) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as error:
        read_unlabelled(tmp_path / "a.pkl")
    assert complaint in str(error.value)
    assert str(tmp_path / "a.pkl") in str(error.value)


def test_a_source_that_does_not_exist_suggests_the_nearest(tmp_path: Path) -> None:
    assert "did you mean 'digits'?" in one_line("digit")
    assert "no file, folder or dataset is called" in one_line(tmp_path / "nothing.tar.gz")
    assert "is not downloaded; download it, or name it with url = 'https://x.org/a.zip'" in one_line(
        "https://x.org/a.zip"
    )
    (tmp_path / "a.rar").write_bytes(b"x")
    assert "is not a folder or an archive (.tar, .tar.gz, .tgz, .zip)" in one_line(tmp_path / "a.rar")


def test_the_digits_are_real_and_need_no_download() -> None:
    opened = open_quietly("digits")
    train = opened.data.splits["train"]
    assert train.images.shape == (1797, 32, 32, 3)
    assert opened.data.classes == tuple("0123456789")
    assert np.bincount(train.labels).min() >= 170
    # A one is narrow: its outer columns are dark, where a zero's are not.
    ink = [train.images[train.labels == digit][:, :, 20:26].mean() for digit in (0, 1)]
    assert ink[0] > ink[1]


def dataset_file(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_dataset_file_names_an_archive_and_its_treatment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.write_archive(tmp_path / "animals.zip", build.class_folder({"cat": 3, "dog": 2}))
    path = dataset_file(
        tmp_path, 'name = "pets"\narchive = "animals.zip"\nsize = 8\nval_fraction = 0.5\nclasses = ["dog", "cat"]\n'
    )
    opened: Source = open_quietly(str(path))
    assert (opened.name, opened.val_fraction, opened.test_fraction) == ("pets", 0.5, None)
    assert opened.data.classes == ("dog", "cat")
    assert opened.data.splits["train"].labels.tolist() == [1, 1, 1, 0, 0]
    assert opened.data.splits["train"].images.shape == (5, 8, 8, 3)
    (tmp_path / "shards").mkdir()
    path.rename(tmp_path / "shards" / "pets.toml")
    monkeypatch.chdir(tmp_path)  # the archive is now in the working folder
    assert open_quietly("pets").name == "pets"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            'name = "a"\nembedded = "digits"\nval_fracton = 0.1',
            "unknown key 'val_fracton'; did you mean 'val_fraction'?",
        ),
        ('name = "a"', "set either embedded"),
        ('embedded = "digits"', "the key 'name' is missing"),
        ('name = "a"\nembedded = "faces"', "embedded = 'faces'"),
        ('name = "a"\nembedded = "digits"\nval_fraction = 1.0', "val_fraction = 1.0"),
        ('name = "a"\nembedded = "digits"\nsize = "32"', "size = '32'"),
        ('name = "../a"\nembedded = "digits"', "name = '../a'"),
        ('name = "a"\nurl = "https://example.org/a.zip"', "url requires md5"),
        (f'name = "a"\nurl = "file:///etc/passwd"\nmd5 = "{"0" * 32}"', "not an http:// or https:// URL"),
        (f'name = "a"\nurl = "https://e.org/a.zip"\nmd5 = "{"0" * 32}"\narchive = "../a"', "plain file name"),
        ("name = ", "is not valid TOML"),
        (
            'name = "a"\nembedded = "digits"\nclasses = ["one", "two"]',
            "lists 2 names, but the source has 10 classes",
        ),
        ('name = "a"\narchive = "gone.zip"', "the archive 'gone.zip' does not exist in"),
    ],
)
def test_a_wrong_dataset_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    message = one_line(dataset_file(tmp_path, text))
    assert complaint in message
    assert "mine.toml" in message


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Start an HTTP server on this machine; yield its address and the folder that it serves."""
    served = tmp_path / "served"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(served))
    ) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", served
        running.shutdown()
        thread.join()


def test_an_archive_is_fetched_once_checked_and_kept(tmp_path: Path, server: tuple[str, Path]) -> None:
    url, served = server
    data = build.write_archive(served / "a.zip", build.class_folder({"cat": 2})).read_bytes()
    md5 = hashlib.md5(data).hexdigest()
    path = dataset_file(tmp_path, f'name = "a"\nurl = "{url}/a.zip"\nmd5 = "{md5}"\n')
    assert len(open_quietly(str(path)).data.splits["train"]) == 2
    assert (tmp_path / "a.zip").read_bytes() == data
    (served / "a.zip").unlink()
    assert len(open_quietly(str(path)).data.splits["train"]) == 2  # from the local copy

    (tmp_path / "a.zip").write_bytes(data[:-1])
    assert f"but {path} requires {md5}" in one_line(path)


def test_a_failed_download_leaves_nothing_and_says_which_file_goes_where(
    tmp_path: Path, server: tuple[str, Path]
) -> None:
    url, served = server
    (served / "a.zip").write_bytes(b"not what was asked for")
    for name, complaint in (("a.zip", "has the MD5"), ("gone.zip", "cannot download")):
        path = dataset_file(tmp_path, f'name = "a"\nurl = "{url}/{name}"\nmd5 = "{"0" * 32}"\n')
        message = one_line(path)
        assert complaint in message
        assert f"{url}/{name}" in message
        assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.toml", "served"]
    assert message.endswith(f"copy it to {tmp_path / 'gone.zip'}")


def test_a_tenth_of_the_real_jpeg_archive(test_data: Path) -> None:
    names = member_names(test_data / "cifar10-jpeg.tar.gz")
    assert len(names) == 55_000
    data = read_image_folder(test_data / "cifar10-jpeg.tar.gz", names[::10], show=False)
    assert data.classes == tuple(build.CLASSES_10)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 5000, "test": 500}
    assert np.bincount(data.splits["train"].labels).tolist() == [500] * 10
    mean, std = channel_statistics(pixel_counts(data.splits["train"].images))
    assert mean == pytest.approx((0.4913, 0.4821, 0.4465), abs=0.01)  # of all 50,000
    assert std == pytest.approx((0.2452, 0.2428, 0.2606), abs=0.01)


def test_the_real_unlabelled_pickle(test_data: Path) -> None:
    unlabelled = read_unlabelled(test_data / "cifar_test_nolabel.pkl")
    assert unlabelled.images.shape == (5000, 32, 32, 3)
    assert sorted(unlabelled.ids.tolist()) == list(range(5000))
    assert unlabelled.images.mean() / 255 == pytest.approx(0.473, abs=0.005)
