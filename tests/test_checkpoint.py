"""Checkpoints under every fault: what is believed is whole, and what was whole is never lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from crashing import every_death
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cifar_dist import checkpoint
from cifar_dist.checkpoint import MARKER, MODEL, OPTIMIZER, STATE, CheckpointError
from cifar_dist.errors import UserError
from cifar_dist.files import sha256

NUMBERS = count()
PARTS = (MODEL, OPTIMIZER, STATE, MARKER)


def weights(step: int) -> dict[str, Tensor]:
    return {"conv.weight": torch.arange(6.0).reshape(2, 3) * step, "bn.num_batches_tracked": torch.tensor(step)}


def optimizer(step: int) -> dict[str, Tensor]:
    return {"momentum_buffer/conv.weight": torch.full((2, 3), 1 / (step + 1))}


def save(folder: Path, step: int, *, best: bool = False, **state: object) -> Path:
    content = {"step": step, "evaluated": 1, "val_accuracy": 0.5, "best": 0.5, "scaler": {}, **state}
    return checkpoint.save(folder, weights(step), optimizer(step), content, best=best)


def holds(path: Path, step: int) -> bool:
    loaded = checkpoint.load(path)
    return (
        loaded.step == step
        and all(torch.equal(loaded.model[name], value) for name, value in weights(step).items())
        and all(torch.equal(loaded.optimizer[name], value) for name, value in optimizer(step).items())
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


# ---- save and load ----------------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_saved_bit_for_bit(folder: Path) -> None:
    model = {
        "nan": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "half": torch.randn(3).bfloat16(),
        "long": torch.tensor(2**62),
        "transposed": torch.arange(6.0).reshape(2, 3).t().contiguous(),
        "empty": torch.empty(0, 3),
    }
    state = {"step": 7, "evaluated": 2, "val_accuracy": 1 / 3, "best": 0.5, "scaler": {"scale": 65536.0, "n": 2000}}
    path = checkpoint.save(folder, model, optimizer(7), state, best=True)
    checkpoint.verify(path)
    loaded = checkpoint.load(path)
    assert path == loaded.path == folder / "step-00000007"
    for name, value in model.items():
        assert loaded.model[name].dtype == value.dtype
        assert loaded.model[name].shape == value.shape
        assert torch.equal(loaded.model[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))
    assert {key: loaded.state[key] for key in state} == state
    assert type(loaded.state["scaler"]["n"]) is int, "the loss scaler takes nothing else"


def test_a_folder_is_its_four_files(folder: Path) -> None:
    assert sorted(names(save(folder, 3))) == sorted(PARTS)
    assert names(folder) == ["latest", "step-00000003"]


def test_the_newest_comes_first_and_other_names_do_not_count(folder: Path) -> None:
    for step in (5, 100_000_000, 30):
        save(folder, step)
    for other in ("step-1", "step-00000007.damaged", ".step-00000009.1.tmp", "step-00000abc"):
        (folder / other).mkdir()
    (folder / "step-00000099").write_text("a file")
    assert [checkpoint.step_of(path) for path in checkpoint.listing(folder)] == [100_000_000, 30, 5]
    assert checkpoint.listing(folder / "nowhere") == []


def test_a_full_disk_is_an_os_error_and_leaves_what_was(folder: Path) -> None:
    """A real limit on the size of files, in a process of its own."""
    save(folder, 1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
            save(folder, 2)
        except OSError as error:
            code = 0 if "step-00000002" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert names(folder) == ["latest", "step-00000001"]


# ---- damage -----------------------------------------------------------------------------------------------------


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
def test_one_changed_bit_or_a_lost_end_of_any_file_is_never_believed(
    pair: Path, tmp_path_factory: pytest.TempPathFactory, part: str, how: str, place: float, bit: int
) -> None:
    folder = copied(pair, tmp_path_factory)
    path = folder / "step-00000002" / part
    data = path.read_bytes()
    # The marker ends in a line feed, without which it says the same.
    path.write_bytes(flip(data, place, bit) if how == "flip" else data[: int(place * (len(data) - 2))])
    with pytest.raises(CheckpointError):
        checkpoint.verify(folder / "step-00000002")
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
def test_a_missing_file_is_never_believed(folder: Path, part: str, damage: Callable[[Path], None]) -> None:
    damage(save(folder, 2) / part)
    assert checkpoint.choose(folder)[0] is None


def test_a_disk_that_cannot_read_a_part_is_damage(folder: Path) -> None:
    """/proc/self/mem is a file of 0 bytes that answers every read with an input/output error."""
    path = save(folder, 2)
    (path / MODEL).unlink()
    (path / MODEL).symlink_to("/proc/self/mem")
    sign(path, {MODEL: {"bytes": 0, "sha256": "0" * 64}})
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.verify(path)


def test_each_bad_one_is_set_aside_until_one_is_whole(folder: Path) -> None:
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


# ---- death ------------------------------------------------------------------------------------------------------


def save_and_prune(folder: Path, step: int, best: bool) -> None:
    save(folder, step, best=best)
    checkpoint.prune(folder, keep=1)


@pytest.mark.parametrize(
    ("before", "best", "power_loss"),
    [([], True, True), ([1], False, False), ([1, 2], True, True), ([2], True, False)],
    ids=["first", "next", "again, power lost", "again"],
)
def test_a_save_that_dies_leaves_the_old_one_or_the_new(
    tmp_path: Path, before: list[int], best: bool, power_loss: bool
) -> None:
    """At every moment of it; a step may be saved twice, before and after its evaluation."""
    step = 2
    (tmp_path / "before").mkdir()
    for earlier in before:
        save(tmp_path / "before", earlier, best=earlier == 1)

    def prepare() -> Path:
        return Path(shutil.copytree(tmp_path / "before", tmp_path / f"case-{next(NUMBERS)}", symlinks=True))

    seen = set()
    for folder in every_death(prepare, lambda f: save_and_prune(f, step, best), power_loss=power_loss):
        chosen, notes = checkpoint.choose(folder)
        assert not notes, "nothing half-written ever has a checkpoint's name"
        if chosen is None:
            assert not before
            continue
        found = checkpoint.step_of(chosen)
        assert found in {*before[-1:], step}
        assert holds(chosen, found)
        seen.add(checkpoint.load(chosen).state["is_best"])
        # The links are right again before training goes on.
        assert (folder / "latest").resolve() == chosen.resolve()
        if found == step and checkpoint.load(chosen).state["is_best"]:
            assert (folder / "best").resolve() == chosen.resolve()
        elif 1 in before:
            assert holds(checkpoint.named(folder, "best"), 1)
        save_and_prune(folder, 3, best=True)
        assert names(folder) == ["best", "latest", "step-00000003"], "and nothing is left behind"
    assert best in seen, "it died after the new one was there, too"


# ---- pruning ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 4))
def test_the_newest_and_the_best_are_kept(
    tmp_path_factory: pytest.TempPathFactory, improves: list[bool], keep: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"prune-{next(NUMBERS)}"
    for step, best in enumerate(improves):
        save(folder, step, best=best)
        checkpoint.prune(folder, keep)
    kept = set(range(len(improves)))
    kept &= {*sorted(kept)[-keep:], *[step for step in kept if improves[step]][-1:]}
    assert {checkpoint.step_of(path) for path in checkpoint.listing(folder)} == kept
    links = {"latest"} | ({"best"} if any(improves) else set())
    assert set(names(folder)) == links | {checkpoint.folder_name(step) for step in kept}
    for link in links:
        checkpoint.verify((folder / link).resolve())
    shutil.rmtree(folder)


def test_what_a_killed_save_left_is_swept_and_nothing_else(folder: Path) -> None:
    save(folder, 1)
    (folder / ".step-00000002.77.tmp").mkdir()
    (folder / ".step-00000002.77.tmp" / MODEL).write_text("half")
    (folder / ".step-00000002.old.tmp-2").mkdir()
    (folder / ".latest.77.tmp").symlink_to("step-00000002")
    (folder / "step-00000002.damaged").mkdir()
    (folder / "notes.txt").write_text("the user's")
    checkpoint.prune(folder, 1)
    assert names(folder) == ["latest", "notes.txt", "step-00000001", "step-00000002.damaged"]


def test_a_run_that_was_copied_with_its_links_followed_goes_on(folder: Path) -> None:
    save(folder, 1, best=True)
    shutil.copytree(folder, folder.with_name("copy"))  # follows links, as scp -r does
    copy = folder.with_name("copy")
    assert not (copy / "latest").is_symlink()
    save_and_prune(copy, 2, best=True)
    assert names(copy) == ["best", "latest", "step-00000002"]
    assert (copy / "best").resolve() == (copy / "step-00000002").resolve()


# ---- hostile content --------------------------------------------------------------------------------------------


def sign(path: Path, facts: dict[str, dict[str, object]] | None = None) -> None:
    """Make the marker agree with what is there: what someone who forges a checkpoint would do."""
    parts = {part: path / part for part in (MODEL, OPTIMIZER, STATE)}
    files = {part: {"bytes": file.stat().st_size, "sha256": sha256(file)} for part, file in parts.items() if not facts}
    good = {"bytes": (path / STATE).stat().st_size, "sha256": sha256(path / STATE)}
    files |= {part: good for part in parts if facts} | (facts or {})
    (path / MARKER).write_text(json.dumps({"version": 1, "files": files}))


HOSTILE_STATES = [
    "",
    "null",
    "[]",
    "{}",
    '{"step": null}',
    '{"step": "7"}',
    '{"step": 7.0}',
    '{"step": true}',
    '{"step": -1}',
    '{"step": 1e999}',
    '{"step": ' + "9" * 10_000 + "}",
    '{"step": 7, "version": 2}',
    '{"step": 7, "best": NaN}',
    '{"step": 7, "best": "high"}',
    '{"step": 7, "val_accuracy": 1e308}',
    '{"step": 7, "evaluated": -3}',
    '{"step": 7, "scaler": [1]}',
    '{"step": 7, "scaler": {"scale": "x"}}',
    '{"step": 7',
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"step": 7}\0',
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
    assert checkpoint.choose(folder)[0] is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["version", "step", "evaluated", "val_accuracy", "best", "scaler", "is_best", "files", "new"])


@settings(deadline=None, max_examples=100)
@given(content=st.dictionaries(KEYS, JSON) | JSON)
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
        assert type(state["step"]) is int
        assert 0 <= state["step"] < 10**12
        assert 0 <= state["evaluated"] < 10**12
    (path / MARKER).write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        checkpoint.verify(path)
    shutil.rmtree(path.parent)


FACTS = {MODEL: {"bytes": 1, "sha256": "0"}, OPTIMIZER: {"bytes": 1, "sha256": "0"}}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"version": 1, "files": FACTS | {STATE: {"bytes": float("inf"), "sha256": "0"}}}),
        json.dumps({"version": 1, "files": FACTS | {STATE: {"bytes": None, "sha256": "0"}}}),
        json.dumps({"version": 1, "files": {}}),
        json.dumps({"version": 1, "files": list(FACTS)}),
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
def test_weights_that_are_no_safetensors_are_a_clean_error(folder: Path, data: bytes) -> None:
    path = save(folder, 7)
    (path / MODEL).write_bytes(data)
    sign(path)
    checkpoint.verify(path)
    with pytest.raises(CheckpointError, match="step-00000007 cannot be read") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_a_user_error(folder: Path) -> None:
    path = save(folder, 7)
    with pytest.raises(UserError, match="step-00000007 holds the weights of another model: ") as caught:
        checkpoint.load_weights(nn.Linear(2, 2), checkpoint.load(path).model, path)
    assert "\n" not in str(caught.value)


# ---- what a person asks for -------------------------------------------------------------------------------------


def test_best_latest_and_steps_are_found(folder: Path) -> None:
    for step in (0, 5, 10):
        save(folder, step, best=step == 5)
    assert checkpoint.named(folder, "latest") == folder / "step-00000010"
    assert checkpoint.named(folder, "best").resolve() == (folder / "step-00000005").resolve()
    for which in ("0", "000", "5", "10", "0010"):
        assert checkpoint.step_of(checkpoint.named(folder, which)) == int(which)


def test_best_is_the_newest_where_none_was_measured(folder: Path) -> None:
    save(folder, 5)
    assert checkpoint.named(folder, "best") == folder / "step-00000005"
    (folder / "best").symlink_to("step-00000004")
    assert checkpoint.named(folder, "best") == folder / "step-00000005"


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("11", "has no checkpoint of step 11; steps here: 10, 5"),
        ("9" * 5000, "steps here: 10, 5"),
        ("newest", "checkpoint 'newest' is neither best, latest nor a step; steps here: 10, 5"),
        ("-1", "is neither best, latest nor a step"),
        ("../step-00000010", "is neither best, latest nor a step"),
        ("", "is neither best, latest nor a step"),
    ],
)
def test_an_unknown_checkpoint_names_the_known(folder: Path, which: str, says: str) -> None:
    save(folder, 5)
    save(folder, 10)
    with pytest.raises(UserError, match=says):
        checkpoint.named(folder, which)


def test_an_empty_folder_and_a_damaged_checkpoint_are_told(folder: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint yet; train first"):
        checkpoint.named(folder, "best")
    save(folder, 5)
    remove(save(folder, 10) / MODEL)
    with pytest.raises(UserError, match=r"model\.safetensors is missing; take another with --checkpoint: 10, 5"):
        checkpoint.named(folder, "latest")
    assert (folder / "step-00000010").is_dir(), "who only looks changes nothing"
