"""What ``predict`` reads of folders, archives and arrays, what it says of them, and what it refuses."""

from __future__ import annotations

import os
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import dataset_builders as build

from cifar_dist.config import Config, EvalConfig
from cifar_dist.data import archives
from cifar_dist.data.image import Lossless
from cifar_dist.data.image_files import MAX_SIDE
from cifar_dist.data.index import index
from cifar_dist.data.pack import pack
from cifar_dist.data.read import ShardReader
from cifar_dist.errors import UserError
from cifar_dist.evaluation import images_to_predict
from cifar_dist.evaluation.checkpoint_ref import CheckpointRef
from cifar_dist.evaluation.data_matching import labels_as_trained
from cifar_dist.evaluation.images_to_predict import ImagesToPredict, open_images_to_predict
from cifar_dist.evaluation.predict import batches_of
from cifar_dist.evaluation.trained import Trained
from cifar_dist.run_folder import RunFolder

SIDE = 6
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run on images of 6x6 pixels; no weights are read."""
    folder = tmp_path_factory.mktemp("trained")
    files = build.class_folder({"train/cat": 2, "train/dog": 2}, side=SIDE)
    packed = pack(build.write_folder(folder / "in", files), folder / "out", val_fraction=0, show=False)
    return Trained(RunFolder(folder / "runs" / "first"), Config(), packed, CheckpointRef((), "latest", None, None))


@pytest.fixture(scope="module", params=["argument", "dataset file"])
def resized(trained: Trained, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run on images that ``pack --size 4``, or a dataset file with that size, resized."""
    folder = tmp_path_factory.mktemp("resized")
    source = build.write_folder(folder / "in", build.class_folder({"train/cat": 2, "train/dog": 2}, side=SIDE))
    file = folder / "pets.toml"
    file.write_text('name = "pets"\narchive = "in"\nsize = 4\n')
    by_argument = request.param == "argument"
    packed = pack(source if by_argument else file, folder / "out", size=4 if by_argument else None, show=False)
    return replace(trained, trained_on=packed)


def opened(trained: Trained, source: Path) -> ImagesToPredict:
    return open_images_to_predict(torch.device("cpu"), trained, source)


def pixels(source: ImagesToPredict) -> torch.Tensor:
    (images,) = source.stream([torch.arange(len(source.ids))])
    return images


def notes(source: ImagesToPredict) -> list[str]:
    return source.notes([source.changes])


def images(count: int = 2, side: int = SIDE) -> dict[str, bytes]:
    """Return the files ``0.png``, ``1.png`` and so on."""
    return {f"{n}.png": build.image_file(image) for n, image in enumerate(build.random_images(count, side=side))}


def npz(path: Path, side: int, count: int = 2) -> Path:
    np.savez(path, data=build.random_images(count, side=side), ids=np.arange(count))
    return path


def refusal(trained: Trained, source: Path) -> str:
    with pytest.raises(UserError) as error:
        opened(trained, source)
    return str(error.value)


def test_a_name_that_is_not_utf_8_is_refused(trained: Trained, tmp_path: Path) -> None:
    build.write_folder(tmp_path, images())
    (tmp_path / "0.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    assert refusal(trained, tmp_path).endswith("'caf\\udce9.png' is not UTF-8; rename it")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".TGZ", ".zip"])
def test_every_archive_is_read(trained: Trained, tmp_path: Path, suffix: str) -> None:
    folder = build.write_folder(tmp_path / "in", images())
    archive = tmp_path / f"in{suffix}"
    if suffix == ".TGZ":
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, "in")
    else:
        build.write_archive(archive, images())
    assert torch.equal(pixels(opened(trained, archive)), pixels(opened(trained, folder)))


def test_a_folder_of_an_archive_names_the_command_for_that(trained: Trained, tmp_path: Path) -> None:
    source = build.write_folder(tmp_path / "in put", {"images.zip": b"", "notes.txt": b""})
    command = f"cifar-dist predict {trained.run.path} '{source}/images.zip' --out FILE.csv"
    assert refusal(trained, source) == f"{source} has no images, but 'images.zip'; use the archive itself: {command}"


def test_hidden_and_changed_images_are_noted_as_pack_notes_them(trained: Trained, tmp_path: Path) -> None:
    build.write_folder(tmp_path, {**images(), ".3.png": b"", ".more/4.png": b"", ".notes": b""})
    assert opened(trained, tmp_path).ids == [0, 1]
    image = Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 128))
    exif = image.getexif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / "2.png", exif=exif)
    image.save(tmp_path / "3.gif", save_all=True, append_images=[Image.new("RGBA", image.size, "blue")])
    assert notes(opened(trained, tmp_path)) == [
        "passed over hidden images: '.3.png', '.more/4.png'",
        "composited over white, because of transparent pixels: 1 of 4 images",
        "reduced to the first frame of an animation: 1 of 4 images",
        "turned upright, as the EXIF orientation says: 1 of 4 images",
    ]


def test_the_manifest_of_another_program_is_a_file_like_any_other(trained: Trained, tmp_path: Path) -> None:
    build.write_folder(tmp_path, {**images(), "manifest.json": b'{"name": "my web app"}'})
    found = opened(trained, tmp_path)
    assert found.ids == [0, 1]
    assert notes(found) == ["passed over 1 file not named as an image: 'manifest.json'"]


@pytest.mark.parametrize("others", [0, 2])
def test_images_in_other_formats_are_to_be_converted(trained: Trained, tmp_path: Path, others: int) -> None:
    build.write_folder(tmp_path, {**(images(others)), "7.tif": b"", "8.TIF": b""})
    says = "2 images in a format that is not read, .tif: '7.tif', '8.TIF'; convert them to PNG"
    assert refusal(trained, tmp_path) == f"{tmp_path}: {says}"


def test_hidden_images_alone_are_named(trained: Trained, tmp_path: Path) -> None:
    build.write_folder(tmp_path, {".1.png": b"", ".2.png": b""})
    says = "contains only hidden images: '.1.png', '.2.png'; rename what begins with a dot"
    assert refusal(trained, tmp_path) == f"{tmp_path} {says}"


@pytest.mark.parametrize("form", ["folder", "archive", "npz"])
def test_images_of_another_size_are_resized_as_the_training_images_were_or_refused(
    trained: Trained, resized: Trained, tmp_path: Path, form: str
) -> None:
    files = images(side=9)
    sources = {
        "folder": lambda: build.write_folder(tmp_path / "in", files),
        "archive": lambda: build.write_archive(tmp_path / "in.zip", files),
        "npz": lambda: npz(tmp_path / "a.npz", 9),
    }
    source = sources[form]()
    assert refusal(trained, source).endswith("is 9x9x3, but the run was trained on 6x6x3; resize the images to 6x6")
    shrunk = opened(resized, source)
    assert notes(shrunk) == ["resized to 4x4 pixels: 2 of 2 images"]
    assert notes(opened(resized, npz(tmp_path / "fits.npz", 4))) == []
    assert pixels(shrunk).shape == (2, 4, 4, 3)
    assert torch.equal(pixels(shrunk), pixels(opened(resized, npz(tmp_path / "same.npz", 9))))


def test_images_that_do_not_fit_in_memory_are_refused_before_they_are_read(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.write_folder(tmp_path, {**images(2), "2.png": b"damaged"})
    monkeypatch.setattr("cifar_dist.data.memory.free_memory", lambda: 4 * 3 * SIDE * SIDE * 3 - 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert refusal(trained, tmp_path).endswith("predict fewer images at a time")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert "'2.png' is not an intact PNG" in refusal(trained, tmp_path)


@pytest.mark.parametrize("form", ["folder", "archive", "npz"])
@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 10), (3, 10), (4, 16), (8, 40)])
def test_a_rank_holds_the_images_that_it_predicts(
    trained: Trained, tmp_path: Path, form: str, ranks: int, batch_size: int
) -> None:
    """And the first, where the others have a batch more."""
    count, side = 40, 32
    square = replace(trained.trained_on, shape=(side, side, 3))
    trained = replace(trained, trained_on=square, config=Config(eval=EvalConfig(batch_size=batch_size)))
    sources = {
        "folder": lambda: build.write_folder(tmp_path / "in", images(count, side)),
        "archive": lambda: build.write_archive(tmp_path / "in.zip", images(count, side)),
        "npz": lambda: npz(tmp_path / "a.npz", side, count),
    }
    source = sources[form]()
    alone = opened(trained, source)
    predicted: list[int] = []
    for rank in range(ranks):
        tracemalloc.start()
        share = open_images_to_predict(torch.device("cpu"), trained, source, rank=rank, world_size=ranks, show=False)
        of_arrays = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
        kept = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([of_arrays]).traces)
        tracemalloc.stop()
        requests, own = batches_of(rank, ranks, count, batch_size)
        predicted += torch.cat([*requests[:own], torch.empty(0, dtype=torch.int64)]).tolist()
        for mine, theirs in zip(share.stream(requests), alone.stream(requests), strict=True):
            assert torch.equal(mine, theirs)
        assert share.ids == alone.ids
        held = len(torch.cat(requests).unique())
        assert 0 <= kept - side * side * 3 * held < 100 * count
    assert sorted(predicted) == list(range(count))


def test_a_packed_dataset_is_read_as_it_is_predicted(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its images are not read in advance, although they would fit."""
    packed = pack(npz(tmp_path / "a.npz", SIDE, 40), tmp_path / "out", show=False)
    monkeypatch.delattr(ShardReader, "all")
    with np.load(tmp_path / "a.npz") as stored:
        assert np.array_equal(pixels(opened(trained, packed.root)).numpy(), stored["data"])


def test_the_notes_of_several_ranks_are_those_of_one(trained: Trained, resized: Trained, tmp_path: Path) -> None:
    build.write_folder(tmp_path, {**images(5, side=9), "notes.txt": b""})
    for source in (tmp_path, npz(tmp_path.with_suffix(".npz"), 9, 5)):
        alone = opened(resized, source)
        for ranks, batch_size in ((2, 2), (3, 4)):
            few = replace(resized, config=Config(eval=EvalConfig(batch_size=batch_size)))
            shares = [
                open_images_to_predict(torch.device("cpu"), few, source, rank=rank, world_size=ranks, show=False)
                for rank in range(ranks)
            ]
            assert shares[0].notes([share.changes for share in shares]) == notes(alone)
            assert len({share.content for share in shares}) == 1


def test_images_that_differ_on_another_rank_have_another_content(trained: Trained, tmp_path: Path) -> None:
    """Also those that the rank neither decodes nor holds."""
    contents = set()
    for name, files in (("a", images()), ("b", {**images(), "0.png": images()["1.png"]})):
        source = build.write_folder(tmp_path / name, files)
        one_a_batch = replace(trained, config=Config(eval=EvalConfig(batch_size=1)))
        share = open_images_to_predict(torch.device("cpu"), one_a_batch, source, rank=1, world_size=2, show=False)
        contents.add(share.content)
    assert len(contents) == 2


def test_a_folder_that_changes_while_it_is_read_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.write_folder(tmp_path, images(2))
    monkeypatch.setattr(images_to_predict, "decode_image", lambda *_, **__: np.zeros((SIDE, SIDE, 3), np.uint8))
    monkeypatch.setattr(archives, "read_members", lambda *_: [("0.png", b"")])
    assert refusal(trained, tmp_path) == f"{tmp_path} changed while it was being read; run the command again"


def test_a_large_photo_is_to_be_resized_and_not_packed(trained: Trained, tmp_path: Path) -> None:
    Image.new("RGB", (MAX_SIDE + 1, 8)).save(tmp_path / "0.png")
    says = f"'0.png': an image is {MAX_SIDE + 1}x8x3, but the run was trained on 6x6x3; resize the images to 6x6"
    assert refusal(trained, tmp_path) == f"{tmp_path}: {says}"


def test_packed_images_of_another_size_or_split_are_refused_with_what_to_do(trained: Trained, tmp_path: Path) -> None:
    packed = pack(npz(tmp_path / "a.npz", 9), tmp_path / "out", show=False)
    assert refusal(trained, packed.root).endswith("trained on 6x6x3; pack its source again with --size 6")
    root = trained.trained_on.root
    assert refusal(trained, root) == (
        f"{root} has no split 'test' to predict, but train; predict another split with: "
        f"cifar-dist evaluate {trained.run.path} --data {root} --split train"
    )


@pytest.mark.parametrize(("names", "side"), [(("cat", "eel"), SIDE), (("cat", "dog"), 9)])
def test_evaluate_is_not_suggested_where_it_would_refuse(
    trained: Trained, tmp_path: Path, names: tuple[str, str], side: int
) -> None:
    files = build.class_folder({f"train/{name}": 2 for name in names}, seed=1, side=side)
    root = pack(build.write_folder(tmp_path / "in", files), tmp_path / "out", val_fraction=0, show=False).root
    assert refusal(trained, root) == (
        f"{root} has no split 'test' to predict, but train; predict the folder of its images: "
        f"cifar-dist predict {trained.run.path} FOLDER --out FILE.csv"
    )


def test_indexed_tars_are_named_or_written_again(trained: Trained, tmp_path: Path) -> None:
    """``pack`` refuses them."""
    files = build.class_folder({"train/a": 2, "train/b": 2, "test/a": 2, "test/b": 2}, side=9)
    root = pack(build.write_folder(tmp_path / "in", files), tmp_path / "out", val_fraction=0, show=False).root
    (root / "manifest.json").unlink()
    tars = index(root, show=False)
    assert refusal(trained, root).endswith("trained on 6x6x3; write its tars again with images of 6x6")
    with pytest.raises(UserError, match=f"so name its classes: cifar-dist index {root} --classes FILE$"):
        labels_as_trained(tars, "test", trained.trained_on)


@pytest.mark.parametrize("codec", ["png", "npy"])
def test_a_shard_names_the_folder_of_its_dataset(trained: Trained, tmp_path: Path, codec: Lossless) -> None:
    source = build.write_folder(tmp_path / "in", build.class_folder({"test/cat": 2, "test/dog": 2}, side=SIDE))
    root = pack(source, tmp_path / "out", codec=codec, show=False).root
    shard = root / "test-000000.tar"
    assert refusal(trained, shard) == f"{shard} is a shard of a packed dataset; name its folder, {root}"
