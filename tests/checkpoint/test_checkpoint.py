"""Checkpoints: what is saved can be loaded, and no kill during a save loses an intact one."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.crashing import every_death
from support.file_limit import error_of
from support.small_checkpoint import PARTS, holds, names, optimizer, save, state, tensors, weights

from cifar_dist import checkpoint
from cifar_dist.checkpoint import Averaged, Tensors, TrainState, marker
from cifar_dist.checkpoint.marker import STATE, WEIGHTS
from cifar_dist.checkpoint.tensor_files import read_tensors, save_tensors
from cifar_dist.errors import UserError
from cifar_dist.files.checksums import sha256
from cifar_dist.files.temporary import leftovers
from cifar_dist.step_folder import step_name, step_of

NUMBERS = count()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


# ---- save and load ----------------------------------------------------------------------------------------------


def test_a_loaded_checkpoint_equals_the_saved_one_bit_for_bit(folder: Path) -> None:
    model = {
        "nan": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "half": torch.randn(3).bfloat16(),
        "long": torch.tensor(2**62),
        "transposed": torch.arange(6.0).reshape(2, 3).t().contiguous(),
        "empty": torch.empty(0, 3),
    }
    scaler = {"scale": 65536.0, "n": 2000}
    saved = TrainState(7, 2, val_accuracy=1 / 3, best_val_accuracy=0.5, is_best=True, loss_scaler=scaler)
    path = checkpoint.save(folder, Tensors(model, None, optimizer(7)), saved)
    checkpoint.verify(path)
    loaded = checkpoint.load(path)
    assert path == loaded.path == folder / "step-00000007"
    assert loaded.tensors.weights.keys() == model.keys()
    for name, value in model.items():
        found = loaded.tensors.weights[name]
        assert found.dtype == value.dtype
        assert found.shape == value.shape
        assert torch.equal(found.reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))
    assert loaded.tensors.averaged is None
    assert loaded.state == saved
    assert type(loaded.state.loss_scaler["n"]) is int, "the loss scaler takes nothing else"


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    """safetensors takes paths in UTF-8 only."""
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    save(folder, 1)
    assert holds(checkpoint.named(folder, "latest"), 1)
    save_tensors(weights(1), folder / "weights.safetensors")
    assert read_tensors([folder / "weights.safetensors"]).keys() == weights(1).keys()


def test_a_checkpoint_contains_exactly_its_files(folder: Path) -> None:
    assert names(save(folder, 3)) == sorted(PARTS)
    assert names(folder) == ["latest", "step-00000003"]
    path = checkpoint.save(folder, Tensors(weights(4), None, optimizer(4)), state(4))
    assert names(path) == ["COMPLETE.json", "optimizer.safetensors", "state.json", "weights.safetensors"]


def test_averaged_weights_are_evaluated_if_they_exist(folder: Path) -> None:
    assert [path.name for path in checkpoint.evaluated_weights(save(folder, 3))] == ["averaged.safetensors"]
    path = checkpoint.save(folder, Tensors(weights(4), None, optimizer(4)), state(4))
    assert checkpoint.evaluated_weights(path) == (path / "weights.safetensors",)


def test_the_average_resumes_with_its_own_statistics() -> None:
    """Recalibration replaced them in the evaluated weights; batch counters are not part of an average."""
    evaluated = {"weight": torch.ones(2), "running_mean": torch.zeros(2), "batches": torch.tensor(3)}
    running = Averaged(evaluated, {"running_mean": torch.ones(2)}).running()
    assert running.keys() == {"weight", "running_mean"}
    assert running["running_mean"].tolist() == [1, 1]


def test_the_newest_comes_first_and_other_names_do_not_count(folder: Path) -> None:
    for step in (5, 100_000_000, 30):
        save(folder, step)
    for other in ("step-1", "step-00000007.damaged", ".step-00000009.1.tmp", "step-00000abc"):
        (folder / other).mkdir()
    (folder / "step-00000099").write_text("a file")
    assert [step_of(path) for path in checkpoint.listing(folder)] == [100_000_000, 30, 5]
    assert checkpoint.listing(folder / "nowhere") == []


def test_a_full_disk_is_an_os_error_and_leaves_the_old_checkpoint(folder: Path) -> None:
    save(folder, 1)
    assert "step-00000002" in error_of(lambda: save(folder, 2), limit=50)
    assert names(folder) == ["latest", "step-00000001"]


# ---- death ------------------------------------------------------------------------------------------------------


def save_and_prune(folder: Path, step: int, *, best: bool) -> None:
    save(folder, step, best=best)
    checkpoint.prune(folder, keep=1)


@pytest.mark.parametrize("before", [[], [1, 2]], ids=["first", "again"])
def test_a_killed_save_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path, before: list[int]) -> None:
    """Killed at every write, with a loss of power; a step may be saved twice, before and after its evaluation.

    See also `test_saving.py`.
    """
    step = 2
    (tmp_path / "before").mkdir()
    for earlier in before:
        save(tmp_path / "before", earlier, best=earlier == 1)

    def prepare() -> Path:
        return Path(shutil.copytree(tmp_path / "before", tmp_path / f"case-{next(NUMBERS)}", symlinks=True))

    seen = set()
    for folder in every_death(prepare, lambda f: save_and_prune(f, step, best=True), power_loss=True):
        chosen, notes = checkpoint.choose(folder)
        assert not notes, "nothing half-written ever has a checkpoint's name"
        if chosen is None:
            assert not before
            continue
        assert not leftovers(folder), "a run that is at its last step saves no more, and would keep them"
        found = step_of(chosen)
        assert found in {*before[-1:], step}
        assert holds(chosen, found)
        seen.add(checkpoint.load(chosen).state.is_best)
        # The links are correct again before training continues.
        assert (folder / "latest").resolve() == chosen.resolve()
        if found == step and checkpoint.load(chosen).state.is_best:
            assert (folder / "best").resolve() == chosen.resolve()
        elif 1 in before:
            assert holds(checkpoint.named(folder, "best"), 1)
        save_and_prune(folder, 3, best=True)
        assert names(folder) == ["best", "latest", "step-00000003"], "and nothing is left behind"
    assert True in seen, "it died after the new one was there, too"


def test_a_killed_change_of_a_state_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """Killed at every write, with a loss of power; the link follows at the latest when a run resumes."""
    before = tmp_path / "before"
    before.mkdir()
    save(before, 1, best=True)
    save(before, 2, best=True)
    undone = dataclasses.replace(state(2), epochs_evaluated=0)

    def prepare() -> Path:
        return Path(shutil.copytree(before, tmp_path / f"case-{next(NUMBERS)}", symlinks=True))

    seen = set()
    for folder in every_death(prepare, lambda f: checkpoint.replace_state(f / step_name(2), undone), power_loss=True):
        chosen, notes = checkpoint.choose(folder)
        assert (chosen, notes) == (folder / step_name(2), [])
        assert holds(folder / step_name(2), 2)
        assert names(folder) == ["best", "latest", step_name(1), step_name(2)]
        found = checkpoint.read_state(folder / step_name(2))
        assert found in (undone, state(2, best=True))
        best = step_name(2 if found.is_best else 1)
        assert checkpoint.named(folder, "best").name == (folder / "best").readlink().name == best
        seen.add(found.is_best)
        checkpoint.replace_state(folder / step_name(2), undone)
        assert (folder / "best").readlink().name == step_name(1)
        assert checkpoint.choose(folder) == (folder / step_name(2), [])
    assert seen == {True, False}


def test_the_link_to_the_best_is_removed_with_the_last_one_that_is_the_best(folder: Path) -> None:
    path = save(folder, 2, best=True)
    checkpoint.replace_state(path, dataclasses.replace(state(2), val_accuracy=None, best_val_accuracy=None))
    assert names(folder) == ["latest", step_name(2)]
    checkpoint.verify(path)
    (folder / "best").symlink_to(step_name(2))
    assert checkpoint.choose(folder) == (path, [])
    assert names(folder) == ["latest", step_name(2)]


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
    assert {step_of(path) for path in checkpoint.listing(folder)} == kept
    links = {"latest"} | ({"best"} if any(improves) else set())
    assert set(names(folder)) == links | {step_name(step) for step in kept}
    for link in links:
        checkpoint.verify((folder / link).resolve())
    shutil.rmtree(folder)


def test_only_the_remains_of_a_killed_save_are_deleted(folder: Path) -> None:
    save(folder, 1)
    (folder / ".step-00000002.77.tmp").mkdir()
    (folder / ".step-00000002.77.tmp" / WEIGHTS).write_text("half")
    (folder / ".step-00000002.old.tmp-2").mkdir()
    (folder / ".latest.77.tmp").symlink_to("step-00000002")
    (folder / "step-00000002.damaged").mkdir()
    (folder / "notes.txt").write_text("the user's")
    checkpoint.prune(folder, 1)
    assert names(folder) == ["latest", "notes.txt", "step-00000001", "step-00000002.damaged"]


def test_a_run_copied_with_its_links_followed_resumes(folder: Path) -> None:
    save(folder, 1, best=True)
    shutil.copytree(folder, folder.with_name("copy"))  # follows links, as scp -r does
    copy = folder.with_name("copy")
    assert not (copy / "latest").is_symlink()
    save_and_prune(copy, 2, best=True)
    assert names(copy) == ["best", "latest", "step-00000002"]
    assert (copy / "best").resolve() == (copy / "step-00000002").resolve()


# ---- what a person asks for -------------------------------------------------------------------------------------


def test_best_latest_and_steps_are_found(folder: Path) -> None:
    for step in (0, 5, 10):
        save(folder, step, best=step == 5)
    assert checkpoint.named(folder, "latest") == folder / "step-00000010"
    assert checkpoint.named(folder, "best").resolve() == (folder / "step-00000005").resolve()
    for which in ("0", "000", "5", "10", "0010"):
        assert step_of(checkpoint.named(folder, which)) == int(which)


def test_the_newest_is_found_while_the_run_saves_and_deletes(folder: Path) -> None:
    save(folder, 0)

    def train() -> None:
        for step in range(1, 40):
            save_and_prune(folder, step, best=True)

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        while not training.done():
            assert step_of(checkpoint.named(folder, "latest")) is not None
        training.result()


def test_one_that_the_run_saves_again_meanwhile_is_not_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folder, 1)
    saves = [2]

    def save_and_measure(path: Path) -> str:
        if saves:
            checkpoint.save(folder, tensors(saves.pop()), state(1, best=True))
        return sha256(path)

    monkeypatch.setattr(marker, "sha256", save_and_measure)
    assert checkpoint.named(folder, "latest") == folder / step_name(1)
    assert saves == []


def test_an_accuracy_of_0_is_an_accuracy(folder: Path) -> None:
    path = checkpoint.save(
        folder, tensors(5), dataclasses.replace(state(5), val_accuracy=0.0, best_val_accuracy=0.0, is_best=True)
    )
    assert checkpoint.best_of(folder, [4, 5]) == path
    assert checkpoint.best_of(folder, [4]) is None


def test_an_accuracy_whose_weights_are_lost_is_not_one_that_was_reached(folder: Path) -> None:
    save(folder, 5, best=True)
    save(folder, 7)
    (save(folder, 8) / STATE).unlink()
    assert checkpoint.best_of(folder, range(9)) == folder / step_name(5)
    shutil.rmtree(folder / step_name(5))
    assert checkpoint.best_of(folder, range(9)) is None


def test_best_is_the_newest_if_none_was_evaluated(folder: Path) -> None:
    unmeasured = dataclasses.replace(state(5), val_accuracy=None, best_val_accuracy=None)
    path = checkpoint.save(folder, tensors(5), unmeasured)
    assert checkpoint.named(folder, "best") == path
    (folder / "best").symlink_to("step-00000004")
    assert checkpoint.named(folder, "best") == path
    after_a_loss = dataclasses.replace(state(6), best_val_accuracy=None)
    path = checkpoint.save(folder, tensors(6), after_a_loss)
    assert checkpoint.named(folder, "best") == path, "of a resume, which has said so"


def test_the_best_is_identified_by_its_state_and_its_loss_is_reported(folder: Path) -> None:
    """A missing or wrong link changes neither which one is best nor that it is kept."""
    save(folder, 5, best=True)
    for step in (10, 15):
        save(folder, step)
    (folder / "best").unlink()
    assert checkpoint.named(folder, "best").name == "step-00000005"
    assert checkpoint.named(folder, "step-00000010") == checkpoint.named(folder, "10")
    checkpoint.prune(folder, 1)
    (folder / "best").symlink_to("step-00000015")
    assert checkpoint.named(folder, "best").name == "step-00000005"
    shutil.rmtree(folder / "step-00000005")
    (folder / "best").unlink()
    with pytest.raises(
        UserError, match=r"lost its best checkpoint, of validation accuracy 50.00 %; use another: latest, or"
    ):
        checkpoint.named(folder, "best")
    save_and_prune(folder, 20, best=False)
    assert checkpoint.named(folder, "latest").name == "step-00000020", "training continues"


def test_one_that_was_the_best_does_not_replace_the_best(folder: Path) -> None:
    for step, accuracy, best in ((5, 0.4, 0.4), (10, 0.5, 0.5), (15, 0.45, 0.5)):
        is_best = accuracy == best
        checkpoint.save(folder, tensors(step), TrainState(step, 1, accuracy, best, is_best=is_best, loss_scaler={}))
    assert checkpoint.named(folder, "best").name == "step-00000010"
    shutil.rmtree(folder / "step-00000010")
    with pytest.raises(UserError, match=r"lost its best checkpoint, of validation accuracy 50\.00 %"):
        checkpoint.named(folder, "best")


def test_a_best_that_was_saved_again_is_found_by_its_link(folder: Path) -> None:
    """Earlier versions left it out of the state."""
    save(folder, 5, best=True)
    for step in (5, 10):
        save(folder, step)
    assert checkpoint.named(folder, "best").name == "step-00000005"


def test_a_copy_is_of_one_checkpoint_and_of_the_best_of_its_time(folder: Path, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(folder, step, best=step != 2)
    for step, best in ((2, 1), (3, 3)):
        copy = tmp_path / f"branch-{step}"
        origin = folder / step_name(step)
        checkpoint.copy_to(origin, copy, checkpoint.read_state(origin), checkpoint.best(folder, until=step))
        assert names(copy) == ["best", "latest", *sorted({step_name(best), step_name(step)})]
        assert [(copy / link).resolve().name for link in ("best", "latest")] == [step_name(best), step_name(step)]


def test_of_many_steps_a_message_names_the_newest(tmp_path: Path) -> None:
    paths = [tmp_path / step_name(step) for step in range(1000, 0, -1)]
    assert checkpoint.list_steps(paths[-3:]) == "3, 2, 1"
    assert checkpoint.list_steps(paths).endswith(", 982, 981 and 980 more")


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("11", "has no checkpoint of step 11; steps here: 10, 5"),
        ("9" * 5000, "steps here: 10, 5"),
        ("newest", "checkpoint 'newest' is not best, latest, a step or a path; steps here: 10, 5"),
        ("-1", "is not best, latest, a step or a path"),
        ("../step-00000010", "is not best, latest, a step or a path"),
        ("", "is not best, latest, a step or a path"),
        ("step-00000011", "has no checkpoint of step 11; steps here: 10, 5"),
    ],
)
def test_an_unknown_checkpoint_names_the_known(folder: Path, which: str, says: str) -> None:
    save(folder, 5)
    save(folder, 10)
    with pytest.raises(UserError, match=says):
        checkpoint.named(folder, which)


def test_an_empty_folder_and_a_damaged_checkpoint_are_reported(folder: Path) -> None:
    with pytest.raises(UserError, match="has no checkpoint yet; train first"):
        checkpoint.named(folder, "best")
    save(folder, 5)
    (save(folder, 10) / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors is missing; use another step: 5"):
        checkpoint.named(folder, "latest")
    assert (folder / "step-00000010").is_dir(), "choosing by name changes nothing"


def test_only_an_intact_checkpoint_is_suggested(folder: Path) -> None:
    for step in (5, 10, 15):
        save(folder, step)
    for step in (10, 15):
        weights = folder / step_name(step) / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"does not match\); use another step: 5$"):
        checkpoint.named(folder, "latest")
    (folder / step_name(5) / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"does not match\); no other is intact; restore one$"):
        checkpoint.named(folder, "10")
    final = folder.with_name("final") / "model.safetensors"
    final.parent.mkdir()
    final.touch()
    way = re.escape(f"no other is intact; restore one, or use its final weights: --checkpoint {final}")
    with pytest.raises(UserError, match=f"{way}$"):
        checkpoint.named(folder, "10")
    with pytest.raises(UserError, match=f"use its final weights: --model.pretrained {final}$"):
        checkpoint.named(folder, "10", option="--model.pretrained")


def test_a_run_that_has_lost_all_its_checkpoints_is_not_a_new_one(folder: Path) -> None:
    save(folder, 5)
    for lost in (folder / step_name(5), folder):
        shutil.rmtree(lost)
        with pytest.raises(UserError, match=rf"no intact checkpoint \(.*\); restore one, .*: rm -r {folder.parent}$"):
            checkpoint.named(folder, "latest")
