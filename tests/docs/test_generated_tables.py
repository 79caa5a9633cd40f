"""The generated tables are up to date: settings, engines, recipes and their sources."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest
from support.run_folders import write_run
from support.running import ROOT

from cifar_dist.config import Config
from cifar_dist.config.choice import keys_of
from cifar_dist.config.named_items import item_root
from cifar_dist.distributed.engine import Engine
from cifar_dist.models.registry import names

OF_TRAININGS = {"pictures", "results"}
TABLES = sorted({path.stem.removeprefix("make_") for path in (ROOT / "docs").glob("make_*.py")} - OF_TRAININGS)


@functools.cache
def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", TABLES)
def test_the_tables_are_up_to_date(page: str) -> None:
    made = script(f"make_{page}")
    document = made.DOCUMENT.read_text(encoding="utf-8")
    assert made.up_to_date(document) == document, "run: make tables"


def test_make_writes_every_table() -> None:
    variables = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    done = subprocess.run(
        ["make", "--dry-run", "tables"], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )
    assert sorted(re.findall(r"docs/make_(\w+)\.py", done.stdout)) == TABLES


def test_the_results_of_runs_are_recorded_on_a_page(tmp_path: Path) -> None:
    """As benchmarks/cpu.sh calls it: with the page, a run that is finished and one that is not."""
    finished = write_run(tmp_path / "finished", Config(), val=0.5, test=0.75)
    begun = write_run(tmp_path / "begun", Config(), val=0.5)
    facts = {"run": {"parameters": 12345, "dataset": "digits"}, "versions": {"torch": "2.15"}, "gpus": ["H200"]}
    for run in (finished, begun):
        (run / "environment.json").write_text(json.dumps(facts))
    page = tmp_path / "page.md"
    subprocess.run([sys.executable, ROOT / "docs" / "make_results.py", "--to", page, finished, begun], check=True)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    assert [row.split(" | ")[:2] for row in rows] == [["| `finished`", "digits"], ["| `begun`", "digits"]]
    assert "75.00 % of 10" in rows[0]
    assert all("12,345" in row and "H200" in row and "2.15" in row for row in rows)


def test_the_table_of_the_readme_is_up_to_date() -> None:
    made = script("make_performance")
    document = made.README.read_text(encoding="utf-8")
    assert made.readme_up_to_date(document) == document, "run: make tables"


def test_the_table_of_engines_has_all_that_come_with_the_package() -> None:
    known, engines = set(script("make_engines").COLUMNS.values()), [Engine]
    for engine in engines:
        engines += [one for one in engine.__subclasses__() if one.__module__.startswith("cifar_dist.")]
    assert known == set(engines[1:])


def test_no_difference_between_a_recipe_and_its_source_is_unexplained() -> None:
    assert script("make_sources").problems() == []


def test_a_difference_that_no_recipe_head_names_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = script("make_sources")
    sources, others = compared._read(), set(compared.problems())
    said = sources["recipes"]["se-resnet"]
    said["settings"]["optim"]["nesterov"] = True
    said["settings"]["train"]["epochs"] = 100
    said["parameters"] = 2_820_391
    said["unlike"] = ["the order of the samples"]
    sources["sweeps"]["batch-size"]["rows"]["batch_size=32"]["settings"]["train"]["epochs"] = 34
    monkeypatch.setattr(compared, "_read", lambda: sources)
    del sources["own"]["demo"], sources["own"]["custom-resnet-blocks"]
    sources["own"]["gone"] = "a recipe that was deleted"
    problems = [line for line in compared.problems() if line not in others]
    assert [line.partition(" in the head")[0] for line in problems] == [
        'custom-resnet-blocks: no entry in docs/sources.toml; add "custom-resnet-blocks" = "what it is for" below '
        '[own], or [sweeps."custom-resnet-blocks"] with what its source says, and run: make tables',
        'demo: no entry in docs/sources.toml; add "demo" = "what it is for" below [own], or '
        '[recipes."demo"] with what its source says, and run: make tables',
        "gone: not shipped; remove it from docs/sources.toml",
        "se-resnet: optim.nesterov is not named under 'Differs:'",
        "se-resnet: parameters is not named under 'Differs:'",
        "se-resnet: the order of the samples is not named under 'Differs:'",
        "se-resnet: the head says 'Chosen here: train.epochs', which is not so",
        "se-resnet-randaugment: optim.nesterov is not named under 'Differs:'",
        "se-resnet-stochastic-depth: optim.nesterov is not named under 'Differs:'",
        "batch_size=32: train.epochs is not named under 'Differs:'",
    ]


def test_every_setting_has_a_row_and_a_meaning() -> None:
    rows = [line.split(" | ") for line in script("make_config").tables().splitlines() if line.startswith("| `")]
    networks = {cells[0].strip("|` ") for cells in rows if len(cells) == 3 and "model.name" not in cells[0]}
    assert networks == set(names())
    meaning = {cells[0].strip("|` "): cells[-1].strip(" |") for cells in rows if len(cells) == 4}
    kinds = get_type_hints(Config)
    items = {
        f"{section.name}.{name}.{key}"
        for section in dataclasses.fields(Config)
        if kinds[section.name].named_items
        for name, item in item_root(kinds[section.name]).variants.items()
        for key in keys_of(item)
        if key != "name"
    }
    assert len(items) > 20
    assert set(meaning) == items | {
        f"{section.name}.{key}" for section in dataclasses.fields(Config) for key in keys_of(kinds[section.name])
    }
    assert all(meaning.values()), [key for key, text in meaning.items() if not text]


def test_a_document_without_its_mark_is_not_overwritten() -> None:
    with pytest.raises(ValueError, match="put it before the first table"):
        script("make_config").up_to_date("# Settings\n")
