"""Weights from files: what fits is taken, anything else is one clear line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cifar_dist.errors import UserError
from cifar_dist.models import build
from cifar_dist.models.pretrained import load_pretrained


def tiny(classes: int = 10) -> nn.Module:
    return build("tiny-resnet", classes=classes, options={"widths": [4, 8]})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_all_weights_are_taken(tmp_path: Path, suffix: str) -> None:
    source, model = tiny(), tiny()
    path = tmp_path / f"weights{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    assert load_pretrained(model, path) == []
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_last_layer_stays_new_for_other_classes(tmp_path: Path) -> None:
    source, model = tiny(1000), tiny(10)
    before = model.state_dict()["head.0.weight"].clone()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert load_pretrained(model, tmp_path / "weights.pth") == ["head.0.weight", "head.0.bias"]
    assert torch.equal(model.state_dict()["head.0.weight"], before)
    assert torch.equal(model.state_dict()["stem.0.weight"], source.state_dict()["stem.0.weight"])


def test_weights_of_another_network_are_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "weights.pth"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    whole = tiny().state_dict()
    for damaged, says in (
        ({key: value for key, value in whole.items() if key != "stem.0.weight"}, "lacks stem.0.weight"),
        ({**whole, "other": torch.zeros(1)}, "has the unknown other"),
        ({**whole, "stem.0.weight": torch.zeros(1)}, "has in another shape stem.0.weight"),
        ({}, "lacks stem.0.weight and"),
    ):
        torch.save(damaged, path)
        with pytest.raises(UserError, match=says):
            load_pretrained(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


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
            load_pretrained(model, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not target.exists()
    with pytest.raises(UserError, match="there are no weights at"):
        load_pretrained(model, tmp_path / "nowhere.pth")
