"""A first exchange that takes long, as NCCL's between GPUs that cannot reach each other, says so and does not hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.running import PATIENCE, environment, finish, start

IMPATIENT = """
import os, sys
from cifar_dist.cli import run
from cifar_dist.distributed import first_exchange
from cifar_dist.process_exit import exit_with
notice = first_exchange.notice

def say(line):
    notice(line)
    open(os.environ["CIFAR_DIST_TEST_LATE_UNTIL"], "w").close()

first_exchange.notice = say
first_exchange._PATIENCE = 0.1
exit_with(lambda: run(["train", *sys.argv[1:]]))
"""

HANGS = """
import threading
from cifar_dist.distributed.first_exchange import first_exchange
with first_exchange(1, cpu=False):
    threading.Event().wait(60)
"""


def test_a_first_exchange_that_takes_long_is_reported_once_and_may_yet_end(tiny: Path, tmp_path: Path) -> None:
    late = Path(__file__).parents[1] / "support" / "patient_group.py"
    words = ["-c", IMPATIENT, str(tiny), "--train.engine", f"{late}:Late", "--train.epochs", "1"]
    first, second = finish(start(words, 2, {"CIFAR_DIST_TEST_LATE_UNTIL": str(tmp_path / "reported")}))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    said = "cifar-dist: the processes have joined, and their first exchange over gloo has not ended for 0 s; "
    assert first.stderr.count(said) == 1
    assert said not in second.stderr


def test_one_that_never_ends_ends_the_process_with_what_helps() -> None:
    ranks = [environment() | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    begun = [
        subprocess.Popen([sys.executable, "-c", HANGS], env=rank | meeting, stderr=subprocess.PIPE, text=True)
        for rank in ranks
    ]
    told = [process.communicate(timeout=PATIENCE)[1] for process in begun]
    assert [process.returncode for process in begun] == [1, 1]
    *_, last = told[0].splitlines()
    assert last.startswith(
        "cifar-dist: gave up after 1 s (run.join_timeout): the processes have joined, and their first"
    )
    assert "set NCCL_P2P_DISABLE=1" in last
    assert told[1] == ""
