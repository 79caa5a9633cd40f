"""A rank that fails ends at once, even if leaving the process group would wait for the other ranks."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from support import patient_group
from support.running import TRAIN, finish, start

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
