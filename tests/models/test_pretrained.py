"""Weights from files: matching ones are loaded, anything else is a one-line error."""

from __future__ import annotations

import argparse
import pickle
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.dataset_builders import write_archive
from support.malicious import Malicious
from support.run_folders import write_run
from support.small_checkpoint import averaged, save_in_parts
from torch import Tensor, nn

from cifar_dist import cli
from cifar_dist.config import Config
from cifar_dist.errors import UserError
from cifar_dist.models import build
from cifar_dist.models.pretrained import load_pretrained


def tiny(classes: int = 10) -> nn.Module:
    return build("tiny-resnet", classes=classes, options={"widths": [4, 8]})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_all_weights_are_loaded(tmp_path: Path, suffix: str) -> None:
    source, model = tiny(), tiny()
    path = tmp_path / f"weights{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    assert load_pretrained(model, path, "tiny-resnet") == []
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {f"module._orig_mod.{key}": value for key, value in weights.items()},
        lambda weights: {"state_dict": {f"model.{key}": value for key, value in weights.items()}, "epoch": 3},
        lambda weights: {"model_state_dict": weights, "optimizer_state_dict": {"state": {}, "param_groups": []}},
        lambda weights: {"net": {f"module.{key}": value for key, value in weights.items()}, "acc": 93.5, "epoch": 1},
        lambda weights: {"n_averaged": torch.tensor(5), **{f"module.{key}": value for key, value in weights.items()}},
    ],
    ids=["compiled-ddp", "lightning", "model_state_dict", "data-parallel-net", "averaged-model"],
)
def test_weights_are_found_in_a_checkpoint_and_under_a_wrapper(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object]
) -> None:
    source, model = tiny(), tiny()
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    assert load_pretrained(model, tmp_path / "weights.pth", "tiny-resnet") == []
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_with_nested_weights_is_refused_with_their_place(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "G_ema": tiny().state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"no state dict under 'state_dict' .*, but 'epoch', 'G_ema'; save .*'G_ema'"):
        load_pretrained(tiny(), tmp_path / "weights.pth", "tiny-resnet")


@pytest.mark.parametrize(
    ("prefix", "others", "beside"),
    [
        ("model.", ["loss_fn.weight"], ", beside others such as 'loss_fn.weight'"),
        ("module.model.", ["module.loss_fn.weight"], ", beside others such as 'module.loss_fn.weight'"),
        ("model.", [f"ema_model.{key}" for key in tiny().state_dict()], ", beside others such as 'ema_model."),
        ("encoder.", [], ""),
    ],
)
def test_a_network_among_other_keys_is_refused_with_the_way_to_save_it_alone(
    tmp_path: Path, prefix: str, others: list[str], beside: str
) -> None:
    source, model, path = tiny(), tiny(), tmp_path / "weights.pth"
    own = {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    weights = {**dict.fromkeys(others, torch.ones(3)), **own}
    torch.save({"state_dict": weights}, path)
    with pytest.raises(UserError) as caught:
        load_pretrained(model, path, "tiny-resnet")
    assert f"weights.pth: the keys of the network begin with '{prefix}'{beside}" in str(caught.value)
    command = str(caught.value).partition("save it alone: ")[2]
    exec(command.replace("'weights.pth'", repr(str(path))), {"torch": torch, "weights": weights})
    assert load_pretrained(model, path, "tiny-resnet") == []
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_file_without_any_key_of_the_network_is_quoted(tmp_path: Path) -> None:
    torch.save({f"layer{n}.weight": torch.zeros(1) for n in range(5)}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"; its keys are 'layer0\.weight', 'layer1\.weight' and 3 more$"):
        load_pretrained(tiny(), tmp_path / "weights.pth", "tiny-resnet")


@pytest.mark.parametrize(
    ("theirs", "prefix"),
    [("head.1.", ""), ("head.", ""), ("classifier.", ""), ("head.1.", "module.")],
    ids=["sequential", "linear", "of-another-name", "of-ddp"],
)
@pytest.mark.parametrize("classes", [10, 1000])
def test_a_head_of_another_name_is_refused_with_the_way_to_rename_it(
    tmp_path: Path, theirs: str, prefix: str, classes: int
) -> None:
    """As the usual edit of a ResNet writes it: ``net.fc = Sequential(Dropout(), Linear())``."""
    source, model, path = tiny(classes), tiny(), tmp_path / "weights.pth"
    weights = {f"{prefix}{key.replace('head.0.', theirs)}": value for key, value in source.state_dict().items()}
    torch.save(weights, path)
    with pytest.raises(UserError) as caught:
        load_pretrained(model, path, "tiny-resnet")
    said, _, code = str(caught.value).partition("; rename them: ")
    assert said.endswith(f"missing: head.0.weight and 1 more; unexpected: {theirs}weight and 1 more")
    exec(code.replace("'weights.pth'", repr(str(path))), {"torch": torch, "weights": weights})
    skipped = load_pretrained(model, path, "tiny-resnet")
    assert skipped == (["head.0.weight", "head.0.bias"] if classes == 1000 else [])
    for key, value in model.state_dict().items():
        assert key in skipped or torch.equal(value, source.state_dict()[key])


def test_a_head_of_more_layers_is_refused_with_its_keys(tmp_path: Path) -> None:
    weights = tiny().state_dict()
    weights["head.2.weight"], weights["head.2.bias"] = torch.zeros(10, 10), torch.zeros(10)
    first = weights.pop("head.0.weight"), weights.pop("head.0.bias")
    torch.save({**weights, "head.1.weight": first[0], "head.1.bias": first[1]}, tmp_path / "weights.pth")
    says = r"missing: head\.0\.weight and 1 more; unexpected: head\.2\.weight and 3 more; use the model\.name and"
    with pytest.raises(UserError, match=says):
        load_pretrained(tiny(), tmp_path / "weights.pth", "tiny-resnet")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["model.safetensors"], ", as RUN/model.safetensors"),
        (["my.pth"], ", as RUN/my.pth"),
        (["optimizer.safetensors", "weights.safetensors"], ", as RUN/weights.safetensors"),  # a checkpoint
        (
            [*(f"checkpoints/best/{name}.safetensors" for name in ("weights", "averaged")), "final/model.safetensors"],
            ", as RUN/final/model.safetensors or RUN/checkpoints/best/averaged.safetensors",
        ),
        (["checkpoints/best/optimizer.safetensors", "config.toml"], ""),
        (["optimizer.safetensors", "averaged_statistics.safetensors"], ""),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], ""),  # as of Hugging Face
    ],
)
def test_the_weights_in_a_folder_are_named(tmp_path: Path, files: list[str], named: str) -> None:
    """A run, or its checkpoint."""
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError) as error:
        load_pretrained(tiny(), tmp_path, "tiny-resnet")
    said = str(error.value).replace(str(tmp_path), "RUN")
    assert said == f"model.pretrained: RUN is a folder; give a .safetensors or .pth file{named}"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("checkpoints/best", "is a folder with weights in parts"),
        ("checkpoints/step-00000003", "is a folder with weights in parts"),
        ("", "is a folder with weights in parts"),
        ("checkpoints/best/averaged-1-of-2.safetensors", "is a part of a checkpoint"),
        ("checkpoints/step-00000003/optimizer-2-of-2.safetensors", "is a part of a checkpoint"),
    ],
)
def test_the_command_that_writes_weights_in_parts_as_one_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("runs/a"), Config())
    save_in_parts(run / "checkpoints", 3, 2, best=True)
    with pytest.raises(UserError) as error:
        load_pretrained(tiny(), run / given, "tiny-resnet")
    said, _, command = str(error.value).partition("; write the best ones of its run as one file: cifar-dist ")
    assert said == f"model.pretrained: {run / given} {says}"
    assert cli.run(shlex.split(command)) == 0
    (written,) = Path("best-models").glob("*.safetensors")
    assert load_file(written).keys() == averaged(3).weights.keys()
    (run / "final").mkdir()
    (run / "final" / "model.safetensors").touch()
    instead = f"{says}; give {run}/final/model.safetensors, or write the" if given else f"as {run}/final/model.safe"
    with pytest.raises(UserError, match=instead):
        load_pretrained(tiny(), run / given, "tiny-resnet")


def test_the_parts_of_a_checkpoint_without_its_run_are_named(tmp_path: Path) -> None:
    copied = shutil.copytree(save_in_parts(tmp_path / "checkpoints", 3, 2), tmp_path / "copied")
    with pytest.raises(UserError, match=r"/copied is a folder with weights in parts; write .*: cifar-dist runs best$"):
        load_pretrained(tiny(), copied, "tiny-resnet")


def test_a_file_of_weights_is_not_a_part_for_its_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "fold-1-of-3.safetensors"
    save_file(tiny().state_dict(), path)
    assert load_pretrained(tiny(), path, "tiny-resnet") == []


def test_the_name_of_a_run_is_not_a_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; .* as runs/first/final/model.safetensors of a run$"):
        load_pretrained(tiny(), tmp_path / "first", "tiny-resnet")


def test_the_last_layer_keeps_its_new_weights_for_other_classes(tmp_path: Path) -> None:
    source, model = tiny(1000), tiny(10)
    before = model.state_dict()["head.0.weight"].clone()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert load_pretrained(model, tmp_path / "weights.pth", "tiny-resnet") == ["head.0.weight", "head.0.bias"]
    assert torch.equal(model.state_dict()["head.0.weight"], before)
    assert torch.equal(model.state_dict()["stem.0.weight"], source.state_dict()["stem.0.weight"])


def test_weights_of_another_network_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "weights.pth"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    whole = tiny().state_dict()
    for damaged, says in (
        ({key: value for key, value in whole.items() if key != "stem.0.weight"}, "missing: stem.0.weight"),
        ({**whole, "other": torch.zeros(1)}, "unexpected: other"),
        (
            {**whole, "stem.0.weight": torch.zeros(1)},
            "of another shape: stem.0.weight; stem.0.weight is 1 there and 4x3x3x3 in the network; use the model.name",
        ),
        (
            {**whole, "head.0.weight": torch.zeros(10, 4)},
            "of another shape: head.0.weight; .* 10x8 in the network; use",
        ),
        ({**whole, "stem.0.weight": torch.zeros(4, 1, 3, 3)}, "; use images of 1 channel$"),
        ({**whole, "head.0.weight": whole["head.0.weight"].int()}, "of an integer type: head.0.weight"),
        ({**whole, "stem.0.weight": whole["stem.0.weight"] / 0}, "not finite: stem.0.weight"),
        ({}, "missing: stem.0.weight and"),
    ):
        torch.save(damaged, path)
        with pytest.raises(UserError, match=says):
            load_pretrained(model, path, "tiny-resnet")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_of_another_kind_or_with_another_checksum_is_named(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    content = path.read_bytes()
    weights = next(iter(model.state_dict().values())).numpy().tobytes()
    for write, says in (
        (lambda: path.write_bytes(content.replace(weights, bytes(len(weights)))), "it is damaged, in "),
        (lambda: save_file(model.state_dict(), path), "it is a safetensors file; give it the suffix .safetensors"),
        (lambda: torch.jit.script(nn.Linear(1, 1)).save(path), "it is a TorchScript program; give the weights"),
        (
            lambda: torch.export.save(torch.export.export(nn.Linear(1, 1), (torch.ones(1, 1),)), path),
            "it is a torch.export program; give the weights it was made from",
        ),
        (
            lambda: write_archive(tmp_path / "a.zip", {"notes.txt": b""}).replace(path),
            "it is an archive of other files: 'notes.txt'",
        ),
        (lambda: path.write_text("hello"), "it is not a file of weights"),
        (lambda: path.write_bytes(b""), "it is not a file of weights"),
    ):
        write()
        with pytest.raises(UserError) as caught:
            load_pretrained(model, path, "tiny-resnet")
        assert f"cannot read weights from {path}: {says}" in str(caught.value)


@pytest.mark.filterwarnings("error:Validating sparse tensor")
def test_weights_that_are_sparse_complex_or_without_values_are_refused(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "weights.pth"
    weights = model.state_dict()
    head = weights["head.0.weight"]
    for unusable, says in (
        (head.to_sparse(), "is sparse; save dense weights: torch.save({k: v.to_dense() for k, v in weights.items()}"),
        (head.to_sparse_csr(), "is sparse; save dense weights: "),
        (head.to("meta"), "is a meta tensor, which has no values; save "),
        (head.to(torch.complex64), "is complex (torch.complex64); save real weights"),
    ):
        torch.save({**weights, "head.0.weight": unusable}, path)
        with pytest.raises(UserError) as caught:
            load_pretrained(model, path, "tiny-resnet")
        assert f"cannot read weights from {path}: head.0.weight {says}" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_more_than_weights_says_how_to_save_them_alone(tmp_path: Path, zipped: bool) -> None:
    """As timm's own training writes it, with the arguments of its command, or a network; the message's code works."""
    source, model, path = tiny(), tiny(), tmp_path / "their file.pth"
    weights = source.state_dict()
    for content, kind, names in (
        ({"state_dict": weights, "other": argparse.Namespace(model="x")}, "checkpoint", "argparse.Namespace"),
        ({"state_dict": weights, "other": {"out": Path("x")}}, "checkpoint", "pathlib"),
        ({"state_dict": weights, "other": np.random.get_state()}, "checkpoint", "numpy"),
        ({"state_dict": weights, "other": source}, "checkpoint", "cifar_dist.models"),
        (source, "entire network", "cifar_dist.models"),
    ):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError) as caught:
            load_pretrained(model, path, "tiny-resnet")
        said, _, ways = str(caught.value).partition(" alone, of a")
        assert f"cannot read weights from {path}: it holds more than weights ({names}" in said
        way_of = dict(re.findall(r"n? (checkpoint|entire network): (torch\.save\(.+?, 'weights\.pth'\))", ways))
        exec(way_of[kind].replace("'weights.pth'", repr(str(tmp_path / "weights.pth"))), {"torch": torch})
        assert load_pretrained(model, tmp_path / "weights.pth", "tiny-resnet") == []
        assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "it is a pointer of Git LFS .*git lfs pull"),
        ("\n<!DOCTYPE html>", "it is a web page and not the file itself; download it again"),
    ],
)
def test_what_stands_in_for_a_file_is_named(tmp_path: Path, content: str, says: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_text(content)
    with pytest.raises(UserError, match=says):
        load_pretrained(tiny(), path, "tiny-resnet")


def test_no_file_runs_code_or_raises_anything_else(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    torch.save({"stem.0.weight": Malicious(target)}, tmp_path / "zip.pth")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Malicious(target), protocol=2))
    (tmp_path / "empty.pth").touch()
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 64)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    model = tiny()
    for name in ("zip.pth", "pickle.pt", "empty.pth", "noise.pth", "noise.safetensors", "list.pth", "numbers.pth"):
        with pytest.raises(UserError, match=f"cannot read weights from .*{name}") as caught:
            load_pretrained(model, tmp_path / name, "tiny-resnet")
        assert "\n" not in str(caught.value)
    assert not target.exists()
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist; give a \.safetensors or \.pth file"):
        load_pretrained(model, tmp_path / "nowhere.pth", "tiny-resnet")
