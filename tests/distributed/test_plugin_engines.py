"""Engines of plug-ins: what they lack, and what takes their place, is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.engine_on_ranks import network, optimizer

from cifar_dist import recipe
from cifar_dist.distributed import start as starting
from cifar_dist.distributed.asked_engine import AskedEngine
from cifar_dist.distributed.start import check_engine
from cifar_dist.errors import UserError

ENGINE = """
from cifar_dist.distributed.engine import Engine


class Unfinished(Engine):
    pass


class Mine(Engine):
    def wrap(self, module, optimizer):
        self.accelerator.prepare_model(module)
"""


def test_an_engine_of_a_plug_in_without_its_method_is_refused(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(ENGINE)
    config = recipe.load("demo", ["--train.engine", f"{code}:Unfinished"])
    with pytest.raises(UserError, match=r"mine\.py:Unfinished lacks the method wrap; see docs/extending\.md"):
        check_engine(config, AskedEngine())


def test_an_engine_of_a_plug_in_that_returns_no_model_is_refused(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(ENGINE)
    module = network()
    config = recipe.load("demo", ["--train.engine", f"{code}:Mine", "--train.precision", "no"])
    says = r"wrap of Mine returned NoneType; return what build_model does"
    with starting.start_engine(config) as engine, pytest.raises(UserError, match=says):
        engine.prepare(module, optimizer("sgd", module))


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--train.parts", "2", "--train.compress_gradients", "bf16"], "--train.parts 0"),
        (["--train.parts", "2", "--train.engine", "MINE:Mine"], "--train.engine auto"),
        (["--train.compress_gradients", "bf16", "--train.engine", "MINE:Mine"], "--train.engine auto"),
    ],
)
def test_an_engine_that_settings_choose_is_not_replaced_by_a_launch_config(
    tmp_path: Path, words: list[str], remedy: str
) -> None:
    code = tmp_path / "mine.py"
    code.write_text(ENGINE)
    config = recipe.load("demo", [word.replace("MINE", str(code)) for word in words])
    with pytest.raises(UserError, match=rf"; use .*{remedy}$"):
        check_engine(config, AskedEngine())
