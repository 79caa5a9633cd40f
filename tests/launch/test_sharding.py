"""DeepSpeed ZeRO and FSDP over gloo: really used, stopped, resumed, and interchangeable during a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import padding_on_ranks, resume_on_ranks
from support.running import TRAIN, free_port, metrics, pausing, resume, spawn, wait_for_pause
from support.small_checkpoint import names

from cifar_dist import checkpoint, cli
from cifar_dist.tracking import timeline
from launch import soak

STEPS = 26


@pytest.fixture(scope="module")
def runs(all_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders of resume_on_ranks.py, with batches of the size that the tolerances below are for."""
    folder = tmp_path_factory.mktemp("engines")
    (done,) = spawn([resume_on_ranks.__file__, str(soak.write_recipe(folder, all_digits, 100))], timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


@pytest.mark.parametrize("optimizer", resume_on_ranks.OPTIMIZERS)
def test_a_run_of_all_engines_ends_like_one_of_ddp(runs: Path, tmp_path: Path, optimizer: str) -> None:
    """Stopped, killed and resumed with the next engine, with weights, optimizer state and step counts.

    With AdamW to the bit, as it adds the gradients of two ranks and updates each weight alone. With accumulation, DDP
    adds a rank's micro-batches first, the others add the ranks first; the norm for clipping is also added in another
    order. With SGD such a difference stays in the last digit; with AdamW, which divides each gradient by its size, the
    loss would drift by 1e-3 in these steps.
    """
    whole, changing = runs / f"{optimizer}-ddp", runs / f"{optimizer}-all"
    wrappers = ["DDP", "DeepSpeed ZeRO-1", "DeepSpeed ZeRO-3", "FSDP", "DeepSpeed ZeRO-2, optimizer on the CPU", "DDP"]
    events = timeline.read(changing / "timeline.jsonl")
    assert [event.where for event in events if event.kind in ("started", "resumed")] == [f"{w}, cpu" for w in wrappers]
    assert [event.kind for event in events if not event.where] == [
        *["interrupted"] * 2,
        "killed",
        *["interrupted"] * 2,
        "finished",
    ]
    assert "model  tiny-cnn, 4,010 parameters" in (changing / "training.log").read_text()

    curves = [[record["loss"] for record in metrics(run)] for run in (whole, changing)]
    weights = [load_file(run / "final" / "model.safetensors") for run in (whole, changing)]
    rtol, atol = (0.0, 0.0) if optimizer == "adamw" else (1e-4, 1e-5)
    assert len(curves[0]) == STEPS
    assert curves[1] == (curves[0] if optimizer == "adamw" else pytest.approx(curves[0], rel=1e-5))
    torch.testing.assert_close(weights[1], weights[0], rtol=rtol, atol=atol)
    assert accuracy(changing) == accuracy(whole)
    assert cli.run(["export", str(changing), "--out", str(tmp_path / "network.pt")]) == 0


def test_checkpoints_in_parts_are_read_as_those_of_rank_0(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AdamW's runs have equal weights, one with checkpoints in parts; one process continued both."""
    (parts,) = {len(names(path)) for path in checkpoint.listing(runs / "adamw-all" / "checkpoints")}
    assert parts == 2 * 4 + 2, "weights, averages, their statistics and optimizer, of two each; state and marker"
    assert not (runs / "adamw-ddp" / "checkpoints" / "latest" / "weights-1-of-2.safetensors").exists()
    continued = [runs / name / "final" / "model.safetensors" for name in ("adamw-ddp-alone", "adamw-all-alone")]
    assert continued[0].read_bytes() == continued[1].read_bytes()
    assert [record["step"] for record in metrics(runs / "adamw-all-alone")] == list(range(1, 29))
    assert cli.run(["checkpoint", "diff", *(f"{runs / name}@latest" for name in ("adamw-ddp", "adamw-all"))]) == 0
    assert " are equal: " in capsys.readouterr().out


def test_batch_statistics_and_their_average_are_rank_0s_whoever_writes_them(tiny: Path, tmp_path: Path) -> None:
    """Each process averages the statistics of its own images."""
    network = ["--model.name", "small-resnet", "--model.options.widths", "[8,8,16]", "--average.name", "ema"]
    written = []
    for sharded in ("true", "false"):
        words = [*network, "--train.max_steps", "3", "--checkpoint.sharded", sharded, "--run.name", sharded]
        done = spawn([TRAIN, str(tiny), *words], 2)
        assert [process.returncode for process in done] == [0, 0], done[0].stderr
        written.append(checkpoint.load(tmp_path / "runs" / sharded / "checkpoints" / "latest").tensors)
    assert load_file(tmp_path / "runs/true/checkpoints/latest/averaged_statistics-2-of-2.safetensors")
    weights = [dict(tensors.weights) for tensors in written]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    parts, whole = [tensors.averaged for tensors in written]
    assert parts is not None
    assert whole is not None
    torch.testing.assert_close(dict(parts.statistics), dict(whole.statistics), rtol=0, atol=0)
    torch.testing.assert_close(dict(parts.weights), dict(whole.weights), rtol=0, atol=0)


def accuracy(run: Path) -> float:
    """Of the final evaluation."""
    (summary,) = (run / "evaluations").glob("*/summary.json")
    return float(json.loads(summary.read_text())["accuracy"])


@pytest.mark.parametrize(("stage", "batch", "accumulate"), [("1", "34", "2"), ("2", "33", "1"), ("3", "1", "1")])
def test_a_batch_that_does_not_divide_is_padded_by_deepspeed_as_by_ddp(
    tiny: Path, tmp_path: Path, stage: str, batch: str, accumulate: str
) -> None:
    sizes = ["--train.batch_size", batch, "--train.accumulate", accumulate, "--train.max_steps", "3"]
    words = [TRAIN, str(tiny), *sizes, "--optim.lr", "0.01"]
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    for name, env in (("ddp", {}), ("zero", zero)):
        done = spawn([*words, "--run.name", name], 2, env)
        assert [process.returncode for process in done] == [0, 0], done[0].stderr
        assert f"train.batch_size {batch} is not divisible by 2 processes" in done[0].stdout
    runs = [tmp_path / "runs" / name for name in ("ddp", "zero")]
    losses = [[record["loss"] for record in metrics(run)] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    weights = [load_file(run / "final" / "model.safetensors") for run in runs]
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed_adds_the_gradients_of_a_bf16_network_in_fp32_as_ddp(tiny: Path, tmp_path: Path, stage: str) -> None:
    """It would send them as bf16. AdamW, which divides each gradient by its size, shows it in every bit of a weight."""
    words = [TRAIN, str(tiny), "--optim.name", "adamw", "--train.precision", "bf16", "--train.max_steps", "3"]
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    for name, env in (("ddp", {}), ("zero", zero)):
        done = spawn([*words, "--run.name", name], 2, env)
        assert [process.returncode for process in done] == [0, 0], done[0].stderr
    weights = [load_file(tmp_path / "runs" / name / "final" / "model.safetensors") for name in ("ddp", "zero")]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)


@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeed_names_what_gets_no_gradient(tiny: Path, tmp_path: Path, stage: str) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, classes, channels):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(32 * 32 * channels, classes))\n"
        "        self.add_module('extra', nn.Linear(40, 40))\n"
        "    def forward(self, images):\n"
        "        return self[1](self[0](images))\n"
    )
    words = ["--model.name", f"{tmp_path}/net.py:Net", "--train.max_steps", "2"]
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    done = spawn([TRAIN, str(tiny), *words], 2, zero)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    said = done[0].stdout + done[0].stderr
    assert "warning: 'extra.weight', 'extra.bias' got no gradient in the first step: what forward does not use" in said


def test_a_gradient_that_is_not_finite_ends_a_run_of_deepspeed_as_one_of_ddp(tiny: Path, tmp_path: Path) -> None:
    """DeepSpeed leaves out such an update in silence, and all later ones of a network that always has one."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, classes, channels):\n"
        "        super().__init__(32 * 32 * channels, classes)\n"
        "        self.seen = 0\n"
        "    def forward(self, images):\n"
        "        self.seen += self.training\n"
        "        logits = super().forward(images.flatten(1))\n"
        "        zero = (logits - logits.detach()).sum()\n"
        "        return logits + (zero.square().sqrt() if self.seen > 2 else zero)\n"  # whose derivative is nan at 0
    )
    words = ["--model.name", f"{tmp_path}/net.py:Net", "--optim.clip_norm", "1", "--run.name", "zero"]
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    done = spawn([TRAIN, str(tiny), *words], 2, zero)
    assert [process.returncode for process in done] == [1, 1]
    assert "the loss is not finite at step 4 for 20 samples" in done[0].stderr
    norms = [record["grad_norm"] for record in metrics(tmp_path / "runs" / "zero")]
    assert [norm is None for norm in norms] == [False, False, True, True], norms


def test_what_pads_a_shard_of_zero3_is_no_weight() -> None:
    """Three processes divide few parameters, and DeepSpeed leaves in the rest of the last shard what was in memory."""
    zero3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    done = spawn([padding_on_ranks.__file__], 3, zero3)
    assert [process.returncode for process in done] == [0, 0, 0], done[0].stderr


@pytest.mark.gpu
def test_an_offloaded_optimizer_reports_the_norm_of_the_gradients_on_a_gpu(tiny: Path, tmp_path: Path) -> None:
    """DeepSpeed computes the norm on the host then. Its import asks CUDA for GPUs, which no fork may do again."""
    offloaded = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        **dict.fromkeys(("RANK", "LOCAL_RANK"), "0"),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "1"),
    }
    words = ["--optim.clip_norm", "1", "--train.max_steps", "3", "--run.name", "offloaded"]
    (done,) = spawn([TRAIN, str(tiny), *words], 1, offloaded, fresh=True)
    assert done.returncode == 0, done.stderr
    assert "optimizer on the CPU" in done.stdout
    assert all(record["grad_norm"] > 0 for record in metrics(tmp_path / "runs" / "offloaded")[:3])


def test_its_launch_file_stops_and_resumes(digits: Path, tmp_path: Path, forked: dict[str, str]) -> None:
    """Tests DeepSpeed's file, whose processes Accelerate starts differently; resume_on_ranks.py reads the others."""
    config, wrapper = "zero3", "DeepSpeed ZeRO-3"
    recipe = soak.write_recipe(tmp_path, digits)
    run, words = tmp_path / "runs" / config, ["--train.epochs", "2"]
    job = soak.start(recipe, config, *words, config=config, env={**forked, **pausing(2, tmp_path / "paused")})
    paused = wait_for_pause(tmp_path / "paused", [job])
    job.send_signal(signal.SIGUSR1)
    resume(paused)
    code, output = soak.end(job)
    assert code == 75, output
    assert f"2 processes, {wrapper}" in output
    stopped = soak.steps_done(run)
    code, output = soak.end(soak.start(recipe, config, *words, config=config, env=forked))
    assert code == 0, output
    assert f"resumed after step {stopped}" in output
    assert [record["step"] for record in metrics(run)] == list(range(1, STEPS + 1))
    assert f"2 processes, {wrapper}" in output
