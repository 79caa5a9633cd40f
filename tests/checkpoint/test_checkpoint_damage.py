"""Damaged and forged checkpoints: an incomplete one is never loaded, and a forged one is a one-line error."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.file_limit import error_of
from support.small_checkpoint import CONTENT, PARTS, holds, names, save, sign, state
from torch import nn

from cifar_dist import checkpoint
from cifar_dist.checkpoint import CheckpointError, NewerCheckpointError
from cifar_dist.checkpoint.marker import MARKER, OPTIMIZER, STATE, VERSION, VERSION_IN_PARTS, WEIGHTS
from cifar_dist.errors import UserError
from cifar_dist.step_folder import step_name

NUMBERS = count()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair") / "checkpoints"
    save(folder, 1, best=True)
    save(folder, 2)
    return folder


def copied(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp() / f"copy-{next(NUMBERS)}"
    shutil.copytree(pair, folder, symlinks=True)
    return folder


def flip(data: bytes, place: float, bit: int) -> bytes:
    position = min(int(place * len(data)), len(data) - 1)
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(PARTS), st.sampled_from(["flip", "truncate"]), st.floats(0, 1), st.integers(0, 7))
def test_a_flipped_bit_or_a_truncated_file_is_never_loaded(
    pair: Path, tmp_path_factory: pytest.TempPathFactory, part: str, how: str, place: float, bit: int
) -> None:
    folder = copied(pair, tmp_path_factory)
    path = folder / "step-00000002" / part
    data = path.read_bytes()
    # The marker ends in a line feed, without which it says the same.
    path.write_bytes(flip(data, place, bit) if how == "flip" else data[: int(place * (len(data) - 2))])
    try:
        checkpoint.verify(folder / "step-00000002")
    except CheckpointError:
        pass
    except NewerCheckpointError:
        assert part == MARKER, "one bit makes a 2 a 3 or a 6"
        return
    else:
        raise AssertionError("it was believed")
    chosen, notes = checkpoint.choose(folder)
    assert chosen == folder / "step-00000001"
    assert holds(chosen, 1)
    assert len(notes) == 1
    assert notes[0].startswith("checkpoint step-00000002 was set aside as step-00000002.damaged: ")
    assert "\n" not in notes[0]
    assert names(folder) == ["best", "latest", "step-00000001", "step-00000002.damaged"]
    shutil.rmtree(folder)


def remove(path: Path) -> None:
    path.unlink()


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", [remove, become_a_folder, become_a_dangling_link])
def test_a_checkpoint_with_a_missing_file_is_never_loaded(
    folder: Path, part: str, damage: Callable[[Path], None]
) -> None:
    save(folder, 1)
    damage(save(folder, 2) / part)
    assert checkpoint.choose(folder)[0] == folder / "step-00000001"


def unreadable(folder: Path, step: int) -> Path:
    """Make a checkpoint unreadable: /proc/self/mem answers with an input/output error."""
    path = save(folder, step)
    (path / WEIGHTS).write_bytes(b"")
    sign(path)
    (path / WEIGHTS).unlink()
    (path / WEIGHTS).symlink_to("/proc/self/mem")
    return path


def test_a_read_error_is_not_damage(folder: Path) -> None:
    save(folder, 1)
    path = unreadable(folder, 2)
    before = names(folder)
    for read in (checkpoint.choose, lambda _: checkpoint.verify(path), lambda _: checkpoint.named(folder, "2")):
        with pytest.raises(OSError, match="Input/output error"):
            read(folder)
    assert names(folder) == before


def test_an_unreadable_folder_is_not_an_empty_one(folder: Path) -> None:
    folder.symlink_to(folder)
    with pytest.raises(OSError, match="symbolic links"):
        checkpoint.choose(folder)


def newer(folder: Path, step: int) -> Path:
    path = save(folder, step)
    sign(path, version=VERSION_IN_PARTS + 1)
    return path


def test_a_checkpoint_of_a_newer_version_stops_the_run_and_is_kept(folder: Path) -> None:
    save(folder, 1)
    newer(folder, 2)
    before = names(folder)
    with pytest.raises(NewerCheckpointError, match="has version 4 of the layout, this program reads versions up to 3"):
        checkpoint.choose(folder)
    assert names(folder) == before


def test_a_checkpoint_that_cannot_be_read_does_not_hide_the_best(folder: Path) -> None:
    save(folder, 1, best=True)
    newer(folder, 2)
    remove(save(folder, 3) / STATE)
    assert checkpoint.named(folder, "best").name == "step-00000001"
    for step in (1, 2):
        shutil.rmtree(folder / step_name(step))
    with pytest.raises(UserError, match=r"step-00000003: state\.json is missing; no other is intact"):
        checkpoint.named(folder, "best")


def test_neither_a_newer_nor_an_unreadable_checkpoint_is_suggested(folder: Path) -> None:
    save(folder, 1)
    newer(folder, 2)
    unreadable(folder, 3)
    remove(save(folder, 4) / WEIGHTS)
    with pytest.raises(UserError, match=r"use another step: 1$"):
        checkpoint.named(folder, "4")


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over(folder: Path) -> None:
    for step in (1, 2):
        remove(save(folder, step) / STATE)
    before = names(folder)
    for _ in range(2):
        with pytest.raises(UserError, match=r"has no intact checkpoint \(step-00000002: state.json is missing; step-"):
            checkpoint.choose(folder)
        assert names(folder) == before
    shutil.rmtree(folder / "step-00000001")
    (folder / "step-00000002").rename(folder / "step-00000002.damaged")  # as earlier versions left them
    with pytest.raises(UserError, match=r"no intact checkpoint \(step-00000002.damaged was set aside; "):
        checkpoint.choose(folder)
    shutil.rmtree(folder / "step-00000002.damaged")
    with pytest.raises(UserError, match="latest points at one that does not exist"):
        checkpoint.choose(folder)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"no intact checkpoint \(all were deleted\)"):
        checkpoint.choose(folder)


def test_a_damaged_checkpoint_is_not_said_to_be_missing(folder: Path) -> None:
    remove(save(folder, 1, best=True) / WEIGHTS)
    with pytest.raises(UserError, match=r"\(step-00000001: weights\.safetensors is missing\)$"):
        checkpoint.choose(folder)


def test_a_folder_that_was_copied_into_and_never_saved_to_is_that_of_a_new_run(folder: Path, tmp_path: Path) -> None:
    checkpoint.copy_to(save(folder, 1), tmp_path / "branch", state(1), None)
    shutil.rmtree(tmp_path / "branch")  # as a kill leaves it
    assert checkpoint.choose(tmp_path / "branch") == (None, [])


def test_a_damaged_checkpoint_stays_in_the_folder_that_another_one_is_copied_to(folder: Path, tmp_path: Path) -> None:
    aside = tmp_path / "branch" / "step-00000009.damaged"
    aside.mkdir(parents=True)
    (aside / WEIGHTS).write_bytes(b"half of i")
    checkpoint.copy_to(save(folder, 1), tmp_path / "branch", state(1), None)
    assert (aside / WEIGHTS).read_bytes() == b"half of i"
    assert checkpoint.set_aside(tmp_path / "branch") == [aside]
    assert checkpoint.named(tmp_path / "branch", "latest").name == "step-00000001"


def test_a_copy_that_is_not_what_was_saved_is_not_kept(folder: Path, tmp_path: Path) -> None:
    path = save(folder, 1)
    (path / WEIGHTS).write_bytes(b"changed while it was copied")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors has 27 of "):
        checkpoint.copy_to(path, tmp_path / "branch", state(1), None)
    assert not (tmp_path / "branch").exists()


def test_a_copy_fails_by_a_full_disk_or_because_its_original_was_deleted(folder: Path, tmp_path: Path) -> None:
    path = save(folder, 1)
    said = error_of(lambda: checkpoint.copy_to(path, tmp_path / "branch", state(1), None), limit=50)
    assert said == f"[Errno 27] File too large: '{tmp_path / 'branch'}'"
    remove(path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"step-00000001 was deleted while it was copied; run the same command"):
        checkpoint.copy_to(path, tmp_path / "branch", state(1), None)
    assert not (tmp_path / "branch").exists()


def test_a_checkpoint_renamed_to_another_step_is_refused(folder: Path) -> None:
    shutil.copytree(save(folder, 1), folder / "step-00000009")
    for read in (checkpoint.read_state, checkpoint.load):
        with pytest.raises(CheckpointError, match=r"is a copy of step-00000001: its state.json says step 1"):
            read(folder / "step-00000009")
    with pytest.raises(UserError, match="is a copy of step-00000001"):
        checkpoint.named(folder, "latest")
    chosen, notes = checkpoint.choose(folder)
    assert chosen == folder / "step-00000001"
    assert notes[0].startswith("checkpoint step-00000009 was set aside as step-00000009.damaged: ")


def test_damaged_checkpoints_are_set_aside_until_one_is_intact(folder: Path) -> None:
    for step in (1, 2, 3):
        save(folder, step)
    (folder / "step-00000003.damaged").mkdir()  # of an earlier start
    remove(folder / "step-00000003" / MARKER)
    remove(folder / "step-00000002" / OPTIMIZER)
    chosen, notes = checkpoint.choose(folder)
    assert chosen == folder / "step-00000001"
    assert notes == [
        "checkpoint step-00000003 was set aside as step-00000003.damaged-2: "
        "it has no COMPLETE.json, so it was never finished",
        "checkpoint step-00000002 was set aside as step-00000002.damaged: optimizer.safetensors is missing",
    ]
    assert checkpoint.choose(folder) == (chosen, [])
    assert checkpoint.choose(folder / "nowhere") == (None, [])


# ---- forged content -----------------------------------------------------------------------------------------------


RIGHT = {
    "step": 7,
    "epochs_evaluated": 1,
    "val_accuracy": 0.5,
    "best_val_accuracy": 0.5,
    "is_best": False,
    "loss_scaler": {"scale": 65536.0},
}


def almost_right(**changes: object) -> str:
    return json.dumps(RIGHT | changes)


HOSTILE_STATES = [
    "",
    "null",
    "[]",
    "{}",
    '{"step": 7}',
    *(json.dumps({key: value for key, value in RIGHT.items() if key != missing}) for missing in RIGHT),
    almost_right(step=None),
    almost_right(step="7"),
    almost_right(step=7.0),
    almost_right(step=True),
    almost_right(step=-1),
    almost_right().replace("7", "1e999"),
    almost_right().replace("7", "9" * 10_000),
    almost_right(version=2),
    almost_right(best_val_accuracy=math.nan),
    almost_right(best_val_accuracy="high"),
    almost_right(best_val_accuracy=-1),
    almost_right(val_accuracy=1e308),
    almost_right(epochs_evaluated=-3),
    almost_right(is_best=1),
    almost_right(is_best=None),
    almost_right(loss_scaler=[1]),
    almost_right(loss_scaler=None),
    almost_right(loss_scaler={"scale": "x"}),
    almost_right()[:-1],
    "[" * 100_000,
    '{"a":' * 100_000,
    almost_right() + "\0",
    "\ufeff{}",
]


@pytest.mark.parametrize("text", HOSTILE_STATES, ids=range(len(HOSTILE_STATES)))
def test_a_hostile_state_is_a_clean_error_and_set_aside(folder: Path, text: str) -> None:
    path = save(folder, 7)
    (path / STATE).write_text(text)
    sign(path)
    checkpoint.verify(path)
    for read in (checkpoint.load, checkpoint.read_state):
        with pytest.raises(CheckpointError, match=STATE) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    save(folder, 6)
    assert checkpoint.choose(folder)[0] == folder / "step-00000006"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["version", *RIGHT, "files", "new"])


@settings(deadline=None, max_examples=100)
@given(content=st.dictionaries(KEYS, JSON).map(lambda some: RIGHT | some) | st.dictionaries(KEYS, JSON) | JSON)
def test_any_json_is_a_state_a_marker_or_a_clean_error(
    pair: Path, tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    path = copied(pair, tmp_path_factory) / "step-00000002"
    (path / STATE).write_text(json.dumps(content))
    try:
        state = checkpoint.read_state(path)
    except CheckpointError:
        pass
    else:
        assert type(state.step) is int
        assert 0 <= state.step < 10**12
        assert 0 <= state.epochs_evaluated < 10**12
        assert type(state.is_best) is bool
    (path / MARKER).write_text(json.dumps(content))
    with pytest.raises((CheckpointError, NewerCheckpointError)):
        checkpoint.verify(path)
    shutil.rmtree(path.parent)


ONE_BYTE = {"bytes": 1, "sha256": "0"}
FACTS = {WEIGHTS: ONE_BYTE, OPTIMIZER: ONE_BYTE}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"version": VERSION, "files": FACTS | {STATE: {"bytes": math.inf, "sha256": "0"}}}),
        json.dumps({"version": VERSION, "files": FACTS | {STATE: {"bytes": None, "sha256": "0"}}}),
        json.dumps({"version": VERSION, "files": FACTS}),
        json.dumps({"version": VERSION, "files": FACTS | {STATE: ONE_BYTE, "../../elsewhere": ONE_BYTE}}),
        json.dumps({"version": 1, "files": FACTS | {STATE: ONE_BYTE}}),
        json.dumps({"version": 0, "files": FACTS | {STATE: ONE_BYTE}}),
        json.dumps({"version": True, "files": FACTS | {STATE: ONE_BYTE}}),
        json.dumps({"version": VERSION, "files": {}}),
        json.dumps({"version": VERSION, "files": list(FACTS)}),
        json.dumps({"version": "1\n" * 99, "files": FACTS}),
        "[" * 100_000,
        "1" * 10_000,
    ],
)
def test_a_hostile_marker_is_a_clean_error(folder: Path, text: str) -> None:
    path = save(folder, 7)
    (path / MARKER).write_text(text)
    with pytest.raises(CheckpointError, match=MARKER.replace(".", r"\.") + "|its version") as caught:
        checkpoint.verify(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}"])
@pytest.mark.parametrize("part", [part for part in CONTENT if part != STATE])
def test_weights_in_another_format_are_a_clean_error(folder: Path, part: str, data: bytes) -> None:
    path = save(folder, 7)
    (path / part).write_bytes(data)
    sign(path)
    checkpoint.verify(path)
    with pytest.raises(CheckpointError, match=f"step-00000007/{part} cannot be read") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_a_user_error(folder: Path) -> None:
    path = save(folder, 7)
    with pytest.raises(UserError, match="step-00000007 has the weights of another model: ") as caught:
        checkpoint.load_weights(nn.Linear(2, 2), checkpoint.load(path).tensors.weights, path)
    assert "\n" not in str(caught.value)
