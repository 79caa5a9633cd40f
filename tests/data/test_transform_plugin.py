"""A transform from a file outside the package: it trains, resumes, and depends on each sample alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.running import metrics, train

from cifar_dist import recipe
from cifar_dist.config.saved import read_config
from cifar_dist.config.settings import settings_of
from cifar_dist.data.manifest import Manifest
from cifar_dist.errors import UserError

PLUG_IN = '''
import json
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.config.section import require
from cifar_dist.data.transforms import Samples, Transform


@dataclass(frozen=True)
class Noted(Transform):
    """Inverts some images, and notes what it was given."""

    file: str = ""
    p: float = 0.5

    def __post_init__(self):
        require(0 <= self.p <= 1, f"p {self.p} must be in [0, 1]")

    def __call__(self, images, samples: Samples):
        line = json.dumps([samples.seed, samples.epoch, samples.ids.tolist(), list(images.shape[1:])])
        with Path(self.file).open("a") as file:
            file.write(line + "\\n")
        return images ^ (255 * (samples.uniform("noted") < self.p)).to(images.dtype)[:, None, None, None]


class Plain:
    pass
'''


@pytest.fixture
def plug_in(tmp_path: Path) -> Path:
    (tmp_path / "noted.py").write_text(PLUG_IN)
    return tmp_path / "noted.py"


def test_it_trains_and_resumes(tiny: Path, digits: Path, plug_in: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    listed = f'[{{ name = "crop", pad = 2 }}, {{ name = "{plug_in}:Noted", file = "{notes}" }}]'
    words = [str(tiny), "--augment.transforms", listed, "--augment.Noted.p", "0.25", "--run.seed", "7"]
    (done,) = train(*words)
    assert done.returncode == 0, done.stderr
    given = [json.loads(line) for line in notes.read_text().splitlines()]
    samples = sum(shard.samples for shard in Manifest.load(digits).shards("train"))
    assert {seed for seed, *_ in given} == {7}
    assert {epoch for _, epoch, *_ in given} == {0, 1}
    assert all(shape == [3, 32, 32] for *_, shape in given)
    for epoch in (0, 1):
        ids = sorted(i for _, e, some, _ in given if e == epoch for i in some)
        assert ids == list(range(samples)), "each sample once in each epoch"
    run = tmp_path / "runs" / "tiny"
    assert settings_of(read_config(run / "config.toml"))["augment.Noted.p"] == 0.25
    before = metrics(run)
    (again,) = train(*words)
    assert again.returncode == 0, again.stderr
    assert metrics(run) == before
    (other,) = train(*words, "--augment.Noted.p", "0.5")
    assert other.returncode == 2
    assert "augment.Noted.p = 0.25 and this command says 0.5" in other.stderr


def test_its_settings_are_checked_like_all_others(plug_in: Path) -> None:
    for listed, says in (
        (f'[{{ name = "{plug_in}:Noted", p = 2 }}]', "augment.Noted.p 2.0 must be in [0, 1]"),
        (f'[{{ name = "{plug_in}:Noted", q = 2 }}]', "unknown setting --augment.Noted.q"),
        (f'[{{ name = "{plug_in}:Plain" }}]', "is not a settings dataclass"),
        (f'[{{ name = "{plug_in}:Noticed" }}]', "has no 'Noticed'"),
    ):
        with pytest.raises(UserError) as caught:
            recipe.load("demo", ["--augment.transforms", listed])
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
