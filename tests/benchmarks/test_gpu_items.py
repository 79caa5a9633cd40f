"""The items of the benchmark command for a GPU: what each starts, what it measures, and how long a part takes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from gpu import bench, exchange, processes
from gpu.bench import Bench, FailedError, Machine, SkippedError
from gpu.items import EXCHANGE, ITEMS, choose
from gpu.measurements import time_peer
from gpu.record import Record
from gpu.schedule import run_items
from gpu.signal_to_rank import SignalToRank
from gpu.speedrun import measured
from support.running import PATIENCE, ROOT, spawn

from cifar_dist.exit_codes import EXIT_REQUEUE

MACHINE = Machine("CPU", 0, (), "2", "3")


@pytest.mark.parametrize(
    ("name", "gpus", "nccl", "expected"),
    [
        ("ddp", 1, (2, 30, 7), "2 ranks on nccl"),
        ("ddp", 8, (2, 28, 9), "8 ranks"),
        ("lost-rank", 8, (2, 28, 9), "8 ranks"),
        ("fsdp-to-ddp", 8, (2, 28, 9), "8 ranks"),
        ("fsdp", 1, (2, 28, 9), "1 ranks"),
        ("fsdp", 1, (2, 30, 7), "2 ranks on nccl"),
        ("fsdp", 2, (2, 28, 9), "2 ranks"),
        ("zero2", 1, (2, 30, 7), "1 ranks"),
        ("zero2", 2, (2, 28, 9), "2 ranks"),
    ],
)
def test_an_item_uses_the_gpus_of_the_machine_and_two_ranks_share_one_where_nccl_and_the_engine_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, nccl: tuple[int, ...], expected: str
) -> None:
    """FSDP requires NCCL, because gloo does not shard on GPUs. DeepSpeed takes a GPU for each rank of a machine."""
    asked: list[str] = []

    def python(self: Bench, *words: str, env: dict[str, str] | None = None, **how_it_ends: object) -> None:
        shared = "NCCL_MULTI_RANK_GPU_ENABLE" in (env or {})
        processes = words[4].removeprefix("--num_processes=")
        asked.append(f"{processes} ranks{' on nccl' if shared and processes != '1' else ''}")
        raise SkippedError(asked[-1])

    monkeypatch.setattr(Bench, "python", python)
    monkeypatch.setattr(Bench, "digits", lambda self: "digits")
    job = Bench(bench.Machine("a card", gpus, nccl, "2", "3"), "", tmp_path, time.monotonic() + 100, rehearse=False)
    (item,) = (item for item in ITEMS if item.name == name)
    with pytest.raises(SkippedError, match=f"^{expected}$"):
        item.work(job)


def test_a_rank_receives_a_signal_once_its_run_trains_and_the_job_must_end_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, log = tmp_path / f"run-{os.getpid()}", tmp_path / "log"
    run.mkdir()
    job = Bench(MACHINE, "", tmp_path, time.monotonic() + PATIENCE, rehearse=False, log=log, limit=PATIENCE)

    def train(on_term: str) -> None:
        """Run a process that passes for rank 1, and stop it."""
        (run / "metrics.jsonl").unlink(missing_ok=True)
        work = f"import signal, sys, time; signal.signal(signal.SIGTERM, {on_term}); "
        work += f"open({str(run / 'metrics.jsonl')!r}, 'w').write(6 * '{{}}\\n'); time.sleep(1000)"
        stop = SignalToRank(run, 1, signal.SIGTERM)
        job.python("-Sc", work, "--run.name", run.name, env={"RANK": "1"}, until=stop, code=EXIT_REQUEUE)

    train("lambda *_: sys.exit(75)")
    with pytest.raises(FailedError, match=r"^exit code 3: "):
        train("lambda *_: sys.exit(3)")
    monkeypatch.setattr("gpu.signal_to_rank._LAST_SECONDS", 0.0)
    with pytest.raises(FailedError, match=r"^it still ran 0 s after SIGTERM to rank 1$"):
        train("signal.SIG_IGN")


def test_the_items_that_use_several_gpus_are_those_that_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they say decides what runs beside them."""
    several: set[str] = set()

    def python(self: Bench, *words: str, **how_it_ends: object) -> processes.Ended:
        if any(word.startswith("--num_processes=") for word in words) or words[0] == exchange.__file__:
            several.add(self.log.name)
        return processes.Ended(0, "", limited=False)

    monkeypatch.setattr(Bench, "python", python)
    monkeypatch.setattr(Bench, "digits", lambda self: "digits")
    monkeypatch.setattr(Bench, "cifar", lambda self: "cifar10")
    machine = Machine("a card", 8, (2, 30), "2", "3")
    for item in ITEMS:
        job = Bench(machine, "", tmp_path, time.monotonic() + 100, rehearse=False, log=tmp_path / item.name)
        with suppress(FailedError, SkippedError, OSError, ValueError, IndexError):  # nothing ran that it could read
            item.work(job)
    assert several == {(tmp_path / item.name).name for item in ITEMS if item.several_gpus}


def test_the_exchange_comes_before_all_that_need_it() -> None:
    def names(words: list[str], gpus: int) -> list[str]:
        return [item.name for item in choose(words, Machine("a card", gpus, (2, 30), "2", "3"))]

    assert names(["fsdp", "fp32"], 2) == [EXCHANGE, "fp32", "fsdp"]
    assert names(["recipes"], 8)[:2] == [EXCHANGE, "speedrun-94.s0"]
    assert names(["fsdp"], 1) == ["fsdp"]
    assert EXCHANGE not in names(["speed", "fp32"], 8)
    assert names([], 1) == names([], 8) == [item.name for item in ITEMS]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("gloo", "2", str(PATIENCE)), 0, "2 ranks over gloo"),
        (("gloo", "2", "0"), 1, "2 ranks have not exchanged anything over gloo in 0 s"),
        (("nccl", "2", str(PATIENCE)), 1, "RuntimeError: "),
    ],
)
def test_the_exchange_ends_with_one_line_whether_it_works_hangs_or_fails(
    words: tuple[str, ...], code: int, says: str
) -> None:
    (done,) = spawn([exchange.__file__, *words], env={"PYTHONPATH": str(ROOT / "benchmarks")})
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1].startswith(says)


@pytest.mark.parametrize("name", [EXCHANGE, "fsdp-to-ddp", "lost-rank", "ddp.graphs", "ddp.fp16", "evaluate"])
def test_what_only_several_gpus_can_show_is_skipped_on_one(tmp_path: Path, name: str) -> None:
    job = Bench(Machine("a card", 1, (2, 30), "2", "3"), "", tmp_path, time.monotonic() + 100, rehearse=False)
    (item,) = (item for item in ITEMS if item.name == name)
    with pytest.raises(SkippedError, match=r"^needs several GPUs$"):
        item.work(job)


@pytest.mark.parametrize("name", ["ddp.graphs", "speedrun.graphs", "speedrun.cpu-quick"])
def test_an_item_with_cuda_graphs_fails_where_torch_cannot_record_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def python(self: Bench, *words: str, env: Mapping[str, str], **how_it_ends: object) -> None:
        assert "reduce-overhead" in words
        assert env["TORCHINDUCTOR_CUDAGRAPH_OR_ERROR"] == "1"
        raise FailedError("skipping cudagraphs due to mutated inputs")

    monkeypatch.setattr(Bench, "python", python)
    monkeypatch.setattr(Bench, "digits", lambda self: "digits")
    monkeypatch.setattr(Bench, "cifar", lambda self: "cifar10")
    job = Bench(Machine("a card", 8, (2, 30), "2", "3"), "", tmp_path, time.monotonic() + 100, rehearse=False)
    (item,) = (item for item in ITEMS if item.name == name)
    with pytest.raises(FailedError, match=r"^skipping cudagraphs"):
        item.work(job)


def test_a_measurement_without_compiled_augmentation_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "cifar-dist: the augmentation runs without being compiled, and slower (no C compiler)\nresnet18: a step ..."
    monkeypatch.setattr(Bench, "python", lambda *_, **__: processes.Ended(0, said, limited=False))
    monkeypatch.setattr(Bench, "cifar", lambda self: "cifar10")
    job = Bench(MACHINE, "", tmp_path, time.monotonic() + 100, rehearse=False)
    (steps,) = (item for item in ITEMS if item.name == "steps.resnet18")
    with pytest.raises(FailedError, match=r"the augmentation was not compiled: no C compiler"):
        steps.work(job)


def test_a_peer_is_compared_with_the_speedruns_of_this_call_and_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = {item.name: item for item in ITEMS}
    gpu = Machine("a card", 1, (2, 30), "2", "3")
    job = Bench(gpu, "", tmp_path, time.monotonic() + 1000, rehearse=False)
    monkeypatch.delenv("HIVERGE", raising=False)
    with pytest.raises(SkippedError, match=r"^set HIVERGE to the path of cifar10_speedrun.py$"):
        items["hiverge"].work(job)

    def python(
        self: Bench, *words: str, env: object = None, until: Callable[[str], bool] | None = None
    ) -> processes.Ended:
        rows = "|  eval  |  0.99  |  0.9100  |  3.0000  |\n" + "|  eval  |  0.99  |  0.9200  |  2.0000  |\n" * 8
        printed = (
            rows if until else f"mean of 4: {1.0 if 'no' in words else 0.5} s (0.1 s in the first 2 steps), 91.00 %\n"
        )
        assert until is None or until(printed)
        return processes.Ended(0, printed, limited=False)

    monkeypatch.setattr(Bench, "python", python)
    monkeypatch.setattr(Bench, "cifar", lambda self: "cifar10")
    monkeypatch.setenv("HIVERGE", "cifar10_speedrun.py")
    assert items["hiverge"].work(job) == "2.000 s, 92.00 %"
    record = Record(tmp_path, job.runs, gpu.name, {})
    run_items([items["speedrun"], items["speedrun.graphs"]], job, record)
    ratios = "speedrun 0.50 of it; speedrun.graphs 0.25 of it"
    assert items["hiverge"].work(job) == f"2.000 s, 92.00 %; {ratios}"
    job.found.clear()  # as in the next call
    run_items([items["speedrun"], items["hiverge"]], job, record)
    assert record.rows["hiverge"].found == "2.000 s, 92.00 %; speedrun 0.50 of it"
    assert items["speedrun.cpu-quick"].work(job).endswith("91.00 %; 0.25 of hiverge")


def test_a_speedrun_says_what_its_first_steps_take_which_record_cuda_graphs(tmp_path: Path) -> None:
    seconds = [("train", 0.5), ("train", 0.25), ("train", 1), ("val", 100), ("train", 1), ("test", 2)]
    lines = [json.dumps({"split": split, "seconds": took, "accuracy": took / 4}) for split, took in seconds]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert measured(tmp_path) == (4.75, 0.75, 0.5)


def test_the_record_holders_script_is_stopped_after_a_few_of_its_200_runs(tmp_path: Path) -> None:
    """Runs are counted in its table, which numbers a run in the row of its first epoch only."""
    row = "|  {:>6}  |  {:>5}  |     0.9000  |   0.9300  |  {:>11}  |  {:>12}  |"
    script = tmp_path / "airbench.py"
    script.write_text(
        "import sys, time; code = open(sys.argv[0]).read(); open('cifar10')\n"
        "for run in ('warmup', *range(200)):\n"
        f"    print({row!r}.format(run, 0, '', '3.5000'))\n"
        f"    print({row!r}.format('', 'eval', '0.9410', '99.0000' if run == 'warmup' else '2.5000'))\n"
        "    time.sleep(1000 * (run == 10))\n"
    )
    job = Bench(
        MACHINE, "", tmp_path, time.monotonic() + PATIENCE, rehearse=False, log=tmp_path / "log", limit=PATIENCE
    )
    (tmp_path / "airbench").mkdir()
    (tmp_path / "airbench" / "cifar10").write_text("the data is found in the working folder")
    assert time_peer(job, script, tmp_path / "airbench") == pytest.approx((2.5, 0.941))


@pytest.mark.parametrize(
    ("part", "gpus", "minutes", "at_once"), [("correctness", 1, 6, 4), ("correctness", 2, 13, 4), ("speed", 1, 13, 1)]
)
def test_a_part_takes_no_longer_than_the_help_says(part: str, gpus: int, minutes: int, at_once: int) -> None:
    machine = Machine("a card", gpus, (2, 30), "2", "3")
    items = [item for item in ITEMS if item.part == part]
    alone = sum(item.seconds for item in items if item.exchanges(machine))
    free_from = [0.0] * at_once
    for item in items:
        if not item.exchanges(machine):
            free_from[free_from.index(min(free_from))] += item.seconds
    assert alone + max(free_from) < 60 * minutes


def test_each_item_has_a_name_of_its_own() -> None:
    assert len({item.name for item in ITEMS}) == len(ITEMS)
