"""A rank that fails ends at once, even if leaving the process group would wait for the other ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import patient_group
from support.running import TRAIN, UNDRAWN, finish, start


@pytest.mark.parametrize(("engine", "codes", "left"), [("Failing", [1, 1], 0), ("Patient", [0, 0], 2)])
def test_only_a_successful_rank_leaves_the_group_collectively(
    tiny: Path, engine: str, codes: list[int], left: int
) -> None:
    words = [TRAIN, str(tiny), "--train.epochs", "1", "--train.engine", f"{patient_group.__file__}:{engine}"]
    running = start(words, 2, UNDRAWN)
    done = finish(running[::-1])[::-1]  # rank 1 first: the failure of rank 0 is an effect of its end
    assert [one.returncode for one in done] == codes, done[1].stderr
    assert "".join(one.stdout for one in done).count("waiting for the other ranks") == left
    assert ("RuntimeError: rank 1 broke" in done[1].stderr) == (engine == "Failing")
