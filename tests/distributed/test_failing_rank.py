"""A rank that fails ends at once, even if leaving the process group would wait for the other ranks."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from support import failing_nccl, patient_group
from support.running import TRAIN, finish, start, train
from torch.distributed import DistBackendError

from cifar_dist.distributed.collective_timeout import waits_explained
from cifar_dist.distributed.out_of_memory import explained
from cifar_dist.errors import LostRankError, OutOfMemoryError, RankError, may_pass
from cifar_dist.tracking import timeline


@pytest.mark.parametrize("rank", [0, 1])
def test_an_image_that_one_rank_cannot_read_is_named_and_the_other_rank_says_whom_it_lost(
    tiny: Path, digits: Path, tmp_path: Path, rank: int
) -> None:
    """Damaged before it was packed, so that no checksum tells. Rank 1 evaluates the second twenty images."""
    data = shutil.copytree(digits, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    del manifest["sha256"]
    (shard,) = manifest["splits"]["val"]
    content = bytearray((data / shard["name"]).read_bytes())
    begin, size = (shard[f"image_{what}"][5 + 25 * rank] for what in ("offset", "size"))
    content[begin : begin + size] = bytes(size)
    (data / shard["name"]).write_bytes(content)
    shard["sha256"] = hashlib.sha256(content).hexdigest()
    (data / "manifest.json").write_text(json.dumps(manifest))
    words = [TRAIN, str(tiny), "--data.path", str(data), "--data.resident_mb", "0", "--eval.batch_size", "20"]
    done = finish(start(words, 2))
    failed, other = done[rank], done[1 - rank]
    assert (failed.returncode, failed.stderr.count("cifar-dist: ")) == (2, 1), failed.stderr
    assert f"{data}/val-000000.tar" in failed.stderr
    assert other.returncode == 1
    assert "Traceback" not in other.stderr, other.stderr
    assert "frame #" not in other.stderr, other.stderr
    assert f"cifar-dist: rank {1 - rank} has lost its connection to another rank, which has failed" in other.stderr
    last = timeline.read(tmp_path / "runs" / "tiny" / "timeline.jsonl")[-1]
    assert last.kind == "failed"


UNREADABLE = """
import errno, os, sys
from cifar_dist.cli import run
from cifar_dist.process_exit import exit_with
from cifar_dist.training.learner import Learner
first_images = Learner._first_images
def fail(*_):
    raise OSError(errno.EIO, "Input/output error")
def unreadable(self):
    os.pread = fail
    return first_images(self)
if os.environ["RANK"] == "1":
    Learner._first_images = unreadable
exit_with(lambda: run(["train", *sys.argv[1:]]))
"""


def test_images_for_the_first_weights_that_one_rank_cannot_read_are_named(tiny: Path) -> None:
    """The other rank has broadcast weights, which this one took for another message."""
    words = ["-c", UNREADABLE, str(tiny), "--model.name", "speed-net", "--data.resident_mb", "0"]
    done = finish(start(words, 2))
    assert [each.returncode for each in done] == [1, 1], done[0].stderr + done[1].stderr
    assert "/train-00000" in done[0].stderr
    assert "cannot be read (Input/output error); check its disk or file server" in done[0].stderr
    assert done[0].stderr.count("\n") == 1
    assert not done[1].stderr


DRAWN_BY_NOBODY = """
import os, sys
from cifar_dist.cli import run
from cifar_dist.process_exit import exit_with
from cifar_dist.verbs import train
train.draw_if_outdated = lambda _: os._exit(0)
exit_with(lambda: run(["train", *sys.argv[1:]]))
"""


def test_the_exit_code_of_a_run_does_not_depend_on_its_report(tiny: Path) -> None:
    """Rank 0 draws it when the code is agreed, and its launcher may end it."""
    done = finish(start(["-c", DRAWN_BY_NOBODY, str(tiny), "--train.epochs", "1"], 2))
    assert [each.returncode for each in done] == [0, 0], done[1].stderr
    assert not done[1].stderr


@pytest.mark.parametrize(("engine", "codes", "left"), [("Failing", [1, 1], 0), ("Patient", [0, 0], 2)])
def test_only_a_successful_rank_leaves_the_group_collectively(
    tiny: Path, engine: str, codes: list[int], left: int
) -> None:
    words = [TRAIN, str(tiny), "--train.epochs", "1", "--train.engine", f"{patient_group.__file__}:{engine}"]
    running = start(words, 2)
    done = finish(running[::-1])[::-1]  # rank 1 first: the failure of rank 0 is an effect of its end
    assert [one.returncode for one in done] == codes, done[1].stderr
    assert "".join(one.stdout for one in done).count("waiting for the other ranks") == left
    assert ("RuntimeError: rank 1 broke" in done[1].stderr) == (engine == "Failing")


@pytest.mark.parametrize("text", [failing_nccl.LOST, failing_nccl.NO_ID], ids=["exchange", "start"])
def test_a_rank_that_nccl_has_lost_is_reported_as_one_that_gloo_has(text: str) -> None:
    with pytest.raises(LostRankError, match="rank 0 has lost its connection to another rank") as error:
        fail_with(text)
    assert may_pass(error.value)


@pytest.mark.parametrize(
    ("text", "reason", "remedy"),
    [
        (
            failing_nccl.SHARED_MEMORY,
            "Error while creating shared memory segment /dev/shm/nccl-",
            "--shm-size=1g or --",
        ),
        (failing_nccl.UNREACHABLE, "socketStartConnect: Connect to 10.0.0.7<40123> failed : No route to host)", "INFO"),
        (failing_nccl.NO_CAUSE, "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, inv", "INFO"),
    ],
    ids=["shared memory", "network", "no cause"],
)
def test_another_error_of_nccl_is_one_line_with_its_cause(text: str, reason: str, remedy: str) -> None:
    with pytest.raises(RankError) as error:
        fail_with(text)
    message = str(error.value)
    assert message.startswith("NCCL failed on rank 0 of ")
    assert f"({reason}" in message
    assert remedy in message.rpartition("); ")[2]
    assert "\n" not in message
    assert not may_pass(error.value)


def test_a_lack_of_memory_that_nccl_meets_is_explained_as_one() -> None:
    with pytest.raises(OutOfMemoryError, match="ran out of memory in a test"), explained(lambda: "in a test"):
        fail_with(failing_nccl.NO_MEMORY)


def test_the_first_exchange_that_fails_is_one_line_of_all_ranks(tiny: Path) -> None:
    """As in a container with little shared memory. The engine is under construction then."""
    done = train(str(tiny), "--train.engine", f"{failing_nccl.__file__}:FirstExchange", processes=2)
    assert [one.returncode for one in done] == [1, 1]
    (line,) = [line for one in done for line in one.stderr.splitlines() if "plug-ins" not in line]
    assert "NCCL failed on rank " in line


def fail_with(text: str) -> None:
    with waits_explained(1800):
        raise DistBackendError(text)
