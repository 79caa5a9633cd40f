"""One layer of settings over another: what a choice inherits from the one below."""

from __future__ import annotations

from pathlib import Path

import pytest

from cifar_dist import recipe
from cifar_dist.config import WandbConfig
from cifar_dist.config.optim import AdamConfig, AdamWConfig, MuonAdamWConfig
from cifar_dist.config.schedule import CosineConfig, WSDConfig
from cifar_dist.config.tracking import NoMirrorConfig
from cifar_dist.errors import UserError


def test_another_variant_does_not_inherit_settings_that_it_does_not_have() -> None:
    assert recipe.load("demo", ["--optim.name", "adam"]).optim == AdamConfig(weight_decay=1e-3)
    assert recipe.load("demo", ["--schedule.name", "cosine"]).schedule == CosineConfig(warmup=2, start=0.1)
    muon = recipe.load("speedrun-94", ["--optim.rest", "adamw"]).optim
    assert isinstance(muon, MuonAdamWConfig)
    wsd = recipe.load("demo", ["--schedule.name", "wsd"]).schedule
    assert wsd == WSDConfig(warmup=2, start=0.1), "its shape has no effect without decay"
    assert (muon.rest_lr, muon.iterations) == (6.9, 3)
    with pytest.raises(UserError, match=r'momentum has no effect with optim\.name = "adam"'):
        recipe.load("demo", ["--optim.name", "adam", "--optim.momentum", "0.9"])


def test_a_recipe_over_its_base(tmp_path: Path) -> None:
    below, above = tmp_path / "below.toml", tmp_path / "above.toml"
    below.write_text('[optim]\nmomentum = 0.5\nweight_decay = 0.0\n[tracking]\nwandb = "online"\nproject = "mine"\n')
    above.write_text('base = "below.toml"\n[optim]\nname = "adamw"\n')
    assert recipe.load(str(above)).optim == AdamWConfig(weight_decay=0.0)
    assert recipe.load(str(above)).tracking == WandbConfig(wandb="online", project="mine")
    assert recipe.load(str(above), ["--tracking.wandb", "offline"]).tracking == WandbConfig("offline", project="mine")
    assert recipe.load(str(above), ["--tracking.wandb", "disabled"]).tracking == NoMirrorConfig()
    above.write_text('base = "below.toml"\n[optim]\nname = "adamw"\nmomentum = 0.9\n')
    with pytest.raises(UserError, match=r"above\.toml: optim\.momentum has no effect"):
        recipe.load(str(above))
    below.write_text("[optim]\niterations = 3\n")
    above.write_text('base = "below.toml"\n[optim]\nname = "adamw"\n')
    with pytest.raises(UserError, match=r"optim\.iterations has no effect"):
        recipe.load(str(above))


@pytest.mark.parametrize(
    ("name", "again", "is_same"),
    [
        ("", "custom-resnet", True),
        ("", "tiny-cnn", False),
        ("tiny-cnn", "tiny-cnn", True),
        ("tiny-cnn", "custom-resnet", False),
        ("a/net.py:net", "./a//net.py:net", True),
        ("a/net.py:net", "{here}/a/net.py:net", True),
        ("~/net.py:net", "{home}/net.py:net", True),
        ("$HOME/net.py:net", "~/./net.py:net", True),
        ("$HOME/../net.py:net", "/home/net.py:net", True),
        ("a/net.py:net", "a/net.py:other", False),
        ("a/net.py:net", "b/net.py:net", False),
        ("a.net:net", "b.net:net", False),
    ],
)
def test_only_another_model_does_not_inherit_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, again: str, is_same: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    again = again.format(here=tmp_path, home="/home/someone")
    named = f'name = "{name}"\n' if name else ""
    Path("below.toml").write_text(f"[model]\n{named}options = {{ widths = [8, 16], act = 'gelu' }}\n")
    Path("above.toml").write_text(f'base = "below.toml"\n[model]\nname = "{again}"\noptions = {{ act = "relu" }}\n')
    below = {"widths": [8, 16]} if is_same else {}
    assert recipe.load("above.toml").model.options == {**below, "act": "relu"}
    words = ["--model.name", again, "--model.options.act", "relu"]
    assert recipe.load("below.toml", words).model.options == {**below, "act": "relu"}


def test_another_spelling_of_a_plug_in_is_no_other_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from cifar_dist.config.schedule import ScheduleConfig\n"
        "@dataclass(frozen=True)\n"
        "class Mine(ScheduleConfig):\n"
        "    power: float = 1.0\n"
        "    def falling(self, at):\n"
        "        return 1.0\n"
    )
    Path("mine.toml").write_text('[schedule]\nname = "mine.py:Mine"\nwarmup = 1.0\npower = 2.0\n')
    for again in ("./mine.py:Mine", f"{tmp_path}/mine.py:Mine"):
        schedule = recipe.load("mine.toml", ["--schedule.name", again, "--train.epochs", "3"]).schedule
        assert (schedule.warmup, vars(schedule)["power"]) == (1.0, 2.0)
