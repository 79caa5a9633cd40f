"""A step of a finished run, recomputed to the last bit, with its images and gradients; and a certified run."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.engines import engine
from support.running import TRAIN, metrics, spawn, train

from cifar_dist import checkpoint
from cifar_dist.checkpoint import Tensors
from cifar_dist.config import Config, TrainConfig
from cifar_dist.distributed.engine import Engine
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline
from cifar_dist.tracking.environment import describe_numerics
from cifar_dist.training import certificate
from cifar_dist.training.certificate import Stretch
from cifar_dist.training.job_differences import JobDifferences, differences
from cifar_dist.training.replay import ReplayedSamples
from cifar_dist.verbs.replay import _recompute_stretches, _recorded_config

PROCESSES = 2
STEPS = 26


def job_of_one_process(threads: int = 1) -> Engine:
    """Return it with as many threads as the runs here, which ``train.threads`` 0 may not have."""
    return engine(Config(train=TrainConfig(threads=threads)))


def replay(*words: object, processes: int = PROCESSES) -> subprocess.CompletedProcess[str]:
    """Return the first rank's output of ``cifar-dist replay``."""
    return spawn(["-m", "cifar_dist", "replay", *map(str, words)], processes=processes)[0]


def norms_of(run: Path, step: int) -> dict[str, float]:
    """Read the norm of each parameter's gradient in a step that was replayed."""
    with (run / "replays" / f"step-{step:08d}" / "gradients.csv").open() as file:
        return {row["parameter"]: float(row["norm"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes and two epochs, with dropout and mixing, and checkpoints of steps 20, 25 and 26."""
    folder = tmp_path_factory.mktemp("replay")
    recipe = folder / "tiny.toml"
    recipe.write_text(
        f"""
        run.dir = "{folder}/runs"
        data.path = "{digits}"
        augment.transforms = [{{ name = "crop" }}, {{ name = "mixup" }}]
        model = {{ name = "tiny-cnn", options = {{ dropout = 0.2 }} }}
        optim = {{ lr = 0.1, clip_norm = 1.0 }}
        train = {{ epochs = 2, batch_size = 20, threads = 1, deterministic = true }}
        checkpoint = {{ every_steps = 5, keep = 3 }}
        eval.tta = "0"
        """
    )
    assert [done.returncode for done in train(str(recipe), "--run.name", "run", processes=PROCESSES)] == [0, 0]
    return folder / "runs" / "run"


@pytest.mark.parametrize(("step", "began"), [(1, 0), (26, 25)])
def test_a_step_is_what_was_recorded(trained: Path, step: int, began: int) -> None:
    """From new weights, and from the checkpoint before it; the last batch of an epoch is padded."""
    done = replay(trained, step)
    assert done.returncode == 0, done.stderr
    assert f"recomputing: {step - began} of {step - began} steps" in done.stderr
    recorded = next(record for record in metrics(trained) if record["step"] == step)
    assert f"loss {recorded['loss']!r}, recorded {recorded['loss']!r}: equal to the last digit" in done.stdout
    folder = trained / "replays" / f"step-{step:08d}"
    assert json.loads((folder / "replay.json").read_text())["began_from_step"] == began
    with np.load(folder / "images.npz", allow_pickle=False) as arrays:
        assert arrays["images"].shape == (recorded["samples"], 3, 32, 32)
        assert set(arrays["ranks"].tolist()) == {0, 1}
        assert arrays["losses"].mean(dtype=np.float64) == pytest.approx(recorded["loss"], rel=1e-6)
        assert (arrays["labels"] == arrays["predicted"]).mean() == pytest.approx(recorded["accuracy"])
        labels, partners, shares = (arrays[name] for name in ("labels", "partners", "shares"))
    others = partners[1:] != labels[1:]  # a partner of the same class leaves nothing to share
    assert (partners[1:] == labels[:-1])[others].all(), "the partner is the sample before"
    assert ((shares[1:] < 1) == others).all()
    assert 0 < shares.min() < 0.5 < shares[shares < 1].max()
    with (folder / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(float(row["share"]) for row in rows) == pytest.approx(sorted(shares.tolist()))
    assert recorded["grad_norm"] > 1, "or no gradient is clipped"
    assert math.hypot(*norms_of(trained, step).values()) == pytest.approx(recorded["grad_norm"], rel=1e-5)
    assert (folder / "replay.png").read_bytes().startswith(b"\x89PNG")


def test_a_mixed_sample_is_right_as_the_class_of_its_larger_share() -> None:
    shares = torch.tensor([1.0, 0.6, 0.4, 0.4])
    own, others = torch.tensor([3, 3, 3, 3]), torch.tensor([3, 5, 5, 5])
    predicted = torch.tensor([3, 3, 5, 3])
    nothing = torch.zeros(4)
    samples = ReplayedSamples(nothing, nothing, own, others, shares, predicted, nothing, nothing)
    assert samples.right.tolist() == [True, True, True, False]


ENGINES: dict[str, tuple[dict[str, str], list[str]]] = {
    "parts": ({}, ["--train.parts", "4"]),
    "fsdp": ({"ACCELERATE_USE_FSDP": "true"}, ["--train.accumulate", "2"]),
}


@pytest.mark.parametrize("name", ENGINES)
def test_the_gradients_of_any_engine_are_those_of_the_step(tiny: Path, tmp_path: Path, name: str) -> None:
    """Not what clipping and the optimizer make of them."""
    env, settings = ENGINES[name]
    words = [TRAIN, str(tiny), "--train.max_steps", "4", "--optim.clip_norm", "0.5", *settings]
    assert [done.returncode for done in spawn(words, PROCESSES, env)] == [0, 0]
    run = tmp_path / "runs" / "tiny"
    done, _ = spawn(["-m", "cifar_dist", "replay", str(run), "3"], PROCESSES, env)
    assert "equal to the last digit" in done.stdout, done.stdout + done.stderr
    (recorded,) = (record["grad_norm"] for record in metrics(run) if record["step"] == 3)
    assert recorded > 0.5, "or no gradient is clipped"
    norms = norms_of(run, 3)
    assert norms.keys() == load_file(run / "final" / "model.safetensors").keys(), "tiny-cnn has no buffers"
    assert math.hypot(*norms.values()) == pytest.approx(recorded, rel=1e-5)


def test_a_step_counts_as_equal_whatever_its_time_went_into(tiny: Path, tmp_path: Path) -> None:
    """The last step of an epoch without an evaluation records where the time of the epoch went."""
    words = ["--train.epochs", "2", "--eval.every", "2", "--tracking.every", "10"]
    assert train(str(tiny), *words)[0].returncode == 0
    run = tmp_path / "runs" / "tiny"
    assert "usage" in metrics(run)[12]
    done = replay(run, "--check", "9", processes=1)
    assert done.returncode == 0, done.stdout
    assert json.loads((run / "certificate.json").read_text())["equal"]


def test_the_step_that_diverged_is_recomputed(tiny: Path, tmp_path: Path) -> None:
    assert train(str(tiny), "--optim.lr", "1e30")[0].returncode == 1
    run = tmp_path / "runs" / "tiny"
    done = replay(run, 2, processes=1)
    assert "loss nan, recorded nan: equal to the last digit" in done.stdout
    assert done.returncode == 0
    found = (run / "replays" / "step-00000002" / "replay.json").read_text()
    assert json.loads(found)["replayed"]["loss"] is None
    assert "NaN" not in found


def test_a_run_of_three_processes_is_recomputed_from_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """Also its last digits, as a resume has them: three gradients can be added up in three orders."""
    words = ["--model.name", "small-resnet", "--model.options.widths", "[8,8,16]", "--train.batch_size", "10"]
    words += ["--train.max_steps", "3", "--checkpoint.every_steps", "2"]
    assert [done.returncode for done in train(str(tiny), *words, processes=3)] == [0, 0, 0]
    done = replay(tmp_path / "runs" / "tiny", "--check", "9", processes=3)
    assert done.stdout.count("numbers equal, checkpoint equal") == 2, done.stdout + done.stderr


def test_another_number_of_processes_is_reported(trained: Path) -> None:
    done = replay(trained, 24, processes=1)
    assert done.returncode == 3
    assert "processes: 2 then, 1 now" in done.stdout
    assert "differs by" in done.stdout


def test_a_run_is_certified_and_a_changed_number_is_detected(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=True)
    aside = copy / "checkpoints" / "step-00000003.damaged"
    shutil.copytree(checkpoint.listing(copy / "checkpoints")[0], aside)
    done = replay(copy, "--check", "9")
    assert done.returncode == 0, done.stderr
    certificate = json.loads((copy / "certificate.json").read_text())
    assert certificate["equal"]
    assert not [path for path in certificate["sha256"] if "damaged" in path], "it was not compared"
    assert certificate["differences_from_the_run"] == []
    assert [tuple(stretch.values()) for stretch in certificate["stretches"]] == [
        (0, 20, None, [], None),
        (20, 25, None, [], None),
        (25, 26, None, [], []),
    ]
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    changed = [line | {"loss": line["loss"] + 1e-9} if line["step"] == 23 else line for line in lines]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    done = replay(copy, "--check", "9")
    assert done.returncode == 3
    assert "steps 21 to 25: numbers differ from step 23 on, checkpoint equal" in done.stdout


def test_forged_averages_moments_and_evaluations_are_detected(tiny: Path, tmp_path: Path) -> None:
    words = ["--average.name", "ema", "--average.decay", "0.9", "--average.recalibrate", "20"]
    words += ["--model.name", "tiny-resnet", "--optim.name", "adam", "--eval.tta", "mirror"]
    assert train(str(tiny), *words, "--train.max_steps", "10")[0].returncode == 0
    run = tmp_path / "runs" / "tiny"
    done = replay(run, "--check", "9", processes=1)
    assert "steps 1 to 5: numbers equal, checkpoint equal\n" in done.stdout, done.stdout + done.stderr
    assert "steps 6 to 10: numbers equal, checkpoint equal, evaluation equal\n" in done.stdout
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    forged = [line if line["split"] == "train" else line | {"accuracy": 0.99} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in forged))
    first, last = (checkpoint.load(run / "checkpoints" / f"step-{step:08d}") for step in (5, 10))
    tensors = Tensors(last.tensors.weights, first.tensors.averaged, first.tensors.optimizer)
    checkpoint.save(run / "checkpoints", tensors, last.state)
    done = replay(run, "--check", "9", processes=1)
    assert done.returncode == 3
    assert "steps 1 to 5: numbers equal, checkpoint equal\n" in done.stdout
    parts = "averaged and averaged_statistics and optimizer"
    assert f"numbers equal, checkpoint differs in {parts}, evaluation differs in val and test\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["27"], "has no step 27; its steps are 1 to 26"),
        (["24", "--rank", "2"], "had ranks 0 to 1 at most"),
        ([], "name either a step or --check"),
        (["24", "--data", "/nowhere"], "/nowhere, the dataset of"),
    ],
)
def test_steps_that_cannot_be_replayed_are_one_line(trained: Path, words: list[str], says: str) -> None:
    done = replay(trained, *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


PLUG_INS = """
from dataclasses import dataclass
from typing import ClassVar

import torch
from cifar_dist.config import OptimConfig, RunningAverageConfig, ScheduleConfig
from cifar_dist.data.transforms import Transform


@dataclass(frozen=True)
class Falls(ScheduleConfig):
    def falling(self, at):
        return (1 - at.since / at.left) ** 0.5


@dataclass(frozen=True)
class Rprop(OptimConfig):
    def build(self, groups):
        return torch.optim.Rprop(groups, lr=self.lr)


@dataclass(frozen=True)
class Half(RunningAverageConfig):
    gives_back: ClassVar[bool] = True

    def weight(self, step, *, start, total):
        return 0.5


@dataclass(frozen=True)
class Invert(Transform):
    def __call__(self, images, samples):
        return ~images
"""


def test_a_run_with_plug_ins_is_replayed_with_the_code_that_trained_it(tiny: Path, tmp_path: Path) -> None:
    """Also where the file has been edited since, and then deleted."""
    code, run = tmp_path / "mine.py", tmp_path / "runs" / "tiny"
    code.write_text(PLUG_INS)
    settings = ["--schedule.name", f"{code}:Falls", "--optim.name", f"{code}:Rprop", "--optim.lr", "0.001"]
    settings += ["--average.name", f"{code}:Half", "--augment.transforms", f'[{{ name = "{code}:Invert" }}]']
    assert train(str(tiny), "--train.max_steps", "7", *settings)[0].returncode == 0
    code.write_text(PLUG_INS.replace("0.5", "0.4").replace("~images", "images").replace("lr=self.lr", "lr=1.0"))
    changed = replay(run, 4, processes=1)
    assert "equal to the last digit" in changed.stdout, changed.stdout + changed.stderr
    assert f"{code} has changed since {run} copied it; using {run}/plugins/mine.py" in changed.stderr
    code.unlink()
    gone = replay(run, "--check", "9", processes=1)
    assert gone.stdout.count("numbers equal, checkpoint equal") == 2, gone.stdout + gone.stderr
    assert f"{code} does not exist here; using its copy {run}/plugins/mine.py" in gone.stderr


@pytest.fixture
def of_three_jobs(trained: Path, tmp_path: Path) -> RunFolder:
    copy = shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    jobs = [
        ("started", 0, 1, "one process, cpu"),
        ("resumed", 13, 3, "FSDP, cpu"),
        ("resumed", 20, 1, "one process, cpu"),
    ]
    (copy / "timeline.jsonl").unlink()
    for kind, step, processes, where in jobs:
        timeline.append(copy / "timeline.jsonl", timeline.Event(timeline.utc(), kind, step, processes, where))  # type: ignore[arg-type]
    return RunFolder(copy)


def test_a_step_is_compared_with_the_job_that_trained_it(of_three_jobs: RunFolder) -> None:
    """A run may have changed its engine and its number of processes, also within what is recomputed."""
    folder, alone = of_three_jobs, job_of_one_process()
    assert differences(folder, alone, 0, 5).lines == (), "environment.json is of the third job"
    assert differences(folder, alone, 20, 26).lines == ("precision: fp32 + deterministic then, fp32 now",)
    other = differences(folder, alone, 13, 20)
    assert other.lines[:2] == ("processes: 3 then, 1 now", "wrapper: FSDP then, one process now")
    crossing = differences(folder, alone, 5, 14)
    line = "steps 6 to 14 were trained on 1 x one process, cpu and then 3 x FSDP, cpu, and no job recomputes all"
    assert crossing.lines[0].startswith(line)
    assert (other.avoidable, crossing.avoidable) == (True, False), "what the command on the run's processes is for"


def test_fixed_parts_do_not_depend_on_processes(of_three_jobs: RunFolder) -> None:
    """So a replay names none, and no other number is worth a try."""
    folder, alone = of_three_jobs, engine(Config(train=TrainConfig(threads=1, parts=4)))
    described = json.loads(folder.environment.read_text())
    described["run"] |= {"processes": 3, "wrapper": alone.description, "precision": alone.arithmetic}
    folder.environment.write_text(json.dumps(described))
    started = timeline.Event(timeline.utc(), "started", 0, 2, f"{alone.description}, cpu", threads=1)
    folder.timeline.unlink()
    assert differences(folder, alone, 0, 26) == JobDifferences((), avoidable=False)
    timeline.append(folder.timeline, started)
    timeline.append(folder.timeline, replace(started, kind="resumed", step=13, processes=3))
    assert differences(folder, alone, 5, 20) == JobDifferences((), avoidable=False)
    timeline.append(folder.timeline, replace(started, kind="resumed", step=20, processes=1, threads=2))
    assert differences(folder, alone, 21, 26) == JobDifferences(("threads: 2 then, 1 now",), avoidable=False)


def test_another_torch_cpu_or_commit_is_named(trained: Path, tmp_path: Path) -> None:
    """By the record of the job that trained the steps; no other launch avoids them."""
    folder = RunFolder(shutil.copytree(trained, tmp_path / "copy", symlinks=True))
    alone, now = job_of_one_process(), describe_numerics("cpu")
    described = json.loads(folder.environment.read_text())
    described |= {"commit": "1" * 40 + "-dirty", "cpu": "Intel 8088", "versions": {"torch": "1.0.0"}}
    described["run"] |= {"processes": 1, "wrapper": "one process", "precision": alone.arithmetic}
    folder.environment.write_text(json.dumps(described))
    cpu, torch = f"cpu: Intel 8088 then, {now['cpu']} now", f"torch: 1.0.0 then, {now['torch']} now"
    commit = [f"commit: 1111111111-dirty then, {now['commit']} now"] if "commit" in now else []
    folder.timeline.unlink()
    started = timeline.Event(timeline.utc(), "started", 0, 1, "one process, cpu")
    timeline.append(folder.timeline, started)  # of a version that recorded no more
    assert differences(folder, alone, 0, 26) == JobDifferences((torch, *commit, cpu), avoidable=False)

    resumed = replace(started, kind="resumed", step=13)
    timeline.append(folder.timeline, replace(resumed, numerics=now | {"torch": "2.0.0"}))
    assert differences(folder, alone, 0, 13).lines == (), "environment.json is of the second job"
    assert differences(folder, alone, 13, 26).lines == (f"torch: 2.0.0 then, {now['torch']} now",)
    folder.timeline.unlink()
    timeline.append(folder.timeline, replace(started, numerics={"torch": "1.0.0"}))
    timeline.append(folder.timeline, replace(resumed, processes=2, numerics=now | {"torch": "2.0.0"}))
    crossing = differences(folder, alone, 5, 20).lines
    assert crossing[1:] == (f"torch: 1.0.0 and 2.0.0 then, {now['torch']} now",)


def test_other_threads_and_another_compilation_are_named(trained: Path, tmp_path: Path) -> None:
    """A resume may change both. No other launch avoids them: a replay has those of the newest settings."""
    folder = RunFolder(shutil.copytree(trained, tmp_path / "copy", symlinks=True))
    (began,) = (event for event in timeline.read(folder.timeline) if event.processes)
    assert (began.threads, began.compile) == (1, "no")
    alone = job_of_one_process(threads=2)
    described = json.loads(folder.environment.read_text())
    described["run"] |= {"processes": 1, "wrapper": "one process", "precision": alone.arithmetic, "threads": 5}
    folder.environment.write_text(json.dumps(described))
    started = replace(began, processes=1, where="one process, cpu", precision=alone.arithmetic)

    def found(first: int, last: int, *starts: timeline.Event) -> JobDifferences:
        folder.timeline.unlink()
        for start in starts:
            timeline.append(folder.timeline, start)
        return differences(folder, alone, first, last)

    resumed = replace(started, kind="resumed", step=13, threads=2)
    assert found(0, 13, started, resumed) == JobDifferences(("threads: 1 then, 2 now",), avoidable=False)
    assert found(13, 26, started, resumed).lines == ()
    (crossing,) = found(5, 20, started, resumed).lines
    several = "1 x one process, cpu, threads: 1 and then 1 x one process, cpu, threads: 2"
    assert crossing == f"steps 6 to 20 were trained on {several}, and no job recomputes all to the last digit"
    compiled = replace(resumed, compile="default")
    assert found(13, 26, started, compiled).lines == ("train.compile: default then, no now",)
    several = several.replace("1 and", "1, train.compile: no and") + ", train.compile: default"
    assert several in found(5, 20, started, compiled).lines[0]

    other = replace(resumed, threads=1, precision="bf16")
    assert "1 x one process, cpu, precision: bf16, and no" in found(5, 20, started, other).lines[0]
    assert found(5, 20, started, other, replace(started, kind="resumed", step=13)) == found(0, 13, started)

    older, newer = (replace(start, threads=0, compile="", precision="") for start in (started, resumed))
    assert found(0, 13, older, newer).lines == (), "environment.json is of the second job"
    assert found(13, 26, older, newer).lines == ("threads: 5 then, 2 now",)
    assert found(5, 20, older, resumed).lines == (), "what is not known"
    lines = [json.loads(line) for line in folder.timeline.read_text().splitlines()]
    for key in ("threads", "compile", "precision"):
        del lines[0][key]
    damaged = [lines[0], *(lines[1] | one for one in ({"threads": "2"}, {"compile": None}, {"precision": 1}))]
    folder.timeline.write_text("".join(json.dumps(line) + "\n" for line in damaged))
    assert timeline.read(folder.timeline) == [older]


@pytest.mark.parametrize(("device", "avoidable"), [("cuda (NVIDIA A100)", True), ("cpu", False)])
def test_a_cpu_is_compared_where_it_computes(of_three_jobs: RunFolder, device: str, avoidable: bool) -> None:
    folder, alone = of_three_jobs, job_of_one_process()
    described = json.loads(folder.environment.read_text())
    described |= {"cpu": "Intel 8088"}
    described["run"] |= {"device": device, "precision": alone.arithmetic}
    folder.environment.write_text(json.dumps(described))
    folder.timeline.unlink()
    timeline.append(folder.timeline, timeline.Event(timeline.utc(), "started", 0, 1, f"one process, {device}"))
    found = differences(folder, alone, 0, 5)
    assert [line.partition(":")[0] for line in found.lines] == ["device" if avoidable else "cpu"]
    assert found.avoidable == avoidable


def test_a_certificate_names_the_jobs_that_trained_its_stretches(
    of_three_jobs: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be others than the last one, on which nothing differs."""
    folder, alone = of_three_jobs, job_of_one_process()
    stretches = [Stretch(0, 13, None, (), None), Stretch(13, 26, 14, ("weights",), None)]
    monkeypatch.setattr(certificate, "certify", lambda *_, **__: stretches)
    config = _recorded_config(folder, None, None)
    result = _recompute_stretches(Namespace(check=2, seed=0), config, alone, folder)
    assert not result.equal
    (crossing,) = [line for one in result.differences for line in one.lines if line.startswith("steps ")]
    assert crossing.startswith("steps 14 to 26 were trained on 3 x FSDP, cpu and then 1 x one process, cpu, and no job")
    assert crossing in json.loads(folder.certificate.read_text())["differences_from_the_run"]
