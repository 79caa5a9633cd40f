"""The benchmark command for a GPU, rehearsed without one: no item stops the others, and the results are a few files."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from gpu.bench import Bench, FailedError, Machine, SkippedError, UnfinishedError, UnusableError
from gpu.items import EXCHANGE, ITEMS, Item
from gpu.record import Record
from gpu.schedule import run_items
from support.running import PATIENCE, ROOT, environment, wait_until

MACHINE = Machine("CPU", 0, (), "2", "3")


def call(out: Path, cifar: str, variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``benchmarks/gpu.sh``."""
    command = [str(ROOT / "benchmarks" / "gpu.sh"), cifar, str(out), *words]
    env = environment({**variables, "PYTHON": "python"})
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, cwd=out.parent)


def results(out: Path) -> dict[str, tuple[str, str]]:
    """Return the result and the findings of each item."""
    rows = json.loads((out / "results.json").read_text())["rows"]
    return {row["name"]: (row["result"], row["found"]) for row in rows}


def test_the_machine_needs_no_installation_of_this_project(tmp_path: Path) -> None:
    bare = tmp_path / "python-without-packages"
    bare.write_text('#!/bin/sh\nexec python -S "$@"\n')
    bare.chmod(0o755)
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "cifar", str(tmp_path / "out"), "no-such-part"]
    env = {**environment(), "PYTHON": str(bare)}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert "no part or item is called 'no-such-part'" in done.stderr
    assert done.returncode == 2


def test_a_rehearsal_reports_each_item_and_a_second_one_does_not_repeat_it(
    digits: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    out, without_shards = tmp_path / "out" / "rehearsal", tmp_path / "digits"
    without_shards.mkdir()
    shutil.copy(digits / "manifest.json", without_shards)
    items = ("gpu-tests", "kill-resume", "speedrun-94.s0")
    first = call(out.parent, str(without_shards), forked, str(PATIENCE), *items, "--rehearse")
    assert first.returncode == 1, first.stderr
    found = results(out)
    assert found["gpu-tests"] == ("skipped", "needs a GPU")
    assert found["kill-resume"][0] == "passed", first.stdout
    assert found["speedrun-94.s0"][0] == "failed"
    assert "train-000000.tar" in found["speedrun-94.s0"][1]
    assert "1 passed, 1 failed, 1 skipped" in first.stdout

    second = call(out.parent, str(without_shards), forked, "0")
    assert [path.name for path in out.parent.iterdir()] == ["rehearsal"], "none of it counts for a GPU"
    assert "kill-resume: passed in an earlier call" in second.stdout
    assert results(out) | found == results(out), "what did not run again is kept"
    assert {results(out)[item.name][1][:11] for item in ITEMS if item.name not in found} == {"out of time"}
    files = {path.name for path in out.iterdir()}
    assert files == {"correctness.log", "recipes.log", "results.json", "results.md", "runs.tar.gz"}
    with tarfile.open(out / "runs.tar.gz") as archive:
        names = archive.getnames()
    assert "killed/metrics.jsonl" in names
    assert not [name for name in names if name.endswith(".safetensors")]
    assert "| correctness: kill-resume | passed |" in (out / "results.md").read_text()


def rehearsed(
    tmp_path: Path, *works: Callable[[Bench], str], seconds: float = PATIENCE, machine: Machine = MACHINE
) -> Record:
    """Run an item for each of ``works``, named 0, 1, ..., as separate calls would."""
    (tmp_path / "out").mkdir(exist_ok=True)
    work = tmp_path / f"work-{time.monotonic_ns()}"
    job = Bench(machine, "", work, time.monotonic() + seconds, rehearse=False)
    record = Record(tmp_path / "out", job.runs, machine.name, job.env)
    record.restore()
    run_items([Item(str(number), "recipes", 5, work) for number, work in enumerate(works)], job, record)
    record.finish()
    return record


def outcomes(record: Record) -> list[str]:
    return [record.rows[name].result for name in sorted(record.rows)]


def test_no_item_stops_the_others(tmp_path: Path) -> None:
    def fails(job: Bench) -> str:
        raise FailedError("too bad")

    def is_wrong(job: Bench) -> str:
        return f"{1 // 0}"

    def is_skipped(job: Bench) -> str:
        raise SkippedError("no card")

    def exits(job: Bench) -> str:
        return job.python("-Sc", "print('the reason'); raise SystemExit(3)").last_line

    def prints(job: Bench) -> str:
        return job.python("-Sc", "print('a figure | of two')").last_line

    record = rehearsed(tmp_path, fails, is_wrong, is_skipped, exits, prints)
    assert outcomes(record) == ["failed", "failed", "skipped", "failed", "passed"]
    assert record.rows["1"].found.startswith("ZeroDivisionError")
    assert record.rows["3"].found == "exit code 3: the reason"
    page = (tmp_path / "out" / "results.md").read_text()
    assert "\n1 passed, 3 failed, 1 skipped\n" in page
    assert "| recipes: 4 | passed | 0 | a figure / of two |\n" in page
    assert "the reason" in (tmp_path / "out" / "recipes.log").read_text()


def test_what_does_not_fit_the_budget_is_skipped_and_runs_later(tmp_path: Path) -> None:
    found = rehearsed(tmp_path, lambda job: "done", seconds=4).rows["0"].found
    assert re.fullmatch("out of time: it takes about 5 s and [0-4] s are left", found)
    assert outcomes(rehearsed(tmp_path, lambda job: "done")) == ["passed"]
    assert rehearsed(tmp_path, lambda job: "again").rows["0"].found == "done"


def test_an_item_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu.schedule._PATIENCE", 0.05)
    monkeypatch.setattr("gpu.schedule._LEAST", 0.0)

    def hangs(job: Bench) -> str:
        return job.python("-Sc", "import time; time.sleep(1000)").last_line

    record = rehearsed(tmp_path, hangs, lambda job: "done")
    assert outcomes(record) == ["failed", "passed"]
    assert record.rows["0"].found.startswith("took longer than")


def test_a_short_item_has_time_to_start_on_a_cold_machine(tmp_path: Path) -> None:
    (row,) = rehearsed(tmp_path, lambda job: f"{job.limit:.0f}").rows.values()
    assert row.found == "90"


def test_an_unfinished_run_resumes_from_its_newest_checkpoint(tmp_path: Path) -> None:
    def begins(job: Bench) -> str:
        for step in ("step-1", "step-2"):
            (job.runs / "0" / "checkpoints" / step).mkdir(parents=True)
            (job.runs / "0" / "checkpoints" / step / "model.safetensors").write_text(step)
        (job.runs / "0" / "checkpoints" / "latest").symlink_to("step-2")
        raise UnfinishedError("2 steps done")

    def resumes(job: Bench) -> str:
        checkpoints = job.runs / "0" / "checkpoints"
        assert [path.name for path in sorted(checkpoints.iterdir())] == ["latest", "step-2"]
        return (checkpoints / "latest" / "model.safetensors").read_text()

    assert outcomes(rehearsed(tmp_path, begins)) == ["unfinished"]
    assert rehearsed(tmp_path, resumes).rows["0"].found == "step-2"
    assert not (tmp_path / "out" / "unfinished.tar").exists()


def test_a_run_that_makes_the_archive_too_large_is_left_out_and_the_table_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMIT_MIB", "1")

    def begins(name: str, size: int) -> Callable[[Bench], str]:
        def work(job: Bench) -> str:
            checkpoint = job.runs / name / "checkpoints" / "step-2"
            checkpoint.mkdir(parents=True)
            (checkpoint / "model.safetensors").write_bytes(bytes(size))
            (checkpoint.parent / "latest").symlink_to("step-2")
            raise UnfinishedError("2 steps done; the same command resumes it")

        return work

    record = rehearsed(tmp_path, begins("0", 2**19), begins("1", 2**21), begins("2", 2**17))
    assert outcomes(record) == ["unfinished"] * 3
    assert record.rows["0"].found == record.rows["2"].found == "2 steps done; the same command resumes it"
    assert record.rows["1"].found == "2 steps done; not kept, because it takes 2 MiB (LIMIT_MIB)"
    assert record.rows["1"].found in (tmp_path / "out" / "results.md").read_text()
    with tarfile.open(tmp_path / "out" / "unfinished.tar") as archive:
        assert {name.partition("/")[0] for name in archive.getnames()} == {"0", "2"}
    assert (tmp_path / "out" / "unfinished.tar").stat().st_size < 2**20


def test_results_of_other_code_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed(tmp_path, lambda job: "done")
    monkeypatch.setattr("gpu.record._fingerprint", lambda: "other")
    with pytest.raises(UnusableError, match="holds results of other code; use another folder"):
        rehearsed(tmp_path, lambda job: "done")


def test_what_passed_on_another_machine_is_repeated_on_this_one_and_both_are_kept(tmp_path: Path) -> None:
    cards = [Machine(f"Card {number}", 1, (), "2", "3") for number in (1, 2)]
    for card in cards:
        assert rehearsed(tmp_path, lambda job: job.machine.device, machine=card).rows["0"].found == card.device
    assert rehearsed(tmp_path, lambda job: "again", machine=cards[0]).rows["0"].found == "Card 1"
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert {row["machine"]: row["found"] for row in rows} == {card.name: card.device for card in cards}


@pytest.mark.parametrize(("gpus", "several_gpus"), [(0, True), (1, True), (2, False)])
def test_items_that_are_not_timed_and_share_no_gpus_run_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, several_gpus: bool
) -> None:
    monkeypatch.setattr(Bench, "at_once", 2)
    meeting = threading.Barrier(2, timeout=PATIENCE)

    def meets(job: Bench) -> str:
        job.python("-Sc", "print('output')")
        return f"met as {meeting.wait()}"

    machine = Machine("a card", gpus, (2, 30), "2", "3")
    job = Bench(machine, "", tmp_path, time.monotonic() + PATIENCE, rehearse=False)
    record = Record(tmp_path, job.runs, machine.name, job.env)
    run_items([Item(name, "correctness", 5, meets, several_gpus=several_gpus) for name in "ab"], job, record)
    assert sorted(row.found for row in record.rows.values()) == ["met as 0", "met as 1"]
    assert (tmp_path / "correctness.log").read_text().count("output\n") == 2


def test_items_on_several_gpus_run_one_at_a_time_and_before_those_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels of two processes do not overlap on a GPU, and an exchange waits until its own run on all of them."""
    monkeypatch.setattr(Bench, "at_once", 3)
    meeting = threading.Barrier(2, timeout=PATIENCE)
    running: list[str] = []

    def exchanges(job: Bench) -> str:
        running.append("exchange")
        job.python("-Sc", "print('time enough for another to begin')")
        found = list(running)
        running.remove("exchange")
        return " ".join(found)

    def meets(job: Bench) -> str:
        running.append("one GPU")
        meeting.wait()
        return "met"

    one, several = Item("1", "correctness", 5, meets), Item("2", "correctness", 5, exchanges, several_gpus=True)
    items = [one, several, replace(one, name="3"), replace(several, name="4")]
    job = Bench(Machine("a card", 2, (2, 30), "2", "3"), "", tmp_path, time.monotonic() + PATIENCE, rehearse=False)
    record = Record(tmp_path, job.runs, job.machine.name, job.env)
    run_items(items, job, record)
    assert [row.found for row in record.rows.values()] == ["exchange", "exchange", "met", "met"]


def test_no_item_on_several_gpus_is_tried_where_they_cannot_exchange_anything(tmp_path: Path) -> None:
    """Each would hang until its limit. The next call tries the exchange again."""

    def run(exchange: Callable[[Bench], str], gpus: int = 2) -> Record:
        work = tmp_path / f"work-{time.monotonic_ns()}"
        machine = Machine("a card", gpus, (2, 30), "2", "3")
        job = Bench(machine, "", work, time.monotonic() + PATIENCE, rehearse=False)
        record = Record(tmp_path, job.runs, machine.name, job.env)
        items = [
            Item(EXCHANGE, "correctness", 5, exchange, several_gpus=True),
            Item("ddp", "correctness", 5, passes, several_gpus=True),
            Item("fp32", "correctness", 5, passes),
            Item("recipe", "recipes", 5, passes, several_gpus=True),
        ]
        run_items(items, job, record)
        return record

    def hangs(job: Bench) -> str:
        raise FailedError("exit code 1: 2 ranks have not exchanged anything")

    def passes(job: Bench) -> str:
        return "done"

    def is_skipped(job: Bench) -> str:
        raise SkippedError("needs several GPUs")

    rows = run(hangs).rows
    assert {name: row.result for name, row in rows.items()} == {
        EXCHANGE: "failed",
        "ddp": "skipped",
        "fp32": "passed",
        "recipe": "skipped",
    }
    assert rows["ddp"].found == "the GPUs cannot exchange anything: exit code 1: 2 ranks have not exchanged anything"
    assert {row.result for row in run(passes).rows.values()} == {"passed"}
    assert outcomes(run(is_skipped, gpus=1)) == ["passed", "skipped", "passed", "passed"]


def test_an_interrupt_ends_the_items_that_run_and_starts_no_other(tmp_path: Path) -> None:
    script = tmp_path / "call.py"
    script.write_text(
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "from gpu.bench import Bench, Machine\n"
        "from gpu.items import Item\n"
        "from gpu.record import Record\n"
        "from gpu.schedule import run_items\n"
        "def hangs(job):\n"
        "    return job.python('-Sc', 'import time; print(1, flush=True); time.sleep(1000)').last_line\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a job in the background ignores
        "Bench.at_once = 2\n"
        "job = Bench(Machine('CPU', 0, (), '2', '3'), '', Path(sys.argv[1]), time.monotonic() + 900, rehearse=False)\n"
        "run_items([Item(n, 'correctness', 5, hangs) for n in 'abc'], job, Record(job.work, job.runs, 'it', job.env))\n"
    )
    path = os.pathsep.join(str(ROOT / folder) for folder in ("", "benchmarks"))
    command = ["python", str(script), str(tmp_path)]
    with subprocess.Popen(command, env=environment({"PYTHONPATH": path}), stderr=subprocess.PIPE, text=True) as call:
        wait_until(lambda: sum(log.read_text().count("\n") == 2 for log in tmp_path.glob("?.log")) == 2, [call])
        call.send_signal(signal.SIGINT)
        _, said = call.communicate(timeout=PATIENCE)
    assert "KeyboardInterrupt" in said
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "c.log").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [([], "usage: "), (["cifar", "out", "fsdpp"], "no part or item is called 'fsdpp'")],
)
def test_mistakes_are_refused(tmp_path: Path, forked: dict[str, str], words: list[str], says: str) -> None:
    command = [str(ROOT / "benchmarks" / "gpu.sh"), *words]
    env = {**os.environ, **forked, "PYTHON": "python"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def damage_results(folder: Path) -> None:
    (folder / "out" / "rehearsal").mkdir(parents=True)
    (folder / "out" / "rehearsal" / "results.json").write_text("{")


def damage_archive(folder: Path) -> None:
    (folder / "out" / "rehearsal").mkdir(parents=True)
    (folder / "out" / "rehearsal" / "runs.tar.gz").write_bytes(gzip.compress(os.urandom(4000))[:1000])


def damage_wheel(folder: Path) -> None:
    (folder / "wheels").mkdir()
    (folder / "wheels" / "rich-1-py3-none-any.whl").write_text("half a download")


@pytest.mark.parametrize(
    ("cifar", "out", "prepare", "says"),
    [
        (
            "nowhere",
            "out",
            None,
            "CIFAR10 is nowhere, which cannot be used (exit code 2: cifar-dist: no file, folder or ",
        ),
        ("packed", "out", None, "/packed, which cannot be used (exit code 1: cifar_dist.errors.UserError: "),
        ("digits", "/proc/out", None, "OUT is /proc/out, which cannot be written (No such file or directory); use"),
        ("digits", "file", None, "OUT is file, which cannot be written (File exists); use another folder"),
        ("digits", "out", damage_results, "out/rehearsal/results.json is damaged (Expecting property name"),
        ("digits", "out", damage_archive, "out/rehearsal/runs.tar.gz is damaged ("),
        ("digits", "out", damage_wheel, "wheels/rich-1-py3-none-any.whl is damaged; fill that folder again: "),
    ],
)
def test_what_a_call_cannot_use_is_one_line_before_the_first_item(
    tmp_path: Path, forked: dict[str, str], cifar: str, out: str, prepare: Callable[[Path], None] | None, says: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "manifest.json").write_text("{")
    if prepare:
        prepare(tmp_path)
    wheels = {"WHEELS": "wheels"} if prepare is damage_wheel else {}
    command = [str(ROOT / "benchmarks" / "gpu.sh"), cifar, out, str(PATIENCE), "speedrun", "--rehearse"]
    env = environment({**forked, **wheels, "PYTHON": "python"})
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("benchmarks/gpu: ")
    assert says in line
    assert "== speedrun" not in done.stdout
