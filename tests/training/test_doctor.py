"""``cifar-dist doctor``: the first steps of a run on real processes, which leave no files behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.running import spawn, train


def doctor(*words: str, processes: int = 1, code: int = 0) -> str:
    first, *others = spawn(["-m", "cifar_dist", "doctor", *words], processes)
    assert {process.returncode for process in (first, *others)} == {code}, first.stdout + first.stderr
    assert all(not process.stdout for process in others), "one process speaks"
    return first.stdout if code == 0 else first.stderr


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("processes", "who"), [(1, "one process; "), (2, "2, DDP; ")])
def test_it_tries_the_first_steps_and_leaves_nothing(tiny: Path, processes: int, who: str) -> None:
    before = files(tiny.parent)
    said = doctor(str(tiny), processes=processes)
    assert [line.split()[0] for line in said.splitlines()] == [
        *("machine", "processes", "precision", "data", "network", "steps", "save")
    ]
    assert f"processes  {who}" in said
    assert "rank 0 (cpu)" + (", 1 (cpu)" if processes == 2 else "\n") in said
    assert "data       digits: 1,259 train, 179 val, 359 test; 10 classes" in said
    assert re.search(r"steps +[\d.e-]+ s each, [\d,]+ images/s: 2 epochs of 13 take about ", said)
    assert files(tiny.parent) == before
    assert not (tiny.parent / "runs").exists()


def test_an_existing_run_resumes_as_if_doctor_had_not_run(tiny: Path) -> None:
    words = [str(tiny), "--run.name", "it"]
    assert train(*words)[0].returncode == 0
    before = files(tiny.parent / "runs")
    doctor(*words, "--train.batch_size", "500")  # three steps an epoch: it goes through several
    assert files(tiny.parent / "runs") == before


def test_the_machine_alone(tmp_path: Path) -> None:
    assert [line.split()[0] for line in doctor().splitlines()] == ["machine", "processes", "precision"]


def test_what_would_end_the_run_ends_it_with_one_line(tiny: Path) -> None:
    for words, says in (
        (["--data.path", "nowhere"], "no packed dataset at nowhere"),
        (["--train.batch_size", "7", "--train.even_batches", "true"], "batch_size 7 is not divisible by 2 processes"),
        (["--optim.lr", "1e30"], "is not finite; check optim.lr"),
        (["--run.dir", f"{tiny}/below"], f"run.dir {tiny}/below cannot be created (Not a directory); choose another"),
    ):
        said = doctor(str(tiny), *words, processes=2, code=2)
        assert [line for line in said.splitlines() if line.startswith("cifar-dist: ") and says in line], said
        assert "Traceback" not in said


def test_a_disk_that_is_too_small_is_a_warning(tiny: Path) -> None:
    said = doctor(str(tiny), "--checkpoint.keep", str(10**12))
    assert "warning: 1000000000002 checkpoints do not fit; free some, or choose another run.dir" in said
