"""Of ranks that fail together, one reports it, though the host of the store ends."""

from __future__ import annotations

import select
import socket
import threading

import pytest
from support.running import PATIENCE, finish, free_port, start

from cifar_dist.launch import reporter
from cifar_dist.launch.reporter import is_first, is_reporter

ASKING = """
import os, sys
from datetime import timedelta
import torch.distributed as dist
from cifar_dist.launch import reporter

place, port, rank = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["RANK"])
store = dist.TCPStore(place, port, 2, is_master=rank == 0)  # until both are there
keys = reporter.open_store("a test/0", place, port)
keys.set_timeout(timedelta(minutes=5))  # on a busy machine the other rank may be late
question, asking, later, key = sys.argv[1:]
if len(asking) == 2:
    reporter._WAIT_SECONDS = 300.0
if rank == int(later):
    keys.get(key)
if str(rank) in asking:
    keys.set("asks", "")
    print(getattr(reporter, question)("a test"))
"""


@pytest.mark.parametrize(
    ("question", "asking", "later", "key", "answers"),
    [
        ("is_first", "01", "1", "ranks", ["True", "False"]),
        ("is_first", "01", "0", "ranks", ["False", "True"]),
        ("is_reporter", "01", "1", "main", ["True", "False"]),
        ("is_reporter", "01", "0", "asks", ["True", "False"]),
        ("is_reporter", "1", "0", "others", ["", "True"]),
    ],
)
def test_one_of_the_ranks_that_fail_together_reports_it(
    question: str, asking: str, later: str, key: str, answers: list[str]
) -> None:
    """The rank that is ``later`` waits for a ``key`` that the other sets when it asks."""
    done = finish(start(["-c", ASKING, question, asking, later, key], 2))
    assert [each.stdout.strip() for each in done] == answers, "".join(each.stderr for each in done)


def test_a_process_that_cannot_ask_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_first("a test")
    assert is_reporter("a test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert is_first("a test")
    assert is_reporter("a test")


def test_a_rank_0_that_ends_is_not_asked(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The system still accepts connections to it; torch would try again for twenty seconds and print its own stack."""
    host = socket.create_server(("127.0.0.1", free_port()))
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(host.getsockname()[1]))

    def end() -> None:
        select.select([host], [], [])  # until somebody connects
        host.close()

    monkeypatch.setattr(reporter, "_END_SECONDS", PATIENCE)  # a busy machine may end it late
    ending = threading.Thread(target=end)
    ending.start()
    assert is_first("a test")
    ending.join()
    assert capfd.readouterr().err == ""
