"""The watchdog judges and ends a process only where its number means that process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.running import wait_until

from cifar_dist.distributed.place import Place


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], text=True) as started:
        yield started
        started.kill()


def test_a_process_of_this_machine(process: subprocess.Popen[str]) -> None:
    place = replace(Place.here(), process=process.pid)
    assert not place.is_stopped()
    process.send_signal(signal.SIGSTOP)
    wait_until(place.is_stopped, [process])
    assert place.describe_status() == "it is stopped"
    assert not place.has_ended()
    place.kill()
    wait_until(place.has_ended, [])  # before its parent has asked how
    assert process.wait() == -signal.SIGKILL
    assert place.has_ended()
    assert place.describe_status() == "it has ended"
    place.kill()  # an ended one is no error


def test_a_process_of_another_machine_or_container_of_the_same_name(process: subprocess.Popen[str]) -> None:
    place = replace(Place.here(), numbers="of another container", process=process.pid)
    process.send_signal(signal.SIGSTOP)
    place.kill()
    assert process.poll() is None
    assert not place.has_ended()
    assert not place.is_stopped()
    assert place.describe_status() == ""
