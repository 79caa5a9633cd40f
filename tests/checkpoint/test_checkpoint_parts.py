"""Checkpoints that several processes wrote in parts: read as one, and as well protected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_checkpoint import averaged, holds, names, save, save_in_parts, sign, state, tensors, weights

from cifar_dist import checkpoint
from cifar_dist.checkpoint import CheckpointError
from cifar_dist.checkpoint.difference import compare
from cifar_dist.checkpoint.marker import MARKER, OPTIMIZER, STATE, VERSION, VERSION_IN_PARTS, WEIGHTS, part_name
from cifar_dist.checkpoint.mean import mean_weights
from cifar_dist.checkpoint.parts import UnfinishedCheckpoint, write_part
from cifar_dist.checkpoint.tensor_files import WeightsCopy
from cifar_dist.distributed.host_copies import Deal, copy_to_host
from cifar_dist.errors import UserError

FILES = [
    f"{name}-{part}-of-2.safetensors"
    for name in ("weights", "averaged", "averaged_statistics", "optimizer")
    for part in (1, 2)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_are_read_as_the_files_of_one_process(folder: Path, tmp_path: Path, parts: int) -> None:
    """Also with more processes than tensors, some of which then write empty files."""
    whole = save(tmp_path / "other", 4)
    path = save_in_parts(folder, 4, parts, best=True)
    checkpoint.verify(path)
    assert holds(path, 4)
    assert [
        difference.largest for difference in compare(checkpoint.load(path).tensors, checkpoint.load(whole).tensors)
    ] == [0.0] * 6
    assert len(names(path)) == 4 * parts + 2
    assert (folder / "best").resolve() == (folder / "latest").resolve() == path
    assert checkpoint.choose(folder) == (path, [])
    WeightsCopy(checkpoint.evaluated_weights(path)).write(tmp_path / "copy.safetensors")
    assert load_file(tmp_path / "copy.safetensors").keys() == averaged(4).weights.keys()
    mean = mean_weights([path, save_in_parts(folder, 8, 2)])
    assert torch.equal(mean["conv.weight"], weights(6)["conv.weight"] // 2)
    copy = tmp_path / "branch" / "checkpoints" / path.name
    checkpoint.copy_to(path, copy.parent, state(4), None)
    checkpoint.verify(copy)
    assert (holds(copy, 4), names(copy)) == (True, names(path))
    assert not checkpoint.read_state(copy).is_best
    checkpoint.replace_state(path, state(4))
    checkpoint.verify(path)
    assert (holds(path, 4), names(path)) == (True, names(copy))
    assert not checkpoint.read_state(path).is_best


def test_a_step_is_saved_again_in_another_number_of_parts(folder: Path) -> None:
    save_in_parts(folder, 4, 2)
    path = save_in_parts(folder, 4, 3)
    assert len(names(path)) == 4 * 3 + 2
    assert holds(path, 4)


def remove(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "says"), [(remove, " is missing"), (change, " differs from what was saved"), (shorten, " bytes")]
)
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_used(
    folder: Path, name: str, damage: Callable[[Path], None], says: str
) -> None:
    save(folder, 1)
    damage(save_in_parts(folder, 2, 2) / name)
    with pytest.raises(UserError, match=rf"step-00000002: {name}.*; use another step: 1$"):
        checkpoint.named(folder, "latest")
    chosen, (note,) = checkpoint.choose(folder)
    assert chosen == folder / "step-00000001"
    assert note.startswith(f"checkpoint step-00000002 was set aside as step-00000002.damaged: {name}")
    assert says in note


ONE_BYTE = {"bytes": 1, "sha256": "0"}
PARTS_OF_TWO = [part_name(name, part, 2) for name in (WEIGHTS, OPTIMIZER) for part in (1, 2)]


@pytest.mark.parametrize(
    ("version", "files"),
    [
        (VERSION, [*PARTS_OF_TWO, STATE]),
        (VERSION_IN_PARTS, [WEIGHTS, OPTIMIZER, STATE]),
        (VERSION_IN_PARTS, [STATE]),
        (VERSION_IN_PARTS, [*PARTS_OF_TWO[:-1], STATE]),
        (VERSION_IN_PARTS, [*PARTS_OF_TWO[1:], STATE]),
        (VERSION_IN_PARTS, PARTS_OF_TWO),
        (VERSION_IN_PARTS, [*PARTS_OF_TWO, "averaged-1-of-2.safetensors", STATE]),
        (VERSION_IN_PARTS, [*PARTS_OF_TWO, STATE, "../../elsewhere"]),
        (VERSION_IN_PARTS, ["weights-/../../elsewhere", "optimizer-1-of-1.safetensors", STATE]),
        (VERSION_IN_PARTS, ["weights-1-of-2.safetensors", "weights-1-of-1.safetensors", *PARTS_OF_TWO[2:], STATE]),
    ],
)
def test_a_marker_of_other_parts_is_no_checkpoint(folder: Path, version: int, files: list[str]) -> None:
    path = save_in_parts(folder, 2, 2)
    (path / MARKER).write_text(json.dumps({"version": version, "files": dict.fromkeys(files, ONE_BYTE)}))
    with pytest.raises(CheckpointError, match="which is not a checkpoint"):
        checkpoint.verify(path)


def test_a_tensor_in_two_parts_is_refused(folder: Path) -> None:
    path = save_in_parts(folder, 2, 2)
    save_file(weights(2), path / part_name(WEIGHTS, 1, 2))
    save_file(weights(2), path / part_name(WEIGHTS, 2, 2))
    sign(path, version=VERSION_IN_PARTS)
    checkpoint.verify(path)
    with pytest.raises(CheckpointError, match=r"weights-2-of-2.safetensors repeats bn.num_batches_tracked, which"):
        checkpoint.load(path)


def test_a_process_that_does_not_share_the_folder_says_so(folder: Path) -> None:
    unfinished = UnfinishedCheckpoint(folder, state(2))
    elsewhere = Path("/nowhere") / unfinished.path.name
    with pytest.raises(UserError, match=r"process 2 of 2 does not see /nowhere, .*; choose a --run.dir on a file"):
        write_part(elsewhere, tensors(2), 2, 2)
    unfinished.discard()
    assert names(folder) == []


def test_no_process_keeps_more_than_its_share_and_the_largest_tensor() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(0, 1000, (200,), generator=generator).tolist()
    values = {str(number): torch.zeros(size) for number, size in enumerate(sizes)}
    kept = [copy_to_host(values.items(), Deal(rank, 4)) for rank in range(6)]
    assert sorted(name for part in kept for name in part) == sorted(values), "each once"
    assert kept[4:] == [{}, {}], "only the first four write"
    for part in kept[:4]:
        assert sum(len(value) for value in part.values()) <= sum(sizes) / 4 + max(sizes)
