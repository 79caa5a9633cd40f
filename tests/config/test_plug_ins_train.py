"""A model, an optimizer, a schedule and an average from a folder outside the package: trained, resumed, reported."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support.running import ROOT, interrupt, metrics, spawn, train

from cifar_dist.config.saved import read_config
from cifar_dist.config.tree import to_tree

CODE = """
from dataclasses import dataclass

from torch import nn

from cifar_dist.config import OptimConfig, RunningAverageConfig, ScheduleConfig



class Flat(nn.Sequential):
    def __init__(self, classes: int, channels: int, *, width: int = 16) -> None:
        layers = nn.Linear(16 * channels, width), nn.Linear(width, classes)
        super().__init__(nn.AdaptiveAvgPool2d(4), nn.Flatten(), *layers)

    def forward(self, images):
        return super().forward(images)


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
    spelt = [word.replace(str(code), f"{tmp_path}/.//{code.name}") for word in words]
    (resumed,) = train(*spelt, "--run.name", "broken")
    assert resumed.returncode == 0, resumed.stderr
    one, two = metrics(tmp_path / "runs" / "whole"), metrics(broken)
    assert [(record["loss"], record["lr"]) for record in one] == [(record["loss"], record["lr"]) for record in two]
    assert one[3]["lr"] == 0.1 * (1 + 3 / 3) ** -0.5

    code.write_text("raise SystemExit('this code must not run')")
    assert to_tree(read_config(broken / "config.toml"))["schedule"]["slowness"] == 3.0
    for verb in (["report", str(broken)], ["runs", "list", str(tmp_path / "runs")]):
        (done,) = spawn(["-m", "cifar_dist", *verb], cwd=ROOT)
        assert done.returncode == 0, done.stderr
    (again,) = train(*words, "--run.name", "broken")
    assert again.returncode == 2
    assert "mine.py raised SystemExit: this code must not run" in again.stderr


FAILING = {
    "a network's forward": ("forward(images)", "forwards(images)", "mine.py, line 16, raised AttributeError: "),
    "a network's forward with an argument too many": (
        "forward(self, images):",
        "forward(self, images, mask):",
        "mine.py, line 15, Flat.forward(self, images, mask), was called with other arguments: ",
    ),
    "a schedule": ("(1 + at.since", "(at.sinse", "mine.py, line 34, raised AttributeError: "),
    "a schedule that divides by zero": ("(1 + at.since", "(at.since", "mine.py, line 34, raised ZeroDivisionError: "),
    "a schedule that fails late": ("(1 + at.since", "({0: 40}[at.since]", "mine.py, line 34, raised KeyError: 1"),
    "an average": ("return 0.5", "return {}[step]", "mine.py, line 40, raised KeyError: 2"),
    "an optimizer that cannot read its file": (
        "from torch.optim import Adagrad",
        "open('/nowhere')",
        "mine.py, line 24, raised FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'",
    ),
    "an optimizer that is none": (
        "return Adagrad(",
        "Adagrad(",
        "build returned NoneType, not a torch.optim.Optimizer",
    ),
    "an average without a weight": ("return 0.5", "0.5", "the weight of step 2 is None, not a number in [0, 1]"),
}


@pytest.mark.parametrize("failing", FAILING)
def test_a_plug_in_that_fails_is_named_in_one_line(failing: str, tiny: Path, tmp_path: Path) -> None:
    old, new, said = FAILING[failing]
    code = tmp_path / "mine.py"
    code.write_text(CODE.replace(old, new))
    words = [str(tiny), "--model.name", f"{code}:Flat", "--optim.name", f"{code}:Adagrad", "--train.epochs", "1"]
    words += ["--schedule.name", f"{code}:SquareRoot", "--average.name", f"{code}:Half", "--average.every", "2"]
    processes = 2 if failing == "a network's forward" else 1
    done = train(*words, processes=processes)
    assert 0 not in {one.returncode for one in done}
    lines = "".join(one.stderr for one in done).splitlines()
    (line,) = [line for line in lines if line.startswith("cifar-dist: ") and "importing plug-ins" not in line]
    assert said in line
    assert "Traceback" not in lines
