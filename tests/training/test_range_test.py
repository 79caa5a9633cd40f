"""``lr-find``: the same curve on any number of processes, an existing run unchanged, and a recipe written."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import tomllib
from pathlib import Path

import pytest
from support.run_folders import write_run
from support.running import finish, spawn, start, train

from cifar_dist import cli, recipe
from cifar_dist.config import SGDConfig
from cifar_dist.errors import UserError
from cifar_dist.optim.lr_curve import Curve
from cifar_dist.report.run_page import write_report
from cifar_dist.run_folder import RunFolder
from cifar_dist.slurm.options import Options
from cifar_dist.slurm.submission import Submission
from cifar_dist.training.range_test import require_place

RANGE = ["--low", "1e-4", "--high", "10", "--steps", "30"]


def find(*words: str, processes: int = 1, code: int = 0) -> str:
    done = spawn(["-m", "cifar_dist", "lr-find", *words], processes)
    assert [d.returncode for d in done] == [code] * processes, done[0].stderr
    return done[0].stdout if code == 0 else done[0].stderr


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_process_and_two_find_the_same_curve(tiny: Path, tmp_path: Path) -> None:
    curves = []
    for processes in (1, 2):
        said = find(str(tiny), *RANGE, "--run.name", f"on-{processes}", processes=processes)
        assert said.count("sgd: valley ") == 1
        run = tmp_path / "runs" / f"on-{processes}"
        assert (run / "figures" / "lr_curve.png").read_bytes().startswith(b"\x89PNG")
        found = Curve.load(run / "lr_curve.json")
        assert found is not None
        curves.append(found)
    one, two = curves
    assert one.lrs[:15] == two.lrs[:15]
    # While the rate is low; at the end training is chaotic.
    assert one.losses[:15] == pytest.approx(two.losses[:15], rel=1e-4)
    assert min(one.losses) < 0.8 * one.losses[0]


def test_an_existing_run_is_left_alone_and_shows_the_curve(tiny: Path, tmp_path: Path) -> None:
    command = [str(tiny), "--train.epochs", "1"]
    assert train(*command)[0].returncode == 0
    run = tmp_path / "runs" / "tiny"
    before = content(run)
    find(*command[:1], *RANGE, *command[1:])
    after = content(run)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"lr_curve.json", "figures/lr_curve.png"}
    (done,) = spawn(["-m", "cifar_dist", "report", str(run)])
    assert done.returncode == 0, done.stderr
    assert 'alt="Learning-rate range test, ' in (run / "report.html").read_text()
    said = find(*command[:1], *RANGE, *command[1:], "--optim.name", "adamw", "--optim.lr", "0.01", code=2)
    assert f"{run} was started with optim.name" in said
    assert content(run)["lr_curve.json"] == after["lr_curve.json"]


def test_a_curve_of_other_data_does_not_replace_that_of_a_run(tiny: Path, digits: Path, tmp_path: Path) -> None:
    config = recipe.load(str(tiny))
    run = write_run(tmp_path / "runs" / "tiny", config)
    require_place(config)  # its manifest is lost
    shutil.copy(digits / "manifest.json", run)
    require_place(config)
    other = tmp_path / "other"
    other.mkdir()
    manifest = json.loads((digits / "manifest.json").read_text())
    del manifest["sha256"]
    (other / "manifest.json").write_text(json.dumps({**manifest, "mean": [0.25, 0.25, 0.25]}))
    with pytest.raises(UserError, match=rf"^{run} was started on other data than {other} now has .*--run\.name NEW$"):
        require_place(recipe.load(str(tiny), ["--data.path", str(other)]))


def test_a_run_may_begin_in_the_folder_of_its_curve_which_is_plain_json(tiny: Path, tmp_path: Path) -> None:
    find(str(tiny), *RANGE, "--run.seed", "2147483647")  # the largest; three tests have a seed each
    kept = json.loads((tmp_path / "runs" / "tiny" / "lr_curve.json").read_text())
    assert Submission.of_recipe(str(tiny), ["--run.fresh"], Options.parse([])).folder.name == "tiny", "it is not taken"
    assert kept.keys() == {"lrs", "losses", "guessing", "settings", "fingerprint"}
    (done,) = train(str(tiny), "--train.epochs", "1", "--run.fresh")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tiny" / "config.toml").is_file()
    report = write_report(RunFolder(tmp_path / "runs" / "tiny")).read_text()
    assert "The range test was made with run.seed = 2147483647 and this run says 0.</p>" in report


def test_weights_that_do_not_fit_leave_the_curve_and_nothing_that_refuses_the_corrected_command(
    tiny: Path, tmp_path: Path
) -> None:
    command = [str(tiny), "--train.max_steps", "1", "--eval.tta", "0"]
    assert train(*command, "--run.name", "source")[0].returncode == 0
    weights = ["--model.pretrained", str(tmp_path / "runs" / "source" / "final" / "model.safetensors")]
    find(str(tiny), *RANGE)
    before = content(tmp_path / "runs" / "tiny")
    (refused,) = train(*command, *weights, "--model.name", "tiny-resnet")
    assert refused.returncode == 2
    assert "does not fit tiny-resnet" in refused.stderr
    assert content(tmp_path / "runs" / "tiny") == before
    (done,) = train(*command, *weights)
    assert done.returncode == 0, done.stderr


def test_the_rate_is_written_into_a_new_recipe_and_into_an_old_one(tiny: Path, tmp_path: Path) -> None:
    new = tmp_path / "found.toml"
    said = find(str(tiny), *RANGE, "--write", str(new), "--optim.momentum", "0.8")
    lr = recipe.load(str(new)).optim.lr
    assert f"optim.lr = {lr:g}: {new}" in said
    optim = recipe.load(str(new)).optim
    assert isinstance(optim, SGDConfig)
    assert optim.momentum == 0.8
    assert tomllib.loads(new.read_text())["base"] == "tiny.toml"

    old = tmp_path / "old.toml"
    old.write_text('# mine\nbase = "tiny.toml"\n\n[optim]\nmomentum = 0.8 # gentle\nlr = 3.0 # too much\n\n[train]\n')
    find(str(old), *RANGE, "--write", str(old), "--suggest", "steepest")
    text = old.read_text()
    assert text.startswith('# mine\nbase = "tiny.toml"\n\n[optim]\nmomentum = 0.8 # gentle\nlr = ')
    assert text.endswith(" # too much\n\n[train]\n")
    assert recipe.load(str(old)).optim.lr < 3


LEARNS_WITH_AN_EVEN_SEED = """
import torch


class Net(torch.nn.Linear):
    def __init__(self, classes, channels):
        super().__init__(32 * 32 * channels, classes)
        self.learns = torch.initial_seed() % 2 == 0

    def forward(self, images):
        return super().forward(images.flatten(1)) * self.learns
"""


@pytest.mark.parametrize(("seed", "count"), [(0, 1), (1, 2)])
def test_a_seed_that_learns_nothing_is_a_warning_beside_the_rate(
    tiny: Path, tmp_path: Path, seed: int, count: int
) -> None:
    (tmp_path / "net.py").write_text(LEARNS_WITH_AN_EVEN_SEED)
    network, new = f"{tmp_path}/net.py:Net", tmp_path / "found.toml"
    said = find(str(tiny), *RANGE, "--model.name", network, "--run.seed", str(seed), "--write", str(new))
    assert f"\nwarning: {count} of 3 seeds learnt too little to suggest a rate; use more --steps or --seeds\n" in said
    assert f"optim.lr = {recipe.load(str(new)).optim.lr:g}: {new}" in said


def test_a_stopped_range_test_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    running = start(["-m", "cifar_dist", "lr-find", str(tiny), "--low", "1e-9", "--high", "1e-8", "--steps", "100000"])
    assert running[0].stdout is not None
    while not running[0].stdout.readline().startswith("step 10/"):
        assert running[0].poll() is None
    running[0].send_signal(signal.SIGTERM)
    assert [done.returncode for done in finish(running)] == [75]
    assert not (tmp_path / "runs").exists()


def test_the_recipe_of_a_branch_is_tested_in_another_folder_and_without_its_origin(tiny: Path, tmp_path: Path) -> None:
    config = recipe.load(str(tiny)).with_run(name="branch", from_="tiny")
    branch = write_run(tmp_path / "runs" / "branch", config)
    with pytest.raises(UserError) as refused:
        cli.run(["lr-find", str(branch / "config.toml")])
    way = '--run.from "" --run.name NEW'
    assert str(refused.value) == (
        "run.from has no effect on a range test, which does not begin with a checkpoint; "
        f"use {way}, and --model.pretrained FILE to begin with its weights"
    )
    assert cli.run(["lr-find", str(branch / "config.toml"), *RANGE, *shlex.split(way)]) == 0
    assert (tmp_path / "runs" / "NEW" / "lr_curve.json").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--low", "1", "--high", "0.1"], "--low 1 must be below --high 0.1"),
        (["--low", "0"], "'0' is not a number above 0"),
        (["--low", "1e-300"], "'1e-300' is not a learning rate from 1e-12 to 1e6"),
        (["--steps", "3"], "'3' is not an integer of at least 20"),
        (["--write", "/nowhere/x.toml"], "cannot be written as a recipe; name a .toml file in an existing folder"),
        (["--augment.mean", "[0, 0, 0]", "--augment.std", "[1e-38, 1e-38, 1e-38]"], "not finite in the first step"),
        (["--optim.lrr", "1"], "did you mean '--optim.lr'?"),
        (
            ["--run.dir", "/dev/null"],
            "the run folder /dev/null/tiny cannot be written: /dev/null stands in the way; use",
        ),
        (
            ["--run.from", "other", "--run.from_other_data"],
            'does not begin with a checkpoint; use --run.from "" --run.from_other_data false, and --model.pretrained',
        ),
    ],
)
def test_mistakes_are_one_line(tiny: Path, words: list[str], says: str) -> None:
    said = find(str(tiny), *words, code=2)
    assert says in said
    assert "Traceback" not in said
