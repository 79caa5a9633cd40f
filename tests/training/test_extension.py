"""Finished runs that are made longer, also when that is killed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.continued_runs import STEPS, Place, events, tree
from support.running import metrics, story
from support.wandb_offline import segments

from cifar_dist import checkpoint
from cifar_dist.config import ScheduleConfig
from cifar_dist.config.schedule import ConstantConfig, RestartsConfig, StepConfig, TriangularConfig, WSDConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.files.checksums import changed_files
from cifar_dist.files.reading import read_json
from cifar_dist.run_folder import RunFolder
from cifar_dist.runs.listing import describe, table
from cifar_dist.step_folder import step_of
from cifar_dist.tracking.metrics import read


def test_max_steps_are_the_first_steps_of_the_longer_run(place: Place) -> None:
    stopped = place.runs / "stopped"
    assert story(stopped)[:5] == story(place.whole)[:5]
    assert [record["step"] for record in metrics(stopped)] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in metrics(stopped, "val")] == [3, 5], "it is evaluated where it ends"
    assert events(stopped)[-1] == ("finished", 5, "train.max_steps")


def test_a_run_is_evaluated_with_views_only_at_its_end(place: Place) -> None:
    assert place.train("views", "--train.max_steps", str(STEPS), "--eval.tta", "mirror").code == 0
    (record,), (first, *_) = (metrics(run, "val") for run in (place.runs / "views", place.whole))
    assert (record["loss"], record["accuracy"]) == (first["loss"], first["accuracy"])


def test_a_finished_run_is_extended_as_if_it_had_had_the_length_from_the_start(place: Place) -> None:
    run = shutil.copytree(place.runs / "stopped", place.runs / "extended", symlinks=True)
    before, old = tree(run), RunFolder(run).final.read_bytes()
    again = place.run("resume", str(run))
    assert (again.code, "is finished already" in again.said) == (0, True)
    assert tree(run) == before

    longer = place.run("resume", str(run), "--train.epochs", "4", "--train.max_steps", "0")
    assert longer.code == 0, longer.said
    place.assert_is_whole(run)
    assert (run / "final-step-00000005" / "model.safetensors").read_bytes() == old
    evaluations = RunFolder(run).evaluation_folders()
    assert [read_json(one.summary)["checkpoint"] for one in evaluations] == ["step-00000005", "final"]
    assert [one.path.name.rpartition("_model_")[2] for one in evaluations] == ["step-00000005", "final"]
    assert not any(changed_files(one.path) for one in evaluations)
    assert ("extended", 5, "train.epochs 3 -> 4, train.max_steps 5 -> 0") in events(run)
    listed = table([describe(RunFolder(run)), describe(RunFolder(place.whole))])
    assert "| extended after step 5: train.epochs 3 -> 4, train.max_steps 5 -> 0 |" in listed
    assert "origin" not in table([describe(RunFolder(place.whole))])


def test_a_finished_run_names_the_settings_without_effect_and_the_way_to_evaluate_it_with_others(place: Place) -> None:
    run = shutil.copytree(place.runs / "stopped", place.runs / "evaluated", symlinks=True)
    before = tree(run)
    words = ["--eval.tta", "mirror", "--eval.split", "val", "--eval.every", "2", "--tracking.wandb", "offline"]
    words += ["--run.max_time", "2h", "--data.read_ahead", "3", "--train.profile", "4", "--checkpoint.keep", "2"]
    again = place.run("resume", str(run), *words)
    assert (again.code, tree(run)) == (0, before)
    way = re.search(r"^it was evaluated with another eval\.split; for this one: cifar-dist (.*)$", again.said, re.M)
    assert way, again.said
    idle = re.search(r"^(.*): without effect on a finished run$", again.said, re.M)
    assert idle, again.said
    given = {word.removeprefix("--") for word in words[::2]}
    assert set(idle[1].split(", ")) == given - {"eval.tta", "eval.split"}
    evaluated = place.run(*shlex.split(way[1]))
    assert evaluated.code == 0, evaluated.said
    made = [read_json(one.summary) for one in RunFolder(run).evaluation_folders() if not one.is_named_final]
    assert [(one["split"], one["tta"], one["step"]) for one in made] == [("val", "mirror", 5)]


def test_a_finished_run_takes_another_place_of_its_data(place: Place, digits: Path, tmp_path: Path) -> None:
    run = shutil.copytree(place.runs / "stopped", place.runs / "moved", symlinks=True)
    folder, data = RunFolder(run), tmp_path / "data"
    shutil.copytree(digits, data)
    folder.config.write_text(folder.config.read_text().replace("keep = 20\n", "keep = 9\n"))
    for file in (folder.config, folder.started_config):  # of a run on two GPUs, which are not here
        text = file.read_text().replace("processes = 0\n", "processes = 2\n")
        file.write_text(re.sub(r'precision = "\w+"\n', 'precision = "fp16"\n', text))
        assert ("processes = 2\n" in file.read_text(), '"fp16"\n' in file.read_text()) == (True, True)
    edited, started = folder.config.read_text(), folder.started_config.read_text()
    moved = place.run("resume", str(run), "--data.path", str(data))
    assert (moved.code, f"\ndata.path is now {data}\n" in moved.said) == (0, True), moved.said
    for file, text in ((folder.config, edited), (folder.started_config, started)):
        assert file.read_text() == text.replace(str(digits), str(data)), "nothing else has changed"
    before = tree(run)
    again = place.run("resume", str(run))
    assert (again.code, "data.path" in again.said) == (0, False), again.said

    (tmp_path / "empty").mkdir()
    kept = place.run("resume", str(run), "--data.path", str(tmp_path / "empty"))
    assert f"\ndata.path is still {data}: {tmp_path}/empty/manifest.json is missing\n" in kept.said
    folder.manifest.rename(tmp_path / "manifest.json")
    kept = place.run("resume", str(run), "--data.path", str(digits))
    assert f"\ndata.path is still {data}: {folder.manifest} is missing\n" in kept.said
    (tmp_path / "manifest.json").rename(folder.manifest)
    assert (kept.code, tree(run)) == (0, before)


def test_a_finished_run_sends_wandb_what_it_may_lack(place: Place, tmp_path: Path) -> None:
    """Its processes may all have ended without W&B, whose folder or server is not missed later."""
    run = place.runs / "mirrored"
    own = {f"WANDB_{kind}_DIR": str(tmp_path) for kind in ("CONFIG", "CACHE", "DATA")}
    without_key = {**own, "WANDB_MODE": "online", "WANDB_API_KEY": "", "NETRC": str(tmp_path / "none")}
    words = ["train", place.recipe, "--run.name", run.name, "--train.max_steps", "5", "--tracking.wandb", "offline"]
    first = place.run(*words, env=without_key)
    way = f"metrics.jsonl is complete; to send W&B its rows once the run has ended: cifar-dist resume {run}\n"
    assert (first.code, "warning: W&B could not start: " in first.said) == (0, True), first.said
    assert way in first.said
    before = story(run)

    failed, sent, again = (place.run("resume", str(run), env=env) for env in (without_key, own, own))
    assert (failed.code, sent.code, again.code) == (0, 0, 0), sent.said
    assert failed.said.count(way) == 1, failed.said
    (segment,) = segments(run)
    assert [row["step"] for row in segment.rows] == [record.step for record in read(run / "metrics.jsonl")]
    assert "W&B may lack metrics of this run: sending all 8 records\n" in sent.said
    assert "wandb sync" in sent.said
    assert "W&B" not in again.said
    assert story(run) == before


@pytest.mark.parametrize("die_at", range(2, 10))
def test_an_extension_that_is_killed_can_be_repeated(place: Place, die_at: int) -> None:
    """Before, between and after it renames the final weights and their evaluation, and writes the config."""
    run = shutil.copytree(place.runs / "stopped", place.runs / f"killed-{die_at}", symlinks=True)
    words = ["resume", str(run), "--train.epochs", "4", "--train.max_steps", "0"]
    assert place.run(*words, die_at=die_at).code == -9
    again = place.run(*words)
    assert again.code == 0, again.said
    place.assert_is_whole(run)
    evaluations = RunFolder(run).evaluation_folders()
    assert [read_json(one.summary)["checkpoint"] for one in evaluations] == ["step-00000005", "final"]
    assert [one.path.name.rpartition("_model_")[2] for one in evaluations] == ["step-00000005", "final"]
    assert not any(changed_files(one.path) for one in evaluations)
    assert not [*run.rglob(".*.tmp*")]
    assert [event for event in events(run) if event[0] == "extended"] == [
        ("extended", 5, "train.epochs 3 -> 4, train.max_steps 5 -> 0")
    ]


@pytest.mark.parametrize(
    ("schedule", "steps", "kept"),
    [
        (ConstantConfig(warmup=1), 99, True),
        (StepConfig(milestones=(1, 2)), 99, True),
        (RestartsConfig(cycle=1), 99, True),
        (RestartsConfig(), 2, False),
        (TriangularConfig(cycle=2, warmup=1), 99, True),
        (WSDConfig(decay=1, warmup=1), 3 * STEPS + 1, True),
        (WSDConfig(decay=1, warmup=1), 3 * STEPS + 2, False),
        *((ScheduleConfig.variants[name](), 2, False) for name in ("onecycle", "cosine", "linear", "polynomial")),
    ],
)
def test_which_schedules_can_be_extended(schedule: ScheduleConfig, steps: int, kept: bool) -> None:
    assert schedule.keeps_rates(steps, steps_per_epoch=STEPS, before=4, after=9) is kept


def test_a_length_that_changes_past_steps_is_refused_with_commands_that_work(place: Place) -> None:
    before = tree(place.whole)
    refused = place.run("resume", str(place.whole), "--train.epochs", "6")
    assert refused.code == 2
    assert (
        'train.epochs 4 -> 6 would change the learning rates of schedule.name = "wsd" in the 12 steps' in refused.said
    )
    assert tree(place.whole) == before
    resume, branch = re.findall(r"cifar-dist (.*?)(?:, or branch it: |\n)", refused.said)
    assert place.run(*shlex.split(resume)).code == 0
    branched = place.run(*shlex.split(branch))
    assert branched.code == 0, branched.said
    assert [record["step"] for record in metrics(place.runs / "whole-2")] == list(range(1, 6 * STEPS + 1))


def test_a_length_that_changes_past_updates_of_an_average_is_refused(place: Place) -> None:
    words = [
        "--average.name",
        "lookahead",
        "--average.every",
        "2",
        "--average.ramp",
        "1",
        "--schedule.name",
        "constant",
    ]
    assert place.train("ramped", *words, "--train.max_steps", "3").code == 0
    longer = ["--train.epochs", "6", "--train.max_steps", "0"]
    refused = place.run("resume", str(place.runs / "ramped"), *longer)
    says = 'would change the weights of average.name = "lookahead" in the 3 steps done'
    assert (refused.code, says in refused.said) == (2, True), refused.said


def test_a_finished_run_that_has_lost_its_checkpoints_is_not_trained_from_the_beginning(place: Place) -> None:
    run = shutil.copytree(place.runs / "stopped", place.runs / "lost", symlinks=True)
    shutil.rmtree(run / "checkpoints")
    before = tree(run)
    refused = place.run("resume", str(run), "--train.max_steps", "6")
    assert (refused.code, refused.said.count("\n")) == (2, 1), refused.said
    assert f"{run}/checkpoints has no intact checkpoint (all were deleted); restore one" in refused.said
    assert refused.said.endswith(f"--run.name NEW --model.pretrained {run}/final/model.safetensors\n")
    assert tree(run) == before
    RunFolder(run).saved.unlink()  # as of an earlier version
    refused = place.run("resume", str(run), "--train.max_steps", "6")
    assert (refused.code, "(all were deleted; one was of step 5); restore one" in refused.said) == (2, True)
    assert place.run("resume", str(run)).code == 0, "as it is, it is finished all the same"


def test_a_run_without_an_intact_checkpoint_starts_over_after_the_command_that_it_names(place: Place) -> None:
    run = shutil.copytree(place.runs / "stopped", place.runs / "torn", symlinks=True)
    for weights in run.glob("checkpoints/*/weights.safetensors"):
        weights.write_bytes(b"torn")
    words = ["--train.epochs", "3", "--train.max_steps", "6"]
    refused = place.train("torn", *words)
    assert (refused.code, refused.said.count("\n")) == (2, 1), refused.said
    (lost,) = re.findall(
        r"has no intact checkpoint \(.*\); restore one, or start this run over: rm -r (.*?)[,;]", refused.said
    )
    shutil.rmtree(lost)
    assert place.train("torn", *words).code == 0


def test_an_edited_config_is_not_taken_for_the_settings_of_the_run(place: Place) -> None:
    run = shutil.copytree(place.runs / "stopped", place.runs / "edited", symlinks=True)
    config = run / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.1\n", "lr = 0.3\n"))
    before = tree(run)
    for words in (["resume", "--train.max_steps", "6"], ["resume"], ["evaluate"], ["replay", "3"]):
        refused = place.run(words[0], str(run), *words[1:])
        assert (refused.code, refused.said.count("\n")) == (2, 1), refused.said
        assert f"{run} was started with optim.lr = 0.1 and {config} says 0.3; write the first there" in refused.said
        assert tree(run) == before
    config.write_text(config.read_text().replace("lr = 0.3\n", "lr = 0.1\n").replace("epochs = 3", "epochs = 4"))
    longer = place.run("resume", str(run), "--train.max_steps", "0")
    assert longer.code == 0, longer.said
    assert ("extended", 5, "train.epochs 3 -> 4, train.max_steps 5 -> 0") in events(run)
    place.assert_is_whole(run)


def test_patience_that_is_switched_off_takes_its_own_settings_along(place: Place) -> None:
    words = ["--train.patience", "1", "--train.min_delta", "0.9"]
    assert place.train("impatient", *words).code == 0
    run = place.runs / "impatient"
    refused = place.run("resume", str(run), "--train.max_steps", "11")
    (off,) = re.findall(r"or (--train\.patience 0.*)\n", refused.said)
    assert off == "--train.patience 0 --train.min_delta 0.0"
    assert place.run("resume", str(run), *off.split()).code == 0


def test_a_final_evaluation_on_images_of_the_training_is_said_to_be_one(place: Place) -> None:
    done = place.train("overlap", "--data.hold_out", "false", "--eval.split", "val", "--train.max_steps", "1")
    assert done.code == 0
    assert "the run trains on the split 'val', which it is evaluated on in the end" in done.said


def test_a_run_whose_extension_was_killed_may_have_its_former_length_again(place: Place) -> None:
    words = ["--schedule.name", "constant", "--train.max_steps", "5"]
    assert place.train("hesitant", *words).code == 0
    before, kept = story(place.runs / "hesitant"), []
    for die_at in (7, 12, 14, 15):  # around the moments at which the evaluation of the former end is undone
        run = shutil.copytree(place.runs / "hesitant", place.runs / f"hesitant-{die_at}", symlinks=True)
        assert place.run("resume", str(run), "--train.max_steps", "9", die_at=die_at).code == -9
        kept.append([record["step"] for record in metrics(run, "val")])
        again = place.run("resume", str(run), "--train.max_steps", "5")
        assert again.code == 0, again.said
        assert story(run) == before
        assert (run / "checkpoints" / "best").resolve() == checkpoint.named(run / "checkpoints", "best").resolve()
    assert (kept[0], kept[-1]) == ([3, 5], [3]), "that of the former end is gone"


def test_a_run_that_is_made_shorter_is_evaluated_at_its_new_end(place: Place) -> None:
    words = ["--schedule.name", "constant", "--eval.every", "3"]
    assert place.train("short", *words, "--train.max_steps", "6").code == 0
    assert place.train("shortened", *words, die_at=24).code == -9
    run = place.runs / "shortened"
    state = checkpoint.read_state(checkpoint.named(RunFolder(run).checkpoints, "latest"))
    assert (state.step, state.epochs_evaluated, metrics(run, "val")) == (6, 2, [])
    done = place.run("resume", str(run), "--train.max_steps", "6")
    assert done.code == 0, done.said
    assert story(run) == story(place.runs / "short")


def test_the_best_checkpoint_of_an_extended_run_has_the_accuracy_that_it_is_said_to_have(place: Place) -> None:
    """That of the evaluation before the former end was deleted, when the one of that end was better."""
    words = ["--schedule.name", "constant", "--optim.lr", "0.02", "--eval.every", "2", "--checkpoint.keep", "1"]
    assert place.train("forgetful", *words, "--train.epochs", "3").code == 0
    run = place.runs / "forgetful"
    early, late = (record["accuracy"] for record in metrics(run, "val"))
    assert early < late, "or the test would show nothing"
    assert place.run("resume", str(run), "--train.epochs", "6", die_at=16).code == -9
    folder = RunFolder(run).checkpoints
    state = checkpoint.read_state(checkpoint.named(folder, "best"))
    assert state.step >= 9
    assert state.best_val_accuracy is None, "no checkpoint of an evaluation is left"
    done = place.run("resume", str(run))
    assert done.code == 0, done.said
    assert "warning: the checkpoint of the best evaluation so far is lost; the next evaluation is the best" in done.said
    state = checkpoint.read_state(checkpoint.named(folder, "best"))
    assert state.best_val_accuracy in [record["accuracy"] for record in metrics(run, "val") if record["step"] >= 12]


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (["--train.max_steps", "4"], ["--checkpoint.every_steps", "1"]),
        (["--train.epochs", "3"], ["--eval.every", "2", "--train.patience", "2", "--train.min_delta", "0.9"]),
    ],
    ids=["within an epoch", "in an epoch that is not evaluated"],
)
def test_an_evaluation_that_only_a_shorter_run_had_is_undone(place: Place, end: list[str], words: list[str]) -> None:
    words = [*words, "--schedule.name", "constant", "--train.epochs", "8"]
    name = f"undone-{len(words)}"
    assert place.train(f"{name}-whole", *words).code == 0
    assert place.train(name, *words, *end).code == 0
    run, whole = place.runs / name, place.runs / f"{name}-whole"
    step = metrics(run)[-1]["step"]
    extended = place.run("resume", str(run), "--train.epochs", "8", "--train.max_steps", "0")
    assert extended.code == 0, extended.said
    assert story(run) == story(whole)
    later = [path for path in checkpoint.listing(RunFolder(run).checkpoints) if (step_of(path) or 0) > step]
    assert later
    for path in later:
        assert checkpoint.read_state(path) == checkpoint.read_state(RunFolder(whole).checkpoints / path.name)
    assert (run / "checkpoints" / "best").resolve() == checkpoint.named(run / "checkpoints", "best").resolve()


def test_an_evaluation_that_is_undone_is_not_the_best_though_it_equals_the_best(place: Place, digits: Path) -> None:
    """The network names the most frequent class up to step 4, where the shorter run ended, and the rarest one then."""
    images = np.bincount(Manifest.load(digits).labels("val"), minlength=10)
    assert images.max() > images.min()
    plugin = place.runs / "equal_until_4.py"
    plugin.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes, channels):\n"
        "        super().__init__()\n"
        "        self.bias = nn.Parameter(torch.zeros(classes))\n"
        "        self.register_buffer('steps', torch.zeros((), dtype=torch.long))\n"
        "    def forward(self, images):\n"
        "        self.steps += self.training\n"
        f"        named = {images.argmax()} if self.steps <= 4 else {images.argmin()}\n"
        "        scores = nn.functional.one_hot(torch.tensor(named), len(self.bias)).float()\n"
        "        return scores + self.bias + 0 * images.mean((1, 2, 3))[:, None]\n"
    )
    words = ["--model.name", f"{plugin}:Net", "--optim.lr", "1e-6", "--schedule.name", "constant"]
    words += ["--average.name", "none", "--checkpoint.every_steps", "1", "--train.epochs", "2"]
    assert place.train("tie", *words, "--train.max_steps", "4").code == 0
    turn, end = (record["accuracy"] for record in metrics(place.runs / "tie", "val"))
    assert turn == end, "or the test would show nothing"
    assert checkpoint.named(place.runs / "tie" / "checkpoints", "best").name == "step-00000004"
    for die_at in (0, 10, 11, 12, 13):  # around the renames of the checkpoint of step 4
        run = shutil.copytree(place.runs / "tie", place.runs / f"tie-{die_at}", symlinks=True)
        longer = ["resume", str(run), "--train.max_steps", "0"]
        if die_at:
            assert place.run(*longer, die_at=die_at).code == -9
        done = place.run(*longer)
        assert done.code == 0, done.said
        *_, later = (record["accuracy"] for record in metrics(run, "val"))
        assert later < turn, "or the best would be the newest"
        folder = run / "checkpoints"
        assert checkpoint.named(folder, "best").name == (folder / "best").readlink().name == "step-00000003"
        undone = checkpoint.read_state(folder / "step-00000004")
        assert (undone.epochs_evaluated, undone.val_accuracy, undone.is_best) == (1, turn, False)
