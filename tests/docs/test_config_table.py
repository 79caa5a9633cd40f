"""docs/config.md says what cifar_dist/config/ says."""

from __future__ import annotations

import dataclasses
import importlib.util
from types import ModuleType
from typing import get_type_hints

import pytest
from running import ROOT

from cifar_dist.config import Config


@pytest.fixture(scope="module")
def make_config() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_config", ROOT / "docs" / "make_config.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_up_to_date(make_config: ModuleType) -> None:
    document = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert make_config.up_to_date(document) == document, "run: python docs/make_config.py"


def test_every_setting_has_a_row_and_a_meaning(make_config: ModuleType) -> None:
    rows = [line.split(" | ") for line in make_config.tables().splitlines() if line.startswith("| `")]
    meaning = {cells[0].strip("|` "): cells[-1].strip(" |") for cells in rows}
    kinds = get_type_hints(Config)
    assert list(meaning) == [
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(kinds[section.name])
    ]
    assert all(meaning.values()), [key for key, text in meaning.items() if not text]


def test_a_document_without_its_mark_is_not_overwritten(make_config: ModuleType) -> None:
    with pytest.raises(ValueError, match="put it before the first table"):
        make_config.up_to_date("# Settings\n")
