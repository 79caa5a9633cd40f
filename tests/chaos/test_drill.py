"""A few trials of the drill, with a new seed each time; ``drill.py`` runs any number."""

from __future__ import annotations

import os
from pathlib import Path

from chaos.drill import run_drill, trials


def test_killed_and_damaged_runs_are_the_same_refused_or_reported(digits: Path, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    drill = run_drill(tmp_path, digits, seed, list(trials(kills=1, launches=0, damages=1)))
    assert not drill.failures, "\n".join(drill.failures)
