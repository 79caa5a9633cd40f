"""Runs that begin with a checkpoint of another run, also when that is killed."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.continued_runs import Place, events
from support.dataset_builders import copy_relabelled
from support.running import metrics, story, train

from cifar_dist import checkpoint
from cifar_dist.data.pack import pack
from cifar_dist.files.reading import read_json
from cifar_dist.launch.typed_command import VARIABLE
from cifar_dist.run_folder import RunFolder
from cifar_dist.runs.listing import describe
from cifar_dist.tracking import timeline
from cifar_dist.tracking.metrics import evaluations

TOO_FAST = ["--optim.lr", "30"]
"""Settings with which a branch loses what its origin has learnt."""
LOST = "warning: the checkpoint of the best evaluation so far is lost; the next evaluation is the best\n"


@pytest.mark.parametrize("die_at", ["metrics.jsonl", "checkpoints"])
def test_a_branch_without_changes_ends_as_the_original_though_it_is_killed(place: Place, die_at: str) -> None:
    name, words = f"branch-{die_at}", ["--run.from", "whole@8"]
    assert place.train(name, *words, die_at=die_at).code == -9
    done = place.train(name, *words)
    assert done.code == 0, done.said
    place.assert_is_whole(place.runs / name)
    assert [event for event in events(place.runs / name) if event[0] == "branched"] == [
        ("branched", 8, f"{place.whole}@8")
    ]
    assert describe(RunFolder(place.runs / name)).result.origin == f"branch of {place.whole}@8"  # type: ignore[union-attr]
    assert not list((place.runs / name).glob(".checkpoints.*.tmp*")), "a kill leaves nothing"


def test_a_branch_keeps_in_what_its_origin_was_computed_or_says_that_it_does_not(place: Place) -> None:
    origin = shutil.copytree(place.whole, place.runs / "other-machine", symlinks=True)
    record = RunFolder(origin).timeline
    begun, *others = timeline.read(record)
    record.unlink()
    for event in (replace(begun, threads=3, numerics=begun.numerics | {"torch": "1.0.0"}), *others):
        timeline.append(record, event)
    words = ["--run.from", f"{origin}@8"]
    (kept,) = train(place.recipe, "--run.name", "three-threads", *words, "--train.threads", "0")
    assert kept.returncode == 0, kept.stderr
    assert "cpu with 3 threads" in kept.stdout
    assert "changed since the 8 steps done: torch 1.0.0 -> " in kept.stdout
    says = "the 8 steps done were computed with 3 threads in each process, and it continues with 1, which rounds"
    assert place.train("one-thread", *words, die_at="step-00000009").code == -9
    killed = RunFolder(place.runs / "one-thread")
    assert [start.step for start in timeline.starts(timeline.read(killed.timeline))] == [8]
    assert checkpoint.listing(killed.checkpoints)[0].name == "step-00000008", "it ended before it saved"
    fewer = place.train("one-thread", *words)
    assert fewer.code == 0, fewer.said
    assert says in fewer.said


def test_a_branch_with_changes_starts_from_its_origin_and_no_longer_needs_it(place: Place) -> None:
    origin = shutil.copytree(place.whole, place.runs / "origin", symlinks=True)
    words = ["--run.from", str(origin), "--train.epochs", "5", "--optim.lr", "0.01"]
    assert place.train("changed", *words, "--train.max_steps", "13").code == 0
    shutil.rmtree(origin)
    run = place.runs / "changed"
    assert place.run("resume", str(run), "--train.max_steps", "0").code == 0
    assert story(run)[:12] == story(place.whole)[:12]
    assert [record["lr"] for record in metrics(run)][12:] == [
        0.01,
        pytest.approx(0.01 * 2 / 3),
        pytest.approx(0.01 / 3),
    ]
    certified = place.run("replay", str(run), "--check", "9")
    assert certified.code == 0, certified.said
    assert "steps 13 to 13: numbers equal, checkpoint equal" in certified.said, "the first step after the branch"
    assert not re.search(r"^steps [1-9] to", certified.said, re.M), "the steps before are those of another run"
    refused = place.run("replay", str(run), "12")
    assert (refused.code, refused.said.count("\n")) == (2, 1)
    assert f"{run} is a branch of {origin}@12 and has no checkpoint of its own before step 12; name" in refused.said


def test_a_branch_takes_over_the_checkpoint_that_was_the_best_or_has_a_best_of_its_own(place: Place) -> None:
    """Else nothing would be its best one until it exceeds an accuracy of which no weights are left."""
    origin = shutil.copytree(place.whole, place.runs / "pruned", symlinks=True) / "checkpoints"
    then, now = (max(path.name for path in bests(origin) if path.name <= f"step-{at:08d}") for at in (10, 12))
    assert then < now, "what is the best now does not tell what it was then"
    for name, expected, is_lost in (("kept", then, False), ("own", "step-00000012", True)):
        done = place.train(name, "--run.from", "pruned@10", *TOO_FAST)
        assert done.code == 0, done.said
        assert f"warning: branched from {origin.parent}@10\n" in done.said
        assert (LOST in done.said) == is_lost
        assert evaluations(place.runs / name / "metrics.jsonl")[-1].accuracy < 0.3
        assert checkpoint.named(place.runs / name / "checkpoints", "best").name == expected
        (origin / then / "weights.safetensors").write_bytes(b"damaged")


def test_a_branch_from_an_end_that_is_no_turn_takes_over_the_best_of_the_turns(place: Place) -> None:
    words = ["--schedule.name", "constant", "--optim.lr", "0.02", "--eval.every", "2"]
    assert place.train("turns", *words, "--train.epochs", "3").code == 0
    early, late = (record["accuracy"] for record in metrics(place.runs / "turns", "val"))
    assert early < late, "or the test would show nothing"
    branch = [*words, *TOO_FAST, "--run.from", "turns", "--train.epochs", "6"]
    done = place.train("next", *branch, "--train.max_steps", "10")
    assert (done.code, LOST in done.said) == (0, False), done.said
    folder = place.runs / "next" / "checkpoints"
    assert checkpoint.named(folder, "best").name == "step-00000006"
    assert checkpoint.read_state(checkpoint.named(folder, "latest")).best_val_accuracy == early


def test_evaluations_on_other_data_are_not_those_of_the_branch(place: Place, digits: Path, tmp_path: Path) -> None:
    """They neither hold its best checkpoint nor exhaust its patience, which those of the origin would have done."""
    arrays = np.load(digits.parent / "digits.npz")
    negatives = {name: 255 - arrays[name] if name.startswith("x_") else arrays[name] for name in arrays.files}
    np.savez(tmp_path / "negatives.npz", **negatives)
    pack(tmp_path / "negatives.npz", tmp_path / "negatives", samples_per_shard=40, show=False)
    patience = ["--train.patience", "2", "--train.min_delta", "0.9"]
    words = ["--run.from", "whole@9", *TOO_FAST, *patience, "--data.path", str(tmp_path / "negatives")]
    done = place.train("negative", *words, "--run.from_other_data")
    assert done.code == 0, done.said
    says = f"warning: {place.whole} has another val, so the validation accuracies up to step 9 do not count\n"
    assert (says in done.said, "early stopping" in done.said) == (True, False)
    run = place.runs / "negative"
    assert [record["step"] for record in metrics(run, "val")] == [12]
    assert checkpoint.named(run / "checkpoints", "best").name == "step-00000012"
    begun = checkpoint.read_state(run / "checkpoints" / "step-00000009")
    assert (begun.val_accuracy, begun.best_val_accuracy, begun.is_best) == (None, None, False)


def test_a_branch_that_is_evaluated_less_often_keeps_the_evaluations_of_its_origin(place: Place) -> None:
    done = place.train("rarer", "--run.from", "whole@9", "--eval.every", "2")
    assert (done.code, LOST in done.said) == (0, False), done.said
    kept, origin = metrics(place.runs / "rarer", "val"), metrics(place.whole, "val")
    assert [record["step"] for record in kept] == [record["step"] for record in origin] == [3, 6, 9, 12]
    again = place.train("again", "--run.from", "rarer@9", "--eval.every", "2")
    assert (again.code, LOST in again.said) == (0, False), again.said
    assert metrics(place.runs / "again", "val")[:3] == kept[:3], "also one that was no turn of its origin, a branch"


def test_an_evaluation_that_an_extension_has_undone_is_not_the_best_of_a_branch(place: Place) -> None:
    words, run = ["--schedule.name", "constant", "--optim.lr", "0.02"], place.runs / "lengthened"
    assert place.train("lengthened", *words, "--train.max_steps", "8").code == 0
    accuracies = [record["accuracy"] for record in metrics(run, "val")]
    assert accuracies == sorted(set(accuracies)), "the last is the best, or the test would show nothing"
    assert place.run("resume", str(run), "--train.max_steps", "10", "--eval.every", "2").code == 0
    assert [record["step"] for record in metrics(run, "val")] == [3, 6, 10]
    branch = place.train("undone", "--run.from", "lengthened@9", *words, "--eval.every", "2", *TOO_FAST)
    assert (branch.code, LOST in branch.said) == (0, False), branch.said
    assert [record["step"] for record in metrics(place.runs / "undone", "val")] == [3, 6, 12]
    assert checkpoint.named(place.runs / "undone" / "checkpoints", "best").name == "step-00000006"


def test_a_branch_that_would_be_complete_is_refused_whenever_it_is_evaluated(place: Place) -> None:
    patience = ["--train.patience", "1", "--train.min_delta", "0.9"]
    for every in (1, 4):
        done = place.train("complete", "--run.from", "whole@6", *patience, "--eval.every", str(every))
        assert (done.code, (place.runs / "complete").exists()) == (2, False), done.said
        assert "run.from: at step 6 this run is complete by early stopping: no val_accuracy better by more" in done.said


def test_a_branch_on_other_labels_of_the_same_shards_is_refused(place: Place, digits: Path, tmp_path: Path) -> None:
    relabelled = copy_relabelled(digits, tmp_path / "relabelled", "train")
    done = place.train("relabelled", "--run.from", "whole@9", "--data.path", str(relabelled))
    assert done.code == 2
    assert "relabelled has (labels of sample 0 of train-000000.tar: " in done.said
    assert "if that is meant, add --run.from_other_data" in done.said


def test_a_branch_that_trains_on_val_has_no_best_checkpoint_and_a_branch_of_it_is_warned(place: Place) -> None:
    done = place.train("all", "--run.from", "whole@9", "--data.hold_out", "false", "--train.batch_size", "96")
    assert done.code == 0, done.said
    says = "warning: this run is not evaluated on val, so the validation accuracies up to step 9 do not count\n"
    assert says in done.said
    run = place.runs / "all"
    assert metrics(run, "val") == []
    assert checkpoint.named(run / "checkpoints", "best").name == "step-00000012"
    (evaluation,) = run.glob("evaluations/*_model_final")
    assert read_json(evaluation / "summary.json")["val_accuracy"] is None
    held_out = place.train("held-out", "--run.from", "all", "--train.epochs", "5")
    assert held_out.code == 0, held_out.said
    assert f"warning: {run} was trained on val, so the validation accuracy here is not that of new" in held_out.said


def test_of_equal_accuracies_the_newest_is_the_best(place: Place) -> None:
    """A small validation split is soon right in full, with weights that have hardly been trained."""
    plugin = place.runs / "equal.py"
    plugin.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes, channels):\n"
        "        super().__init__()\n"
        "        self.bias = nn.Parameter(nn.functional.one_hot(torch.tensor(0), classes).float())\n"
        "    def forward(self, images):\n"
        "        return self.bias + 0 * images.mean((1, 2, 3))[:, None]\n"
    )
    done = place.train("equal", "--model.name", f"{plugin}:Net", "--optim.lr", "1e-6")
    assert done.code == 0, done.said
    first, *_, last = evaluations(place.runs / "equal" / "metrics.jsonl")
    assert first.accuracy == last.accuracy
    folder = place.runs / "equal" / "checkpoints"
    assert checkpoint.named(folder, "best").name == f"step-{last.step:08d}"


@pytest.mark.parametrize(
    ("words", "differs"),
    [
        (["whole@8", "--run.seed", "1"], "run.seed"),
        (["whole@9", "--run.seed", "1"], ""),
        (["whole@8", "--data.shuffle_block", "1"], "data.shuffle_block"),
        (["whole@8", "--data.shuffle_block", "99"], ""),
        (["whole@8", "--train.batch_size", "100"], "train.batch_size"),
    ],
)
def test_a_branch_that_completes_an_epoch_in_another_order_says_so(
    place: Place, words: list[str], differs: str
) -> None:
    """At the end of an epoch it has none to complete, and with more shards to shuffle than there are all are."""
    done = place.train("reordered", "--run.from", *words, "--train.max_steps", "10")
    assert done.code == 0, done.said
    shutil.rmtree(place.runs / "reordered")
    ends = [f"--run.from {place.whole}@{step}" for step in (9, 6, 3)]
    says = f"epoch 3 is completed in another order than {place.whole} has begun it: some of its images come twice, "
    assert (says in done.said) == bool(differs)
    way = f"use the same {differs}, or begin with the end of an epoch: {', '.join(ends)}\n"
    assert (way in done.said) == bool(differs)


def bests(checkpoints: Path) -> list[Path]:
    """List the checkpoints that were the best when they were saved."""
    return [path for path in checkpoint.listing(checkpoints) if checkpoint.read_state(path).is_best]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["whole@7"], r"has no checkpoint of step 7; steps here: 12, 10, 9, 8"),
        (
            ["whole"],
            r"step 12 is the end of this run or beyond; give it more --train\.epochs, or begin with an earlier",
        ),
        (["whole@8", "--train.max_steps", "5"], r"more --train\.max_steps, .* earlier step: --run\.from \S+/whole@4, "),
        (
            ["whole@3", "--train.batch_size", "20"],
            r"has 3 steps and one of this run 13; use --train\.batch_size 84, or",
        ),
        (
            ["whole@8", "--optim.name", "adam"],
            r'has optim\.name = "sgd" and this run "adam"; use the same, or start from',
        ),
        (["whole@8", "--model.name", "resnet18"], r'has model\.name = "\S+" and this run "resnet18"; use the same\n'),
        (["whole@8", "--model.pretrained", "a.pth"], r'has model\.pretrained = "" and this run "a\.pth"'),
        (["whole@8", "--model.freeze"], r"has model\.freeze = false and this run true"),
        (["whole@8", "--average.name", "swa"], r'has average\.name = "ema" and this run "swa"'),
        (
            ["whole@8", "--average.start", "3"],
            r"has average\.start = 0 and this run 3, and step 8 is not before both; use --average\.start 0, or begin",
        ),
        (
            ["whole@8", "--data.hold_out", "false"],  # 286 images instead of 251
            r"has 3 steps and one of this run 4; use --train\.batch_size 96, or start from its weights instead",
        ),
    ],
)
def test_an_origin_that_cannot_be_used_is_one_line_and_leaves_no_folder(
    place: Place, words: list[str], says: str
) -> None:
    refused = place.train("never", "--run.from", *words)
    assert (refused.code, refused.said.count("\n")) == (2, 1)
    assert re.search(says, refused.said), refused.said
    assert not (place.runs / "never").exists()


def test_the_weights_that_a_refused_branch_may_start_from_exist(place: Place) -> None:
    """Also those of a run that has no final ones yet."""
    assert place.train("unfinished", die_at=22).code == -9
    refused = place.train("never", "--run.from", "unfinished", "--optim.name", "adam")
    (weights,) = re.findall(r"start from its weights instead, with --model\.pretrained (\S+) and without", refused.said)
    begun = place.train("never", "--model.pretrained", weights, "--optim.name", "adam", "--train.max_steps", "1")
    assert begun.code == 0, begun.said
    shutil.rmtree(place.runs / "never")


def test_a_branch_whose_network_has_other_shapes_is_told_the_option(place: Place) -> None:
    network = ["--model.name", "tiny-resnet", "--train.max_steps", "3"]
    assert place.train("narrow", *network).code == 0
    words = ["--run.from", "narrow", "--train.max_steps", "5", "--model.options.widths", "[8, 24]"]
    refused = place.train("never", *network[:2], *words)
    assert (refused.code, refused.said.count("\n")) == (2, 1)
    assert "run.from: head.0.weight is 10x64 in " in refused.said
    assert refused.said.endswith("narrow and 10x24 in this run; use the same model.options.widths\n")
    assert not (place.runs / "never").exists()


AVERAGES = """
from dataclasses import dataclass

from cifar_dist.config import RunningAverageConfig


@dataclass(frozen=True)
class Half(RunningAverageConfig):
    def weight(self, step, *, start, total):
        return 0.5


@dataclass(frozen=True)
class Mean(RunningAverageConfig):
    def weight(self, step, *, start, total):
        return 1 / ((step - start) // self.every + 1)
"""


@pytest.mark.parametrize(("name", "is_mean"), [("swa", True), ("ema", False), ("Mean", True), ("Half", False)])
def test_a_mean_counts_its_updates_so_a_branch_makes_them_as_often(
    place: Place, tmp_path: Path, name: str, is_mean: bool
) -> None:
    (tmp_path / "mine.py").write_text(AVERAGES)
    words = ["--average.name", name if name.islower() else f"{tmp_path}/mine.py:{name}", "--average.every"]
    assert place.train("often", *words, "5", "--train.max_steps", "6").code == 0
    branch = [*words, "4", "--train.max_steps", "7", "--run.from"]
    asked = place.train("rarely", *branch, "often")
    if is_mean:
        assert asked.code == 2
        says = "has average.every = 5 and this run 4, and step 6 is not before the first update of both; use"
        ways = [f"--run.from {place.runs}/often@{step}" for step in (3, 2)]
        assert asked.said.endswith(f"{says} --average.every 5, or begin with an earlier step: {', '.join(ways)}\n")
        assert place.train("rarely", *branch, "often@4").code == 2, "the branch would have made an update there"
        asked = place.train("rarely", *branch, "often@3")
    assert asked.code == 0, asked.said
    for run in ("often", "rarely"):
        shutil.rmtree(place.runs / run)


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (["--optim.lr", "0.2"], "start another run"),
        (["--train.epochs", "2"], "start another run"),
        (["--optim.lr", "0.2", "--train.epochs", "5"], "branch it"),
        (["--model.options.dropout", "0.3", "--train.epochs", "5"], "start another run"),
        (["--train.batch_size", "126", "--train.epochs", "9"], "start another run"),
        (["--augment.transforms", '[{name = "crop"}, {name = "flip"}]', "--train.epochs", "5"], "branch it"),
        (["--augment.transforms", '[{name = "crop", pad = 1}, {name = "crop"}]'], "start another run"),
    ],
)
def test_the_other_run_that_a_refusal_offers_can_be_trained(place: Place, words: list[str], way: str) -> None:
    refused = place.train("whole", *words)
    assert refused.code == 2
    (command,) = re.findall(rf", or {way}: cifar-dist (.*)\n", refused.said)
    trained = place.run(*shlex.split(command))
    assert trained.code == 0, trained.said
    shutil.rmtree(place.runs / "whole-2")


def test_the_other_run_keeps_what_was_asked_for_besides(place: Place) -> None:
    refused = place.train(
        "whole", "--optim.lr", "0.2", "--train.epochs", "5", "--run.max_time", "1h", "--eval.tta", "mirror"
    )
    (command,) = re.findall(r", or branch it: cifar-dist (.*)\n", refused.said)
    assert {"--run.max_time 1h", "--eval.tta mirror"} <= {*re.findall(r"--\S+ \S+", command)}


def test_the_other_run_begins_where_it_was_asked_to(place: Place) -> None:
    assert place.train("begun", "--run.from", "whole@6", "--train.max_steps", "8").code == 0
    refused = place.train("begun", "--run.from", "whole@4", "--train.max_steps", "8")
    assert refused.code == 2
    (command,) = re.findall(r", or start another run: cifar-dist (.*)\n", refused.said)
    trained = place.run(*shlex.split(command))
    assert trained.code == 0, trained.said
    (origin,) = [event[2] for event in events(place.runs / "begun-2") if event[0] == "branched"]
    assert origin.endswith("whole@4")


def test_the_other_run_of_a_copy_is_beside_the_copy(place: Place, tmp_path: Path) -> None:
    copy = shutil.copytree(place.whole, tmp_path / "elsewhere" / "whole", symlinks=True)
    refused = place.run("resume", str(copy), "--optim.lr", "0.2")
    (command,) = re.findall(r", or start another run: cifar-dist (.*)\n", refused.said)
    assert place.run(*shlex.split(command)).code == 0
    assert (tmp_path / "elsewhere" / "whole-2" / "config.toml").is_file()
    assert not (place.runs / "whole-2").exists()


def test_the_length_is_left_as_it_was_where_the_run_cannot_have_another(place: Place) -> None:
    refused = place.train("whole", "--optim.lr", "0.2", "--train.epochs", "6")
    (command,) = re.findall(r"leave optim.lr as it was: cifar-dist (.*?), or ", refused.said)
    assert command == f"resume {place.whole}"
    assert place.run(*shlex.split(command)).code == 0


def test_the_commands_keep_the_launch_config(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = "cifar-dist launch zero2-offload --num_processes=2"
    monkeypatch.setenv(VARIABLE, launcher)
    refused = place.train("whole", "--optim.lr", "0.2")
    assert f"leave optim.lr as it was: {launcher} resume {place.whole}, or " in refused.said
    assert f": {launcher} {place.whole}/config.toml --run.name " in refused.said
    longer = place.train("whole", "--train.max_steps", "2")
    assert f"leave its length as it was: {launcher} resume {place.whole}\n" in longer.said
