"""A job in which a rank is stopped or hangs ends by itself; the watchdog names that rank and leaves all stacks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from support.failing_network import LINE, write_network
from support.running import TRAIN, finish, start, wait_for_records, wait_until

from cifar_dist.distributed.watchdog import Position, _say, name_behind
from cifar_dist.tracking import timeline

# Nothing for which the watchdog has patience, such as a checkpoint, must be under way when a rank is stopped.
IMPATIENT = [
    *("--train.epochs", "100000", "--run.stall_timeout", "4"),
    *("--checkpoint.every", "100000", "--checkpoint.every_steps", "0", "--eval.every", "100000"),
]


def test_a_stopped_rank_is_named_and_the_job_ends(tiny: Path, tmp_path: Path) -> None:
    """Including rank 0, which hosts the store through which the ranks communicate. Two jobs wait in parallel."""
    jobs = []
    for stopped in range(2):
        run = tmp_path / "runs" / f"stopped-{stopped}"
        running = start([TRAIN, str(tiny), *IMPATIENT, "--run.name", run.name], 2)
        wait_for_records(run, 20, running)
        running[stopped].send_signal(signal.SIGSTOP)
        jobs.append((stopped, run, running))
    for stopped, run, running in jobs:
        done = finish(running)
        assert [one.returncode for one in done] == [-signal.SIGKILL if rank == stopped else 124 for rank in range(2)]
        said = done[1 - stopped].stderr
        who = f"rank {stopped} (process {running[stopped].pid} on {os.uname().nodename}) does not answer, it is stopped"
        assert f"{who}; stacks: {run}/stalls/step-" in said, said
        (stacks,) = run.glob("stalls/step-*/*")
        assert stacks.name == f"rank-{1 - stopped}.txt"
        assert "most recent call first" in stacks.read_text()
        last = timeline.read(run / "timeline.jsonl")[-1]
        assert (last.kind, who in last.note) == ("stalled", True)


def test_a_lost_reader_does_not_keep_a_stalled_job_alive() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    before = os.dup(2)
    os.dup2(writer, 2)
    try:
        _say("no step has ended")  # an error would end the watchdog's thread, and nobody would end the job
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(writer)


def test_a_rank_that_is_stopped_during_a_save_needs_no_patience(tiny: Path, tmp_path: Path) -> None:
    """A checkpoint may take long, but a stopped process will never end it."""
    stop = "os.kill(os.getpid(), signal.SIGSTOP)"
    network = write_network(tmp_path / "net.py", stop, step=4, inputs="32 * 32 * channels", during="state_dict")
    words = ["--checkpoint.every_steps", "4", "--checkpoint.background", "false", "--model.name", network]
    done = finish(start([TRAIN, str(tiny), *IMPATIENT, *words], 2))
    assert [one.returncode for one in done] == [124, -signal.SIGKILL], done[0].stderr
    assert "does not answer, it is stopped; stacks: " in done[0].stderr


def test_a_rank_that_has_ended_needs_no_patience(tiny: Path, tmp_path: Path) -> None:
    """Gloo does not always notice it: a broadcast may wait until its timeout for what it has sent to that rank."""
    kill, wait = "os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(3600)"
    inputs = "32 * 32 * channels"
    network = write_network(tmp_path / "net.py", kill, step=4, inputs=inputs, during="state_dict", others=wait)
    words = ["--checkpoint.every_steps", "4", "--checkpoint.background", "false", "--model.name", network]
    done = finish(start([TRAIN, str(tiny), *IMPATIENT, *words], 2))
    assert [one.returncode for one in done] == [1, -signal.SIGKILL], done[0].stderr
    assert "does not answer, it has ended; stacks: " in done[0].stderr
    assert timeline.read(tmp_path / "runs" / "tiny" / "timeline.jsonl")[-1].kind == "failed"


def test_an_evaluation_that_takes_long_moves_from_view_to_view(tiny: Path, tmp_path: Path) -> None:
    """The first view may take as long as a first step, and all views of the second batch longer than the timeout."""
    (tmp_path / "slow.py").write_text(
        "from support.clock import WatchdogClock\nfrom torch import nn\n"
        "clock = WatchdogClock.install(timeout=2)\n"
        "class Net(nn.Linear):\n"
        "    looks = 0\n"
        "    def __init__(self, classes, channels):\n"
        "        super().__init__(32 * 32 * channels, classes)\n"
        "    def forward(self, images):\n"
        "        if len(images) in (40, 31):\n"
        "            clock.let_pass(2.5 if not self.looks else 0.5 if len(images) == 31 else 0)\n"
        "            self.looks += 1\n"
        "        return super().forward(images.flatten(1))\n"
    )
    words = ["--train.max_steps", "1", "--run.stall_timeout", "2", "--run.stall_factor", "1"]
    words += ["--eval.tta", "7", "--eval.batch_size", "40", "--model.name", f"{tmp_path}/slow.py:Net"]
    (done,) = finish(start([TRAIN, str(tiny), *words]))
    assert done.returncode == 0, done.stderr


def test_the_first_step_after_an_evaluation_that_was_interrupted_may_take_long(tiny: Path, tmp_path: Path) -> None:
    """The evaluation, of nine batches, comes first then, and the step compiles."""
    run = tmp_path / "runs" / "late"
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, signal\nfrom support.clock import WatchdogClock\nfrom torch import nn\n"
        "clock = WatchdogClock.install(timeout=2)\n"
        f"run = pathlib.Path({str(run)!r})\n"
        "is_resumed = (run / 'checkpoints').exists()\n"
        "class Net(nn.Linear):\n"
        "    evaluated = 0\n"
        "    def __init__(self, classes, channels):\n"
        "        super().__init__(32 * 32 * channels, classes)\n"
        "    def forward(self, images):\n"
        "        if self.training:\n"
        "            clock.let_pass(3 if is_resumed and self.evaluated == 9 else 0)\n"
        "            self.evaluated += self.evaluated == 9\n"
        "        elif run.exists() and not is_resumed:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        else:\n"
        "            self.evaluated += len(images) in (3, 4)\n"
        "        return super().forward(images.flatten(1))\n"
    )
    words = ["--run.name", run.name, "--train.epochs", "2", "--run.stall_timeout", "2", "--run.stall_factor", "1"]
    words += ["--eval.batch_size", "4", "--model.name", f"{tmp_path}/slow.py:Net"]
    for code in (75, 0):
        (done,) = finish(start([TRAIN, str(tiny), *words]))
        assert done.returncode == code, done.stderr


def test_an_evaluation_may_wait_long_for_the_checkpoint_before_it(tiny: Path, tmp_path: Path) -> None:
    """Of a file server that is slow: only an accuracy whose checkpoint exists is the best."""
    (tmp_path / "slow.py").write_text(
        "import os, threading\nfrom support.clock import WatchdogClock\nfrom torch import nn\n"
        "clock = WatchdogClock.install(timeout=2)\n"
        "fsync, waited = os.fsync, []\n"
        "def slow(file):\n"
        "    if threading.current_thread() is not threading.main_thread() and not waited:\n"
        "        waited.append(clock.let_pass(4))\n"
        "    fsync(file)\n"
        "os.fsync = slow\n"
        "def net(classes, channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32 * channels, classes))\n"
    )
    words = ["--train.epochs", "1", "--run.stall_timeout", "2", "--run.stall_factor", "1"]
    words += ["--checkpoint.every_steps", "12", "--model.name", f"{tmp_path}/slow.py:net"]
    (done,) = finish(start([TRAIN, str(tiny), *words]))
    assert done.returncode == 0, done.stderr


def test_a_save_may_take_long_after_a_recalibration(tiny: Path, tmp_path: Path) -> None:
    """Which moves from batch to batch, and ends the patience that the save began with."""
    (tmp_path / "slow.py").write_text(
        "import os\nfrom support.clock import WatchdogClock\nfrom torch import nn\n"
        "clock = WatchdogClock.install(timeout=2)\n"
        "fsync, waited = os.fsync, []\n"
        "def slow(file):\n"
        "    if 'checkpoints/.step' in os.readlink(f'/proc/self/fd/{file}') and not waited:\n"
        "        waited.append(clock.let_pass(4))\n"
        "    fsync(file)\n"
        "os.fsync = slow\n"
        "def net(classes, channels):\n"
        "    inputs = 32 * 32 * channels\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(inputs), nn.Linear(inputs, classes))\n"
    )
    words = ["--train.epochs", "1", "--run.stall_timeout", "2", "--run.stall_factor", "1", "--average.name", "ema"]
    words += ["--average.recalibrate", "40", "--checkpoint.background", "false", "--checkpoint.every_steps", "5"]
    (done,) = finish(start([TRAIN, str(tiny), *words, "--model.name", f"{tmp_path}/slow.py:net"]))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def hanging(tiny: Path, tmp_path: Path) -> list[str]:
    """The words that train a network which hangs on rank 1 in the fifth step."""
    network = write_network(tmp_path / "net.py", "threading.Event().wait()", step=5, inputs="32 * 32 * channels")
    return [TRAIN, str(tiny), *IMPATIENT, "--model.name", network]


def test_without_a_watchdog_an_exchange_ends_the_job(hanging: list[str], tmp_path: Path) -> None:
    waiting, hangs = start([*hanging, "--run.stall_timeout", "0", "--run.collective_timeout", "2"], 2)
    (done,) = finish([waiting])
    hangs.kill()
    finish([hangs])
    assert done.returncode == 1
    says = "rank 0 has waited 2 s for another rank (run.collective_timeout), which hangs or is slow, or this job "
    (line,) = [line for line in done.stderr.splitlines() if "plug-ins" not in line]
    assert line.startswith(f"cifar-dist: {says}"), done.stderr
    last = timeline.read(tmp_path / "runs" / "tiny" / "timeline.jsonl")[-1]
    assert (last.kind, says in last.note) == ("failed", True)


def test_a_rank_that_hangs_is_named_with_its_line(hanging: list[str], tmp_path: Path) -> None:
    """It still answers, so its stacks are written too. The checkpoint just before it does not make the job wait."""
    done = finish(start([*hanging, "--checkpoint.every_steps", "4"], 2))
    assert [one.returncode for one in done] == [124, 124], done[0].stderr
    assert f"rank 1 is behind, after step 4 at {tmp_path}/net.py" not in done[1].stderr, "one rank speaks for all"
    assert "rank 1 is behind, after step 4 at " in done[0].stderr
    (stacks,) = tmp_path.glob("runs/tiny/stalls/step-00000004/rank-1.txt")
    assert f'File "{tmp_path}/net.py", line {LINE} in forward' in stacks.read_text()


def test_a_process_that_was_itself_stopped_continues(tiny: Path, tmp_path: Path) -> None:
    """Like a suspended job, whose clock says that no step has ended for a long time."""
    run = tmp_path / "runs" / "tiny"
    (running,) = start([TRAIN, str(tiny), *IMPATIENT])
    wait_for_records(run, 5, [running])
    running.send_signal(signal.SIGSTOP)
    stopped = (run / "metrics.jsonl").read_bytes().count(b"\n")
    time.sleep(5)  # longer than the timeout, which is what it is about
    running.send_signal(signal.SIGCONT)
    wait_until(lambda: (run / "metrics.jsonl").read_bytes().count(b"\n") > stopped + 50, [running])
    running.terminate()
    assert finish([running])[0].returncode == 75


HERE = Position(7, "net.py:3 (forward)", waiting=False)
WAITING = Position(7, "learner.py:9 (train_step)", waiting=True)


@pytest.mark.parametrize(
    ("positions", "says"),
    [
        ({0: WAITING, 1: HERE}, "rank 1 is behind, after step 7 at net.py:3 (forward)"),
        ({0: Position(8, "x", waiting=False), 1: WAITING}, "rank 1 is behind, after step 7 at learner.py:9"),
        ({0: WAITING, 1: WAITING}, "no rank is behind: rank 0 at learner.py:9 (train_step), rank 1 at learner.py:9"),
        ({0: HERE}, "rank 0 is behind, after step 7 at net.py:3 (forward)"),
    ],
)
def test_the_rank_that_is_behind_is_named(positions: dict[int, Position], says: str) -> None:
    assert name_behind(positions, {}).startswith(says)
