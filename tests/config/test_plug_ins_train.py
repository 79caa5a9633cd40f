"""A model, an optimizer, a schedule and an average from a folder outside the package: trained, resumed, reported."""

from __future__ import annotations

import signal
from pathlib import Path

from support.running import ROOT, interrupt, metrics, spawn, train

from cifar_dist import recipe

CODE = """
from dataclasses import dataclass

from torch import nn

from cifar_dist.config import OptimConfig, RunningAverageConfig, ScheduleConfig



class Flat(nn.Sequential):
    def __init__(self, classes: int, channels: int, *, width: int = 16) -> None:
        layers = nn.Linear(16 * channels, width), nn.Linear(width, classes)
        super().__init__(nn.AdaptiveAvgPool2d(4), nn.Flatten(), *layers)


@dataclass(frozen=True)
class Adagrad(OptimConfig):
    eps: float = 1e-10

    def build(self, groups):
        from torch.optim import Adagrad

        return Adagrad(groups, lr=self.lr, eps=self.eps)


@dataclass(frozen=True)
class SquareRoot(ScheduleConfig):
    slowness: float = 10.0

    def falling(self, at):
        return (1 + at.since / self.slowness) ** -0.5


@dataclass(frozen=True)
class Half(RunningAverageConfig):
    def weight(self, step, *, start, total):
        return 0.5
"""


def test_plug_ins_train_resume_and_are_reported_without_their_code(tiny: Path, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(CODE)
    words = [str(tiny), "--train.threads", "1", "--model.name", f"{code}:Flat", "--model.options.width", "8"]
    words += ["--optim.name", f"{code}:Adagrad", "--schedule.name", f"{code}:SquareRoot", "--schedule.slowness", "3"]
    words += ["--average.name", f"{code}:Half", "--average.every", "2"]
    (whole,) = train(*words, "--run.name", "whole")
    assert whole.returncode == 0, whole.stderr
    broken = tmp_path / "runs" / "broken"
    assert interrupt([*words, "--run.name", "broken"], broken, 8, 1, signal.SIGTERM) == [75]
    (resumed,) = train(*words, "--run.name", "broken")
    assert resumed.returncode == 0, resumed.stderr
    one, two = metrics(tmp_path / "runs" / "whole"), metrics(broken)
    assert [(record["loss"], record["lr"]) for record in one] == [(record["loss"], record["lr"]) for record in two]
    assert one[3]["lr"] == 0.1 * (1 + 3 / 3) ** -0.5

    code.write_text("raise SystemExit('this code must not run')")
    assert recipe.to_tree(recipe.read(broken / "config.toml"))["schedule"]["slowness"] == 3.0
    for verb in (["report", str(broken)], ["runs", "list", str(tmp_path / "runs")]):
        (done,) = spawn(["-m", "cifar_dist", *verb], cwd=ROOT)
        assert done.returncode == 0, done.stderr
    (again,) = train(*words, "--run.name", "broken")
    assert again.returncode == 2
    assert "mine.py raised SystemExit: this code must not run" in again.stderr
