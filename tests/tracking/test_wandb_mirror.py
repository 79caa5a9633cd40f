from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import psutil
import pytest
from support.recorded import FACTS, train, val
from support.running import PATIENCE, environment, wait_until
from support.wandb_offline import segments
from support.wandb_server import wandb_server

from cifar_dist.config import Config, WandbConfig
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import metrics, wandb_mirror
from cifar_dist.tracking import mirrors as mirrors_of
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.mirrors import Mirrors, wanted_mirrors
from cifar_dist.tracking.timeline import Status
from cifar_dist.tracking.tracker import Tracker
from cifar_dist.tracking.wandb_mirror import WandbMirror, _Identity, _last_process

OFFLINE = Config(tracking=WandbConfig(wandb="offline", project="a-project"))


@pytest.fixture(scope="module", autouse=True)
def own_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use W&B as on a new account: without the user's settings, and with its service ended afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for kind in ("CONFIG", "CACHE", "DATA"):
            patch.setenv(f"WANDB_{kind}_DIR", str(tmp_path_factory.mktemp(f"wandb-{kind.lower()}")))
        yield
        end_of_process()


@pytest.fixture
def warnings() -> list[str]:
    return []


def mirrored(folder: Path, config: Config, history: list[Record], warnings: list[str]) -> Mirrors:
    """Start the mirrors as a tracker does."""
    makers = wanted_mirrors(config.tracking)
    mirrors = Mirrors(makers, folder, config, FACTS, print, lambda *texts: print(*texts), warnings.append)
    mirrors.start(history)
    return mirrors


def end_of_process() -> None:
    """Do what W&B does when a process exits: its service writes the remaining data and ends."""
    import wandb

    wandb.teardown()


def lacks_rows(folder: Path) -> str:
    return f"no folder in {folder}/wandb has all rows of this run; resume it before you upload one"


def one_warning(warnings: list[str], what: str, *others: str) -> None:
    """Check that W&B was dropped with one warning, which ``others`` follow."""
    assert tuple(warnings[1:]) == others, warnings
    assert warnings[0].startswith(f"W&B could not {what}: ")
    assert "; the run continues without it, metrics.jsonl is complete" in warnings[0]
    assert "\n" not in warnings[0]


def test_a_resume_continues_the_same_run_on_its_own_axis(
    tmp_path: Path, warnings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mirrors = mirrored(tmp_path, OFFLINE, [], warnings)
    mirrors.train_steps([train(1), train(2), train(3), val(0), train(4)])
    mirrors.close("interrupted")
    end_of_process()

    history = [train(1), train(2), train(3), val(0)]  # step 4 came after the checkpoint
    mirrors = mirrored(tmp_path, OFFLINE, history, warnings)
    mirrors.train_steps([train(4), train(5)])
    mirrors.close("finished")
    end_of_process()

    assert warnings == []
    first, second = segments(tmp_path)
    assert first.run_id == second.run_id == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert (first.exit_code, second.exit_code) == (75, 0)
    program = Path(sys.executable).with_name("wandb")  # the environment may not be activated
    assert [line for line in capsys.readouterr().out.splitlines() if "sync" in line] == [
        f"upload this run to W&B with: {program} sync {folder}"
        for folder in sorted(tmp_path.glob("wandb/offline-run-*"))
    ]
    assert first.project == "a-project"
    assert first.config["facts"]["parameters"] == 1234
    assert first.config["train"]["epochs"] == 24
    # The newest segment alone contains the entire run, each step once, although step 4 was logged before.
    assert [row["step"] for row in second.rows] == [1, 2, 3, 3, 4, 5]
    assert second.rows[3]["val/accuracy"] == 0.75
    assert second.rows[4]["train/loss"] == 1.5
    assert second.rows[4]["train/lr"] == 0.1
    for segment in (first, second):
        assert segment.step_metric["step"] == ""
        assert segment.step_metric["*"] == "step"
        assert segment.step_metric["val/accuracy"] == "step"


def test_a_long_history_is_sent_in_calls_that_each_return_in_time(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(WandbMirror, "train_steps", lambda mirror, records: calls.append(len(records)))
    mirrors = mirrored(tmp_path, OFFLINE, [train(step) for step in range(1, 601)], warnings)
    mirrors.close("finished")
    end_of_process()
    assert (calls, warnings) == ([256, 256, 88], [])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for rows that never come."""
    monkeypatch.setattr(wandb_mirror, "_WRITE_SECONDS", 0.0)


def limit_files(bytes_: int) -> None:
    """Have W&B's service find the disk full where a file would become longer."""
    for process in psutil.Process().children(recursive=True):
        process.rlimit(resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("impatient")
def test_an_offline_folder_that_the_full_disk_kept_from_its_rows_is_not_to_be_uploaded(
    tmp_path: Path, warnings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B writes nothing more, even once there is room again, and finishes as if it had."""
    history = [train(step) for step in range(1, 1001)]
    mirrors = mirrored(tmp_path, OFFLINE, [], warnings)
    wait_until(lambda: _last_process(tmp_path / "wandb.json").project != "", [])
    limit_files(4000)
    mirrors.train_steps(history[:-1])
    log = tmp_path / "wandb" / "latest-run" / "logs" / "debug-internal.log"
    wait_until(lambda: "file too large" in log.read_text(), [])
    limit_files(resource.RLIM_INFINITY)
    mirrors.train_steps(history[-1:])
    mirrors.close("finished")
    end_of_process()
    one_warning(warnings, "finish", lacks_rows(tmp_path))
    assert " of 1,000 rows; " in warnings[0]
    assert "upload" not in capsys.readouterr().out
    assert _last_process(tmp_path / "wandb.json").mode == "", "W&B lacks rows"


@pytest.mark.usefixtures("impatient")
def test_an_offline_folder_that_was_deleted_is_not_to_be_uploaded(
    tmp_path: Path, warnings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mirrors = mirrored(tmp_path, OFFLINE, [], warnings)
    mirrors.train_steps([train(1)])
    wait_until(lambda: _last_process(tmp_path / "wandb.json").project != "", [])
    shutil.rmtree(tmp_path / "wandb")
    mirrors.close("finished")
    end_of_process()
    one_warning(warnings, "finish", lacks_rows(tmp_path))
    assert "upload" not in capsys.readouterr().out


@pytest.mark.parametrize("status", ["interrupted", "finished"])
def test_a_process_that_stops_before_its_offline_folder_has_all_rows_says_so_and_the_last_one_waits(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    """What is uploaded replaces what W&B has."""
    monkeypatch.setattr(mirrors_of, "_SILENCE", 0.0)
    monkeypatch.setattr(mirrors_of, "_CLOSE_SECONDS", 0.0)
    may_go_on = threading.Event()
    record = WandbMirror.train_steps

    def record_late(self: WandbMirror, records: Sequence[Record]) -> None:
        assert may_go_on.wait(PATIENCE)
        record(self, records)

    monkeypatch.setattr(WandbMirror, "train_steps", record_late)
    before = set(threading.enumerate())  # also of mirrors that hang forever, in other tests
    mirrors = mirrored(tmp_path, OFFLINE, [train(1), train(2)], warnings)
    if status == "finished":
        threading.Timer(0.5, may_go_on.set).start()
    mirrors.close(status)
    if status == "finished":
        assert warnings == []
        end_of_process()
        assert [row["step"] for row in segments(tmp_path)[0].rows] == [1, 2]
        return
    assert warnings == [
        "W&B could not finish within 0 s; the run continues without it, metrics.jsonl is complete",
        lacks_rows(tmp_path),
    ]
    may_go_on.set()
    wait_until(lambda: all(thread.name != "mirror" for thread in set(threading.enumerate()) - before), [])


def test_a_loss_that_is_not_finite_is_mirrored_too(tmp_path: Path, warnings: list[str]) -> None:
    mirrors = mirrored(tmp_path, OFFLINE, [], warnings)
    mirrors.train_steps([train(1, loss=math.nan), train(2, loss=math.inf), train(3)])
    mirrors.close("finished")
    end_of_process()
    assert warnings == []
    assert [row["step"] for row in segments(tmp_path)[0].rows] == [1, 2, 3]


@pytest.mark.parametrize(
    ("config", "variable", "last", "project"),
    [
        ("a-project", "mine", "theirs", "a-project"),
        ("", "mine", "", "mine"),
        ("", "mine", "theirs", "theirs"),  # a run stays where it began
        ("", "", "", "cifar-dist"),
    ],
)
def test_the_project_is_that_of_the_config_or_the_one_that_wandb_reads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
    config: str,
    variable: str,
    last: str,
    project: str,
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", variable)
    monkeypatch.setenv("WANDB_ENTITY", "a-team")
    if last:
        (tmp_path / "wandb.json").write_text(json.dumps({"id": "12345678", "mode": "offline", "project": last}))
    tracking = WandbConfig(wandb="offline", project=config)
    mirrors = mirrored(tmp_path, Config(tracking=tracking), [], warnings)
    mirrors.close("finished")
    end_of_process()
    assert warnings == []
    (segment,) = segments(tmp_path)
    assert (segment.project, segment.entity) == (project, "a-team")
    assert json.loads((tmp_path / "wandb.json").read_text())["project"] == project


def test_the_disabled_mode_writes_nothing(tmp_path: Path, warnings: list[str]) -> None:
    mirrors = mirrored(tmp_path, Config(), [train(1)], warnings)
    mirrors.train_steps([train(2)])
    mirrors.close("finished")
    assert (warnings, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize(("asked", "variable"), [("online", "offline"), ("online", "dryrun"), ("online", "disabled")])
def test_the_mode_in_the_environment_wins(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch, asked: Literal["online"], variable: str
) -> None:
    """Cluster jobs set it on nodes without internet access."""
    monkeypatch.setenv("WANDB_MODE", variable)
    mirrors = mirrored(tmp_path, Config(tracking=WandbConfig(wandb=asked)), [], warnings)
    mirrors.train_steps([train(1)])
    mirrors.close("finished")
    end_of_process()
    assert warnings == []
    assert len(segments(tmp_path)) == (variable != "disabled")


def test_an_unknown_mode_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match="WANDB_MODE is 'ofline'; use disabled, offline"):
        wanted_mirrors(OFFLINE.tracking)
    assert wanted_mirrors(Config().tracking) == {}, "a run without W&B does not mind"


def test_a_folder_that_wandb_cannot_write_is_one_warning_or_none(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "wandb").write_text("in the way")
    mirrors = mirrored(tmp_path, OFFLINE, [train(1)], warnings)
    mirrors.train_steps([train(2)])
    mirrors.train_steps([train(3)])
    mirrors.close("finished")
    one_warning(warnings, "start", lacks_rows(tmp_path))
    assert (tmp_path / "wandb").read_text() == "in the way"


def test_a_wandb_without_a_key_leaves_no_temporary_folder(tmp_path: Path, warnings: list[str]) -> None:
    mirrors = mirrored(tmp_path, Config(tracking=WandbConfig(wandb="online")), [], warnings)
    mirrors.close("finished")
    one_warning(warnings, "start")
    assert warnings[0].endswith(f"; to send W&B its rows once the run has ended: cifar-dist resume {tmp_path}")
    assert not list((tmp_path / "wandb").glob("tmp*"))


def test_a_process_that_ends_while_wandb_starts_leaves_its_id_to_the_next(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B may know the id by then: another one would split the run in two there."""
    import wandb

    asked: list[tuple[str, str]] = []

    def ended(*, id: str, project: str, **_: object) -> None:
        asked.append((id, project))
        raise RuntimeError("ended")

    monkeypatch.setattr(wandb, "init", ended)
    for project in ("misspelt", "mine"):
        monkeypatch.setenv("WANDB_PROJECT", project)
        mirrored(tmp_path, Config(tracking=WandbConfig(wandb="offline")), [], warnings).close("finished")
    (first, _), (second, then) = asked
    assert (second, then) == (first, "mine"), "a project that W&B refused is not kept"


def test_an_id_that_cannot_be_kept_is_one_warning(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "wandb.json").mkdir()
    mirrors = mirrored(tmp_path, OFFLINE, [], warnings)
    mirrors.train_steps([train(1)])
    mirrors.close("finished")
    one_warning(warnings, "start", lacks_rows(tmp_path))


def test_a_wandb_that_raises_while_logging_is_one_warning(tmp_path: Path, warnings: list[str]) -> None:
    import wandb

    mirrors = mirrored(tmp_path, OFFLINE, [], warnings)
    mirrors.train_steps([train(1)])
    wait_until(lambda: _last_process(tmp_path / "wandb.json").project != "", [])
    wandb.finish()  # from outside, so that later logging raises an error in W&B
    mirrors.train_steps([train(2)])
    mirrors.train_steps([train(3)])
    mirrors.close("finished")
    one_warning(warnings, "record training steps", lacks_rows(tmp_path))


@pytest.mark.parametrize(("end", "sent"), [("clean", [4]), ("fails", [1, 2, 3, 4]), ("killed", [1, 2, 3, 4])])
def test_an_online_run_receives_again_what_an_earlier_process_may_not_have_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str], end: str, sent: list[int]
) -> None:
    import wandb

    init = wandb.init  # a disk in place of the network
    monkeypatch.setattr(wandb, "init", lambda **settings: init(**{**settings, "mode": "offline", "resume": None}))
    online = Config(tracking=WandbConfig(wandb="online"))
    mirrors = mirrored(tmp_path, online, [], warnings)
    mirrors.train_steps([train(1)])
    wait_until(lambda: _last_process(tmp_path / "wandb.json").project != "", [])
    if end == "fails":
        wandb.finish()  # from outside, so that later logging raises an error in W&B
    mirrors.train_steps([train(2), train(3)])
    if end != "killed":
        mirrors.close("interrupted")
    end_of_process()

    mirrors = mirrored(tmp_path, online, [train(1), train(2), train(3)], warnings)
    mirrors.train_steps([train(4)])
    mirrors.close("finished")
    end_of_process()
    assert [row["step"] for row in segments(tmp_path)[-1].rows] == sent


def test_rows_that_could_not_be_uploaded_in_time_are_one_warning_and_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_mirror, "_FINISH_SECONDS", 1)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    online = Config(tracking=WandbConfig(wandb="online", project="a-project"))
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        server.upload_status = 503
        mirrors = mirrored(tmp_path, online, [], warnings)
        mirrors.train_steps([train(1), train(2)])
        mirrors.close("interrupted")
        end_of_process()
        one_warning(warnings, "finish")
        assert "not everything was uploaded within 1 s" in warnings[0]
        (segment,) = tmp_path.glob("wandb/run-*")
        assert f"wandb sync {segment}" in capsys.readouterr().out

        server.upload_status = 200
        monkeypatch.setattr(wandb_mirror, "_FINISH_SECONDS", 60)
        mirrors = mirrored(tmp_path, online, [train(1), train(2)], warnings)
        mirrors.train_steps([train(3)])
        mirrors.close("finished")
        end_of_process()
    assert len(warnings) == 1
    assert [row["step"] for row in server.rows] == [1, 2, 3]
    assert _last_process(tmp_path / "wandb.json").records == 3


@pytest.mark.usefixtures("impatient")
def test_rows_that_are_neither_uploaded_nor_in_the_folder_come_with_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_mirror, "_FINISH_SECONDS", 1)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        server.upload_status = 503
        mirrors = mirrored(tmp_path, Config(tracking=WandbConfig(wandb="online")), [], warnings)
        mirrors.train_steps([train(1)])
        wait_until(lambda: _last_process(tmp_path / "wandb.json").project != "", [])
        (segment,) = tmp_path.glob("wandb/run-*/run-*.wandb")
        segment.unlink()
        mirrors.close("interrupted")
        end_of_process()
    one_warning(warnings, "finish")
    assert f"{segment.parent} has 0 of 1 row; " in warnings[0]
    assert "wandb sync" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "way", "found"),
    [
        (401, "401 and shows nothing more of this run; log in again with wandb login --relogin", "training"),
        (403, "403 and shows nothing more of this run; check tracking.entity, ", "at the end"),
        (404, "404 and shows nothing more of this run; check tracking.entity, ", "at the end"),
    ],
)
def test_rows_that_the_server_refuses_are_one_warning_and_sent_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
    capsys: pytest.CaptureFixture[str],
    status: int,
    way: str,
    found: str,
) -> None:
    monkeypatch.setattr(wandb_mirror, "_CHECK_SECONDS", 0)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    online = Config(tracking=WandbConfig(wandb="online", project="a-project"))
    said = ""

    def trained(steps: list[Record]) -> str:
        nonlocal said
        mirrors.train_steps(steps)
        said += capsys.readouterr().out
        return said

    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        server.upload_status = status
        mirrors = mirrored(tmp_path, online, [], warnings)
        trained([train(1)])
        if found == "training":
            wait_until(lambda: "answers" in trained([train(2)]), [])
        mirrors.close("interrupted")
        end_of_process()
        said += capsys.readouterr().out
        (segment,) = tmp_path.glob("wandb/run-*")
        assert said.count("warning: ") == 1, said
        assert f"warning: W&B answers with HTTP status {way}" in said
        assert said.rstrip().endswith(f"wandb sync {segment}")
        assert _last_process(tmp_path / "wandb.json").records == 0

        server.upload_status = 200
        mirrors = mirrored(tmp_path, online, [train(1), train(2)], warnings)
        mirrors.train_steps([train(3)])
        mirrors.close("finished")
        end_of_process()
    assert warnings == []
    assert [row["step"] for row in server.rows] == [1, 2, 3]
    assert "wandb sync" not in capsys.readouterr().out


class InMemory:
    """What ``wandb.init`` returns, without its service."""

    dir, url = "wandb/latest-run/files", "https://wandb.example/it"

    def __init__(self, runs: list[InMemory], *, id: str, project: str, entity: str | None, **_: object) -> None:
        self.id, self.place = id, (entity, project)
        self.steps: list[float] = []
        runs.append(self)

    def define_metric(self, name: str, **_: object) -> None: ...
    def log(self, row: dict[str, float]) -> None:
        self.steps.append(row["step"])

    def mark_preempting(self) -> None: ...
    def finish(self, exit_code: int) -> None: ...


OURS = WandbConfig(wandb="online", project="ours", entity="us")


@pytest.mark.parametrize(
    ("second", "third", "place", "sent"),
    [
        ("online", OURS, ("us", "ours"), [3]),
        ("disabled", OURS, ("us", "ours"), [1, 2, 3]),
        ("online", WandbConfig(wandb="online"), ("us", "ours"), [3]),  # a run stays where it began
        ("online", replace(OURS, project="another"), ("us", "another"), [1, 2, 3]),
        ("online", replace(OURS, entity="another"), ("another", "ours"), [1, 2, 3]),
    ],
)
def test_an_online_run_receives_what_it_has_not_received(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    warnings: list[str],
    second: str,
    third: WandbConfig,
    place: tuple[str, str],
    sent: list[int],
) -> None:
    """Of three processes, the second trains with another mode, the third with other settings."""
    import wandb

    runs: list[InMemory] = []
    monkeypatch.setattr(wandb, "init", lambda **settings: InMemory(runs, **settings))
    monkeypatch.setattr(wandb, "setup", lambda settings: None)
    for step, (mode, tracking) in enumerate([("online", OURS), (second, OURS), ("online", third)], start=1):
        monkeypatch.setenv("WANDB_MODE", mode)
        history = [train(earlier) for earlier in range(1, step)]
        mirrors = mirrored(tmp_path, Config(tracking=tracking), history, warnings)
        mirrors.train_steps([train(step)])
        mirrors.close("interrupted")
    assert warnings == []
    assert (runs[-1].place, runs[-1].steps) == (place, sent)
    assert len({run.id for run in runs}) == 1


def test_a_copy_of_a_run_is_another_run_and_a_renamed_one_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    import wandb

    runs: list[InMemory] = []
    monkeypatch.setattr(wandb, "init", lambda **settings: InMemory(runs, **settings))
    monkeypatch.setattr(wandb, "setup", lambda settings: None)

    def trained(folder: Path, step: int) -> InMemory:
        config = Config(tracking=OURS if not runs else WandbConfig(wandb="online"))
        mirrors = mirrored(folder, config, [train(earlier) for earlier in range(1, step)], warnings)
        mirrors.train_steps([train(step)])
        mirrors.close("interrupted")
        assert warnings == []
        return runs[-1]

    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    first = trained(original, 1)
    shutil.copytree(original, copy)
    second = trained(copy, 2)
    assert second.id != first.id
    assert (second.place, second.steps) == (("us", "ours"), [1, 2])
    again = trained(original, 2)
    assert (again.id, again.steps) == (first.id, [2])
    moved = copy.rename(tmp_path / "moved")
    copy.symlink_to(moved)  # as of a run that was renamed while it was training
    third = trained(moved, 3)
    assert (third.id, third.steps) == (second.id, [3])
    copy.unlink()
    fourth = trained(moved.rename(copy), 4)
    assert (fourth.id, fourth.steps) == (second.id, [4])


def test_an_online_run_that_repeats_steps_does_not_send_the_history_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    import wandb

    runs: list[InMemory] = []
    monkeypatch.setattr(wandb, "init", lambda **settings: InMemory(runs, **settings))
    monkeypatch.setattr(wandb, "setup", lambda settings: None)
    history = [train(step) for step in range(1, 6)]  # until the last checkpoint
    for trained in ([*history, train(6), train(7)], [train(6)]):
        mirrors = mirrored(tmp_path, Config(tracking=OURS), history if runs else [], warnings)
        mirrors.train_steps(trained)
        mirrors.close("failed")
    assert runs[-1].steps == [6]


def test_a_run_continues_without_wandb(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("in the way")
    mirrors = wanted_mirrors(OFFLINE.tracking)
    tracker = Tracker(RunFolder(tmp_path), OFFLINE, facts=FACTS, resume_step=0, mirrors=mirrors)
    tracker.train_steps([train(1), train(2), train(3)])
    tracker.evaluation(val(0), best=True)
    tracker.finish("interrupted")
    assert len(metrics.read(tmp_path / "metrics.jsonl")) == 4
    log = (tmp_path / "training.log").read_text()
    assert log.count("warning: W&B could not start: ") == 1
    assert "interrupted after step 3 of 6" in log


@pytest.mark.parametrize(
    "broken", ["raise RuntimeError('no service\\nhere')", "raise ImportError('half installed')", ""]
)
def test_a_wandb_that_cannot_be_used_is_one_warning(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    import wandb  # noqa: F401 - the real one, which takes its place again after

    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(broken)  # empty: imports, and has nothing that is needed
    monkeypatch.syspath_prepend(tmp_path / "packages")
    for name in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    mirrors = mirrored(tmp_path, OFFLINE, [], warnings)
    mirrors.train_steps([train(1)])
    mirrors.close("finished")
    one_warning(warnings, "start", lacks_rows(tmp_path))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"id": 7}', '{"id": "../../etc", "mode": "offline", "project": "p"}', "[" * 100_000],
)
def test_an_untrusted_id_file_gets_a_new_id(tmp_path: Path, text: str) -> None:
    (tmp_path / "wandb.json").write_text(text)
    assert _last_process(tmp_path / "wandb.json") == _Identity()


@pytest.mark.parametrize("value", ["1e999", "null", "[]", "{}", '"x"', "true"])
def test_a_damaged_value_does_not_cost_the_id(tmp_path: Path, value: str) -> None:
    (tmp_path / "wandb.json").write_text(
        f'{{"id": "12345678", "mode": "online", "project": "p", "entity": "e", "records": {value}}}'
    )
    assert _last_process(tmp_path / "wandb.json") == _Identity("12345678", "online", "p", "e", 0)
    (tmp_path / "wandb.json").write_text('{"id": "12345678", "entity": null, "records": 3}')
    assert _last_process(tmp_path / "wandb.json") == _Identity("12345678", records=3)


def test_a_process_that_ends_at_once_leaves_no_temporary_folder(tmp_path: Path) -> None:
    code = """
import os, pathlib, sys
from support.recorded import FACTS
from cifar_dist.config import Config, WandbConfig
from cifar_dist.tracking.wandb_mirror import WandbMirror
mirror = WandbMirror(pathlib.Path(sys.argv[1]), Config(tracking=WandbConfig(wandb="offline")), FACTS)
mirror.start([])
mirror.close("finished")
os._exit(0)
"""
    for name in ("run", "tmp"):
        (tmp_path / name).mkdir()
    env = environment({"TMPDIR": str(tmp_path / "tmp")})
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not list((tmp_path / "run" / "wandb").glob("tmp*"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
