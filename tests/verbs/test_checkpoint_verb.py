"""``cifar-dist checkpoint``: list, verify, compare and average what a run has saved, without changing the run."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.recorded import val, write_metrics
from support.run_folders import cells
from support.running import spawn, train
from support.small_checkpoint import names, optimizer, save, state, tensors, weights

from cifar_dist import checkpoint, cli
from cifar_dist.checkpoint import Averaged, Tensors, TrainState, inventory, marker
from cifar_dist.checkpoint.inventory import inspect
from cifar_dist.checkpoint.marker import OPTIMIZER, WEIGHTS
from cifar_dist.errors import UserError
from cifar_dist.files.checksums import sha256
from cifar_dist.step_folder import step_of


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with checkpoints of steps 5 (the best), 10, and 15."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "config.toml").touch()
    for step in (5, 10, 15):
        save(folder / "checkpoints", step, best=step == 5)
    return folder


def verb(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.run(["checkpoint", *words]) == code
    return capsys.readouterr().out


def test_ls_names_the_newest_the_best_and_the_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step-00000010" / WEIGHTS).write_bytes(b"half")
    save(run / "checkpoints", 3).rename(run / "checkpoints" / "step-00000003.damaged")
    os.utime(save(run / "checkpoints", 15) / WEIGHTS, (2**32, 2**32))  # by a clock that is ahead
    save(run / "checkpoints", 12)
    write_metrics(run / "metrics.jsonl", [val(4, accuracy=0.25)])
    head, _, *rows = cells(verb(capsys, "ls", "first"))
    assert head == ["step", "epochs", "val %", "size", "age", "what"]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("15", "1", "25.00"),
        ("12", "1", ""),  # it was not evaluated, only one before it
        ("10", "", ""),
        ("5", "1", "50.00"),
        ("3", "", ""),
    ]
    assert [row[5].split(":")[0] for row in rows] == [
        *("newest", "", "damaged", "best", "damaged, set aside as step-00000003.damaged")
    ]
    assert rows[2][5].startswith("damaged: weights.safetensors has 4 of ")
    assert all(row[3].endswith(" kB") and row[4].endswith(" s") for row in rows)
    assert rows[0][4] == "0.0 s"


def test_verify_names_every_damaged_file_and_renames_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(capsys, "verify", "first") == "3 of 3 checkpoints intact\n"
    damaged = run / "checkpoints" / "step-00000010"
    data = bytearray((damaged / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (damaged / WEIGHTS).write_bytes(data)
    (damaged / OPTIMIZER).unlink()
    (run / "checkpoints" / "step-00000005").rename(run / "checkpoints" / "step-00000006")
    before = names(run / "checkpoints")
    assert verb(capsys, "verify", "first", code=1).splitlines() == [
        "step-00000010 damaged: weights.safetensors differs from what was saved (sha256 does not match)",
        "step-00000010 damaged: optimizer.safetensors is missing",
        f"step-00000006 damaged: {Path('runs/first/checkpoints/step-00000006')} is a copy of step-00000005: "
        "its state.json says step 5",
        "1 of 3 checkpoints intact",
    ]
    assert verb(capsys, "verify", "first", "latest") == "1 of 1 checkpoint intact\n"
    assert "0 of 1 checkpoint intact" in verb(capsys, "verify", "first", "10", code=1)
    assert names(run / "checkpoints") == before
    with pytest.raises(UserError, match="has no checkpoint of step 7; steps here: 15, 10, 6"):
        cli.run(["checkpoint", "verify", "first", "7"])


@pytest.mark.parametrize(
    ("change", "said"),
    [("deleted", "2 of 2 checkpoints intact\n"), ("saved again", "3 of 3 checkpoints intact\n")],
)
@pytest.mark.parametrize("step", ["", "latest"])
def test_verify_takes_no_checkpoint_of_a_run_that_trains_for_damaged(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: str, said: str, step: str
) -> None:
    newest, changes = run / "checkpoints" / "step-00000015", [change]

    def change_and_measure(path: Path) -> str:
        if path.parent.name == newest.name and changes:
            if changes.pop() == "deleted":
                shutil.rmtree(newest)
            else:
                checkpoint.save(run / "checkpoints", tensors(14), state(15, best=True))
        return sha256(path)

    monkeypatch.setattr(marker, "sha256", change_and_measure)
    assert verb(capsys, "verify", "first", *filter(None, [step])) == ("1 of 1 checkpoint intact\n" if step else said)


@pytest.mark.parametrize(("steps", "left"), [([10], ["15", "5"]), ([5, 10, 15], ["20"])])
def test_ls_leaves_out_what_a_run_that_trains_deletes_meanwhile(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, steps: list[int], left: list[str]
) -> None:
    folder = run / "checkpoints"

    def inspect_and_delete(path: Path, *, checksums: bool) -> tuple[TrainState | None, list[str]]:
        inspected = inspect(path, checksums=checksums)
        if "20" in left:
            save(folder, 20, best=True)
        if step_of(path) in steps:
            shutil.rmtree(path)
        return inspected

    monkeypatch.setattr(inventory, "inspect", inspect_and_delete)
    _, _, *rows = cells(verb(capsys, "ls", "first"))
    assert [row[0] for row in rows] == left
    assert not any("damaged" in row[5] for row in rows)


def test_verify_names_changed_final_weights_and_resume_writes_them_again(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny.parent / "runs" / "tiny"
    assert train(str(tiny), "--train.epochs", "1")[0].returncode == 0
    assert verb(capsys, "verify", str(run)) == "3 of 3 checkpoints intact\n"
    weights = (run / "final" / "model.safetensors").read_bytes()
    (run / "final" / "model.safetensors").write_bytes(weights[:-1] + b"?")
    line, count = verb(capsys, "verify", str(run), code=1).splitlines()
    assert line == f"{run / 'final'} is damaged (model.safetensors); cifar-dist resume {run} writes it again"
    assert count == "3 of 3 checkpoints intact"
    (resumed,) = spawn(["-m", "cifar_dist", "resume", str(run)], cwd=tiny.parent)
    assert resumed.returncode == 0, resumed.stderr
    assert (run / "final" / "model.safetensors").read_bytes() == weights
    assert verb(capsys, "verify", str(run)) == "3 of 3 checkpoints intact\n"


@pytest.mark.parametrize("words", [("ls", "first"), ("verify", "first"), ("verify", "first", "5")])
def test_lost_checkpoints_are_not_said_to_be_yet_to_come(run: Path, words: tuple[str, ...]) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(
        UserError, match=r"has no intact checkpoint \(all were deleted\); restore one, or start this run"
    ):
        cli.run(["checkpoint", *words])
    (run / ".checkpoints.saved").unlink()
    with pytest.raises(UserError, match="has no checkpoint yet; train first"):
        cli.run(["checkpoint", *words])
    final = run / "final" / "model.safetensors"
    final.parent.mkdir()
    final.touch()  # of a finished run, whose checkpoints may have been deleted before there was a sign of them
    way = (
        r"\(all were deleted\); restore one, or use its final weights: --checkpoint runs/first/final/model.safetensors$"
    )
    with pytest.raises(UserError, match=way):
        cli.run(["checkpoint", *words])


def test_diff_sorts_tensors_by_their_largest_difference(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(capsys, "diff", "first@10", "first@10") == "first@10 and first@10 are equal: 6 tensors, every bit\n"
    said = verb(capsys, "diff", "first@5", "first")
    head, _, *rows = cells(said.rsplit("\n", 2)[0])
    assert head == ["tensor", "type and shape", "largest difference"]
    assert [row[0] for row in rows] == [
        "weights/conv.weight",  # 5 * (15 - 5)
        "averaged/conv.weight",
        "averaged_statistics/bn.running_mean",
        "weights/bn.num_batches_tracked",
        "averaged/bn.num_batches_tracked",
        "optimizer/momentum_buffer/conv.weight",
    ]
    assert [float(row[2]) for row in rows] == [50, 25, 10, 10, 5, 0.104]
    assert rows[0][1] == "float32 [2, 3]"
    assert said.splitlines()[-1] == "6 of 6 tensors differ"


def test_diff_lists_tensors_that_cannot_be_compared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {**weights(15), "conv.weight": torch.zeros(3), "bn.num_batches_tracked": torch.tensor(15)}
    nan = {"momentum_buffer/conv.weight": torch.full((2, 3), float("nan"))}
    checkpoint.save(run / "checkpoints", Tensors(other, None, nan), state(20))
    _, _, *rows = cells(verb(capsys, "diff", "first@15", "first@20").rsplit("\n", 2)[0])
    assert {row[0]: row[2] for row in rows} == {
        "averaged/bn.num_batches_tracked": "only in the first",
        "averaged/conv.weight": "only in the first",
        "averaged_statistics/bn.running_mean": "only in the first",
        "optimizer/momentum_buffer/conv.weight": "inf",
        "weights/conv.weight": "not comparable",
    }
    assert verb(capsys, "diff", "first@20", "first@20").endswith("are equal: 3 tensors, every bit\n")
    for step, zero in ((25, 0.0), (30, -0.0)):
        tensors_of_zero = Tensors({"conv.weight": torch.full((2, 3), zero)}, None, {})
        checkpoint.save(run / "checkpoints", tensors_of_zero, state(step))
    assert verb(capsys, "diff", "first@25", "first@30").endswith("1 of 1 tensors differ\n"), "by the sign of zero"


def test_average_is_the_mean_of_the_evaluated_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step, bits in ((5, 1.0), (10, 1 / 3), (15, 2**-24)):
        mine = {"conv.weight": torch.full((2,), bits), "bn.running_var": torch.full((3,), float(step))}
        mine |= {"bn.num_batches_tracked": torch.tensor(step)}
        saved = dataclasses.replace(tensors(step), averaged=Averaged(mine, {}))
        checkpoint.save(run / "checkpoints", saved, state(step))
    said = verb(capsys, "average", "first", "5", "10", "latest", "--out", "mean.safetensors")
    assert "the mean of the weights and batch statistics of 3 checkpoints" in said
    assert "cifar-dist evaluate first --checkpoint mean.safetensors" in said
    mean = load_file("mean.safetensors")
    thirds = torch.tensor([1.0, 1 / 3, 2**-24]).double().mean().float()
    assert torch.equal(mean["conv.weight"], thirds.expand(2)), "added up in float64"
    assert mean["bn.running_var"].tolist() == [10] * 3
    assert mean["bn.num_batches_tracked"].item() == 15


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["5", "5", "--out", "mean.safetensors"], "at least two different steps, each once; steps here: 15, 10, 5"),
        (["5", "--out", "mean.safetensors"], "at least two different steps"),
        (["5", "7", "--out", "mean.safetensors"], "has no checkpoint of step 7; steps here: 15, 10, 5"),
        (["5", "10", "--out", "mean.pth"], "must end in .safetensors"),
        (["5", "10", "--out", "nowhere/mean.safetensors"], "the folder nowhere does not exist"),
        (["5", "20", "--out", "mean.safetensors"], "has the weights of another network than"),
    ],
)
def test_average_refuses_bad_input_in_one_line(run: Path, words: list[str], says: str) -> None:
    other = Averaged({"conv.weight": torch.zeros(3)}, {})
    if "20" in words:
        checkpoint.save(run / "checkpoints", Tensors(weights(20), other, optimizer(20)), state(20))
    with pytest.raises(UserError, match=says):
        cli.run(["checkpoint", "average", "first", *words])
    assert not Path("mean.safetensors").exists()
