"""The settings in the ``config.toml`` of a run folder."""

from __future__ import annotations

from pathlib import Path

from cifar_dist import recipe
from cifar_dist.config import OptimConfig
from cifar_dist.config.saved import read_config
from cifar_dist.config.tree import to_toml, to_tree


def test_a_run_folder_is_read_without_the_code_that_it_names(tmp_path: Path) -> None:
    """The settings of plug-ins are read as they were written, and written the same way."""
    code = tmp_path / "code.py"
    code.write_text(
        "from dataclasses import dataclass\n"
        "from cifar_dist.config import OptimConfig, ScheduleConfig\n"
        "@dataclass(frozen=True)\n"
        "class Lion(OptimConfig):\n"
        "    betas: tuple[float, float] = (0.9, 0.99)\n"
        "    lambda_: float = 0.7\n"
        "    def build(self, groups): ...\n"
        "@dataclass(frozen=True)\n"
        "class Sawtooth(ScheduleConfig):\n"
        "    teeth: int = 3\n"
        "    def falling(self, at): ...\n"
    )
    words = ["--optim.name", f"{code}:Lion", "--schedule.name", f"{code}:Sawtooth", "--schedule.teeth", "5"]
    loaded = recipe.load("demo", words)
    assert type(loaded.optim).__name__ == "Lion"
    config_file = tmp_path / "config.toml"
    config_file.write_text(to_toml(loaded))
    code.write_text("raise SystemExit('this code must not run')")
    found = read_config(config_file)
    assert to_tree(found) == to_tree(loaded)
    assert isinstance(found.optim, OptimConfig)
    assert (found.optim.lr, found.schedule.name) == (0.1, f"{code}:Sawtooth")
