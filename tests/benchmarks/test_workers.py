"""A script that names a GPU runs on a CPU, step by step when asked."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
import torch
from support.clock import Clock
from workers import Requests
from workers.script import NoMoreRequestsError, load, read_from

SCRIPT = """
import os
import sys
import torch
with open(sys.argv[0]) as file:
    code = file.read()

@torch.compile(mode="max-autotune")
def double(values):
    return values * 2

class CifarLoader:
    def __init__(self, path, train=True):
        self.images = torch.load(os.path.join(path, "train.pt"), map_location=torch.device("cuda")).half().pin_memory()

    def __len__(self):
        return 2

    def __iter__(self):
        yield from self.images.split(2)

def main(run, model):
    starter, ender = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    starter.record()
    seen = []
    try:
        for images in CifarLoader("cifar10"):
            seen.append(double(images))
            clock.now += 0.25
    finally:
        ender.record()
        torch.cuda.synchronize()
        SEEN.append((seen, starter.elapsed_time(ender)))

SEEN = []
if __name__ == "__main__":
    CifarNet().cuda()
"""


def test_a_script_takes_a_step_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], clock: Clock
) -> None:
    path = tmp_path / "speedrun.py"
    path.write_text(SCRIPT)
    torch.save(torch.arange(4.0), tmp_path / "train.pt")
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "stdin", io.StringIO("0\n0\n0\n"))
    read_end, write_end = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(write_end, "w"))
    requests = Requests()
    script = load(path, torch.bfloat16, compiled=False)
    read_from(script, str(tmp_path), requests)
    vars(script)["clock"] = clock
    script.main(1, torch.nn.Identity())
    with pytest.raises(NoMoreRequestsError):
        script.main(2, torch.nn.Identity())
    (first, whole), (second, part) = script.SEEN
    assert torch.cat(first).tolist() == [0, 2, 4, 6]
    assert first[0].dtype == torch.bfloat16
    assert (whole, part) == (500, 250), "milliseconds"
    assert torch.cat(second).tolist() == [0, 2], "no request, no step"
    answers = os.read(read_end, 10_000).decode().splitlines()
    assert answers == ["0.25"] * 3


def test_an_answer_is_sent_when_the_worker_is_idle(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Or its work between two steps would slow down the step of the other."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("0\n0\n"))
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write_end, "w"))
    requests = Requests()
    assert next(requests) == 0
    with requests.timed():
        clock.now += 0.25
    with pytest.raises(BlockingIOError):
        os.read(read_end, 100)
    clock.now += 1  # an evaluation
    assert next(requests) == 0
    assert os.read(read_end, 100) == b"0.25\n"


def test_what_has_no_replacement_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "speedrun.py"
    path.write_text("import torch\nstream = torch.cuda.Stream()\n")
    with pytest.raises(SystemExit, match=r"no replacement on a CPU for: stream = torch\.cuda\.Stream"):
        load(path, torch.bfloat16, compiled=False)
