"""Fixtures of the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import continued_runs


@pytest.fixture(scope="session")
def place(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> continued_runs.Place:
    """A recipe with two runs, of which one is whole; each test continues copies, or runs of names of its own."""
    return continued_runs.begin(tmp_path_factory.mktemp("continuation"), digits)
