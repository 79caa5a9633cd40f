"""``cifar-dist submit``: what would fail in the job is said before there is one. Real jobs: tests/slurm."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.run_folders import write_run

from cifar_dist import cli, recipe
from cifar_dist.errors import UserError
from cifar_dist.slurm.preflight import config_in_job


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "sbatch is not installed here; log in to the cluster, or use: cifar-dist launch ddp "),
        (["--gres=gpu:4", "--optim.lr", "fast"], "the command line: optim.lr"),
        (["--data.path", "nowhere"], "no packed dataset at nowhere: the folder does not exist"),
        (["--model.name", "tiny-cn"], "did you mean 'tiny-cnn'"),
        (
            ["--run.name", "taken", "--optim.lr", "9"],
            "/runs/taken was started with optim.lr = 0.1 and this command says 9",
        ),
        (["--run.name", "taken"], "/runs/taken is finished already; another --run.name starts a new run"),
    ],
)
def test_bad_input_is_one_line(tiny: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str) -> None:
    write_run(tiny.parent / "runs" / "taken", recipe.load(str(tiny), ["--run.name", "taken"]), test=0.5)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError) as caught:
        cli.run(["submit", str(tiny), *words])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_a_name_is_called_after_its_job(tiny: Path) -> None:
    assert config_in_job(str(tiny), [], "7").run.name == "tiny-7"
    assert config_in_job(str(tiny), ["--run.name", "tiny"], "7").run.name == "tiny"
    tiny.write_text(tiny.read_text().replace("[run]\n", '[run]\nname = "own"\n'))
    assert config_in_job(str(tiny), [], "7").run.name == "own"
