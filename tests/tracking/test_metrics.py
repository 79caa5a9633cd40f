from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recorded import as_written, train, val, write_metrics

from cifar_dist.errors import UserError
from cifar_dist.tracking.metrics import MetricsLog, Record, difference, read
from cifar_dist.tracking.usage import Usage, total

floats = st.floats(width=32)
records = st.lists(
    st.builds(
        Record,
        step=st.integers(0, 40),
        epoch=st.integers(0, 6),
        split=st.sampled_from(["train", "val", "test"]),
        loss=floats,
        accuracy=floats,
        samples=st.integers(0, 2**40),
        seconds=floats,
        lr=st.none() | floats,
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=25)
@given(records)
def test_what_was_appended_is_read_and_every_line_is_strict_json(written: list[Record]) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write_metrics(path, written)
        lines = path.read_text().splitlines()
        assert [json.loads(line, parse_constant=refuse)["step"] for line in lines] == [r.step for r in written]
        assert list(map(as_written, read(path))) == list(map(as_written, written))


def test_a_loss_that_is_not_finite_is_null_in_the_file_and_nan_again_when_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_metrics(path, [train(1, loss=math.inf), train(2, loss=math.nan)])
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [None, None]
    assert all(math.isnan(record.loss) for record in read(path))


@settings(deadline=None, max_examples=25)
@given(records, st.data())
def test_a_file_torn_at_any_byte_keeps_its_complete_lines(written: list[Record], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write_metrics(path, written)
        whole = path.read_bytes()
        torn = whole[: data.draw(st.integers(0, len(whole)))]
        path.write_bytes(torn)
        kept = list(map(as_written, written[: torn.count(b"\n")]))
        assert list(map(as_written, read(path))) == kept

        log = MetricsLog(path)
        log.cut(40)
        log.append([train(41)])
        assert list(map(as_written, read(path))) == [*kept, as_written(train(41))]
        log.close()


@settings(deadline=None, max_examples=25)
@given(records, st.integers(0, 40), st.none() | st.integers(0, 6))
def test_cut_drops_only_the_records_that_are_repeated(written: list[Record], step: int, evaluated: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write_metrics(path, written)
        log = MetricsLog(path)
        last = log.cut(step, evaluated)
        log.close()
        before = [r for r in written if r.step <= step]
        kept = [
            r for r in before if r.split == "train" or evaluated is None or (r.split == "val" and r.epoch < evaluated)
        ]
        assert list(map(as_written, read(path))) == list(map(as_written, kept))
        assert last == max([step, *(r.step for r in written)])
        assert sorted(Path(folder).iterdir()) == [path.with_name(".metrics.jsonl.sha256"), path], "nothing temporary"


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 7), st.lists(st.integers(1, 30), max_size=5), st.integers(0, 60))
def test_each_step_is_recorded_once_whatever_interrupts(every: int, deaths: list[int], torn: int) -> None:
    steps = 30
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        saved = 0
        for last in [*deaths, steps]:
            log = MetricsLog(path)
            log.cut(saved)
            for step in range(saved + 1, max(saved, last) + 1):
                log.append([train(step)])
                if step % every == 0:
                    saved = step
            log.close()
            if last != steps:
                with path.open("ab") as file:
                    file.write(train(steps + 1).to_line()[:torn].rstrip(b"\n"))
        log = MetricsLog(path)
        log.cut(saved)
        log.append([train(step) for step in range(saved + 1, steps + 1)])
        log.close()
        assert [record.step for record in read(path)] == list(range(1, steps + 1))


def test_an_evaluation_after_the_checkpoint_of_its_own_step_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = [train(step) for step in range(1, 7)]
    write_metrics(path, [*steps[:3], val(0), *steps[3:], val(1)])
    log = MetricsLog(path)
    assert log.cut(6, evaluated=1) == 6
    log.append([val(1, accuracy=0.8)])
    log.close()
    assert [r.accuracy for r in read(path) if r.split == "val"] == [0.75, 0.8]
    assert [r.step for r in read(path) if r.split == "train"] == [1, 2, 3, 4, 5, 6]


def test_appended_lines_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from cifar_dist.tracking.metrics import MetricsLog, Record;"
        "MetricsLog(Path(sys.argv[1])).append([Record(1, 0, 'train', 1.0, 0.5, 10, 0.1, 0.1)]);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL
    assert [record.step for record in read(path)] == [1]


def test_no_file_has_no_records(tmp_path: Path) -> None:
    assert read(tmp_path / "metrics.jsonl") == []


HOSTILE = [
    b"not json",
    b"[]",
    b"7",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"step": 1}',
    b'{"step": -1, "epoch": 0, "samples": 1}',
    b'{"step": true, "epoch": 0, "samples": 1}',
    b'{"step": 1.5, "epoch": 0, "samples": 1}',
    b'{"step": 9223372036854775808, "epoch": 0, "samples": 1}',
    b'{"step": 1, "epoch": 0, "samples": 1, "loss": "low"}',
    b'{"step": 1, "epoch": 0, "samples": 1, "loss": Infinity}',
    b'{"step": 1, "epoch": 0, "samples": 1, "loss": 1' + b"0" * 400 + b"}",
    b'{"step": 1' + b"0" * 5000 + b', "epoch": 0, "samples": 1}',
]


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: repr(line[:40]))
def test_an_invalid_line_is_refused_in_the_middle_and_skipped_at_the_end(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    first, last = train(1).to_line(), train(2).to_line()
    path.write_bytes(first + line + b"\n" + last)
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 2 is not a metrics record") as refused:
        read(path)
    assert str(refused.value).isprintable()
    log = MetricsLog(path)
    with pytest.raises(UserError, match="line 2 is not a metrics record"):
        log.cut(2)
    assert path.read_bytes() == before, "nothing is lost by a refusal"
    assert log.cut(1) == 2, "what comes after the checkpoint goes anyway"
    log.close()
    assert path.read_bytes() == first

    path.write_bytes(first + line + b"\n")
    assert [record.step for record in read(path)] == [1]


def test_every_field_is_recorded() -> None:
    usage = Usage.of({"forward": 1.0, "backward": 3.0}, 10**9, 0.25)
    record = replace(val(0), lr=0.1, grad_norm=0.5, usage=usage)
    assert all(getattr(record, field.name) is not None for field in fields(record)), "give the new field a value here"
    assert Record.from_line(record.to_line()) == record


def test_the_usage_of_an_epoch_in_words() -> None:
    usage = Usage.of({"forward": 1.0, "backward": 3.0}, 10**9, 0.25)
    tiny = Usage.of({"forward": 0.995, "optimizer": 0.005}, 0, None)
    assert "optimizer" not in tiny.in_words(), "half a percent is not 0 %"
    assert usage.in_words() == "backward 75 %, forward 25 %; 1 GB of memory at most; 25 % of the device's arithmetic"
    both = total([usage, Usage.of({"forward": 4.0}, 2 * 10**9, None)])
    assert both == Usage(8.0, {"forward": 0.625, "backward": 0.375}, 2 * 10**9, 0.25)
    for line in (b'"usage":[]', b'"usage":{"seconds":-1}', b'"usage":{"seconds":1,"shares":{"data":"x"}}'):
        with pytest.raises(ValueError, match="is not a"):
            Record.from_line(train(3).to_line().replace(b"{", b"{" + line + b",", 1))


def test_fields_of_a_later_version_are_ignored() -> None:
    line = train(3).to_line().replace(b"{", b'{"mood":2.5,', 1)
    assert Record.from_line(line) == train(3)


def test_a_changed_value_is_reported_and_the_remains_of_a_kill_are_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append([train(1), train(2)])
    log.sync()
    log.append([train(3)])
    written = path.read_bytes()
    for left in (written, written[:-5]):
        path.write_bytes(left)
        assert difference(path) == ""
    path.write_bytes(written[: len(train(1).to_line())])
    assert difference(path) == "shorter"
    path.write_bytes(written.replace(b'"loss":1.5', b'"loss":1.4', 1))
    assert difference(path) == "changed"
    changed = MetricsLog(path)
    changed.cut(2)
    assert difference(path) == "", "what is resumed from is what was found"
    changed.close()
    assert difference(path) == ""
    path.with_name(".metrics.jsonl.sha256").unlink()
    assert difference(path) == "", "an earlier version wrote none"
