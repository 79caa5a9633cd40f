"""``train.compile``: its values, a single compilation whatever the size of the last batch, and its cache."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import forked_ranks
from support.clock import WatchdogClock
from support.observations import flags
from support.running import TRAIN, metrics, spawn

from cifar_dist import recipe
from cifar_dist.config import TrainConfig
from cifar_dist.distributed import start
from cifar_dist.distributed.asked_engine import AskedEngine
from cifar_dist.distributed.compiled_code import keep_compiled_code
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.start import start_engine
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_REQUEUE
from cifar_dist.training.trainer import Trainer

ZERO2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ([], "no"),
        (["--train.compile"], "default"),
        (["--train.compile", "true"], "default"),
        (["--train.compile", "false"], "no"),
        (["--train.compile", "reduce-overhead"], "reduce-overhead"),
    ],
)
def test_true_and_false_select_modes(words: list[str], mode: str) -> None:
    assert recipe.load("demo", words).train.compile == mode


def test_a_recipe_accepts_the_same_values(tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace("threads = 1", "threads = 1\ncompile = true"))
    assert recipe.load(str(tiny)).train.compile == "default"
    with pytest.raises(UserError, match=r"train\.compile 'fast' must be 'no', 'default', 'reduce-overhead' or"):
        recipe.load(str(tiny), ["--train.compile", "fast"])


@pytest.mark.parametrize("launched", [{}, ZERO2], ids=["one process", "ZeRO-2"])
def test_a_ragged_last_batch_compiles_nothing(tiny: Path, tmp_path: Path, launched: dict[str, str]) -> None:
    """Two epochs of thirteen steps, the last one of 11 images instead of 20. Inductor's C++ compiler is left out."""
    config = recipe.load(str(tiny), ["--train.compile"])

    def count() -> None:
        os.environ.update(launched)
        import torch._inductor.compile_fx as inductor
        from torch._dynamo.utils import counters

        inductor.compile_fx = lambda graph, inputs, **options: graph.forward
        begun: list[None] = []
        torch.compiler.cudagraph_mark_step_begin = lambda: begun.append(None)
        with StopSignals() as signals, start_engine(config, signals) as engine:
            counters.clear()  # of the trial compilation
            assert Trainer(config, engine).run() == 0
        assert counters["stats"]["unique_graphs"] == 1, dict(counters["stats"])
        assert len(begun) == 26, "CUDA graphs may reuse their memory at the beginning of each step"

    forked_ranks.run(1, count)
    run = tmp_path / "runs" / "tiny"
    assert [record["samples"] for record in metrics(run)].count(11) == 2
    if launched:
        return  # its sums have another order
    (plain,) = spawn([TRAIN, str(tiny), "--run.name", "plain"])
    assert plain.returncode == 0, plain.stderr
    weights = [path.joinpath("final/model.safetensors").read_bytes() for path in (run, run.with_name("plain"))]
    assert weights[0] == weights[1], "the network is called as it is"


def test_a_network_that_is_compiled_again_for_other_stages_may_take_as_long_as_the_first_time(tiny: Path) -> None:
    """As dynamo does in the first step after the mode of a stage has changed; here a compiler that only takes long."""
    words = ["--train.compile", "--train.epochs", "2", "--model.unfreeze", "1"]
    config = recipe.load(str(tiny), [*words, "--run.stall_timeout", "2", "--run.stall_factor", "1"])

    def train() -> None:
        passes: list[None] = []
        clock = WatchdogClock.install(timeout=2)

        def forward(module: torch.nn.Module, _: object) -> None:
            if module.training:
                passes.append(None)
                clock.let_pass(3 if len(passes) == 14 else 0)

        def compiled(network: torch.nn.Module, **_: object) -> torch.nn.Module:
            if isinstance(network, torch.nn.Module):
                network.register_forward_pre_hook(forward)
            return network

        torch.compile = compiled  # type: ignore[assignment]
        with StopSignals() as signals, start_engine(config, signals) as engine:
            assert Trainer(config, engine).run() == 0
        assert len(passes) == 26

    forked_ranks.run(1, train)


@pytest.mark.parametrize("trial", [True, False], ids=["trial", "first step"])
def test_a_request_to_stop_that_reaches_the_compiler_too_ends_with_a_checkpoint(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], trial: bool
) -> None:
    """As Slurm sends it to all processes of a job; here a compiler that sends it to its rank and to itself."""
    config = recipe.load(str(tiny), ["--train.compile"])

    def train() -> None:
        import torch._inductor.compile_fx as inductor

        def compile_fx(graph: torch.fx.GraphModule, inputs: object, **options: object) -> Callable[..., object]:
            is_trial = not any(graph.parameters()) and len(graph.graph.nodes) < 9
            if is_trial == trial:
                subprocess.run(["sh", "-c", "kill -USR1 $PPID $$"], check=True)
            return graph.forward

        inductor.compile_fx = compile_fx  # type: ignore[assignment]
        with StopSignals() as signals, start_engine(config, signals) as engine:
            assert signals.received == ("USR1" if trial else "")
            assert Trainer(config, engine).run() == EXIT_REQUEUE

    forked_ranks.run(2, train)
    run = tmp_path / "runs" / "tiny"
    assert len(metrics(run)) == 2
    assert (run / "checkpoints" / "step-00000002").is_dir()
    assert "will be ignored" not in capfd.readouterr().err, "what torch says of DDP's own profiling, on every rank"


def test_accelerate_does_not_turn_tf32_on(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so on a GPU where it compiles an fp32 network; here an engine that does."""
    choose = start._engine_class

    def engine_class(train: TrainConfig, asked: AskedEngine) -> type[Engine]:
        class Engine(choose(train, asked)):  # type: ignore[misc]
            def __init__(self, *arguments: object, **options: object) -> None:
                super().__init__(*arguments, **options)
                torch.backends.cuda.matmul.allow_tf32 = True

        return Engine

    monkeypatch.setattr(start, "_engine_class", engine_class)
    assert not any(flags(recipe.load(str(tiny), ["--train.precision", "no"])))


@pytest.mark.gpu
def test_a_compiled_fp32_network_computes_without_tf32(tiny: Path) -> None:
    assert not any(flags(recipe.load(str(tiny), ["--train.precision", "no", "--train.compile"])))


def test_compiled_code_outlives_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled_code()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder.parent == tmp_path / "cifar-dist" / "compiled"
    assert folder.is_dir()


def test_nodes_with_other_instructions_do_not_share_compiled_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = []
    for mhz, known in (("2000", "sse avx512f gfni"), ("3000", "sse avx512f gfni"), ("2000", "sse avx512f")):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\ncpu MHz\t\t: {mhz}\nflags\t\t: {known}\n")
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        keep_compiled_code(tmp_path / "cpuinfo")
        folders.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folders[0] == folders[1] != folders[2]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_each_mode_trains_on_a_gpu(tiny: Path, tmp_path: Path, mode: str) -> None:
    words = [TRAIN, str(tiny), "--train.precision", "no"]
    for name, compiled in (("plain", "no"), ("compiled", mode)):
        (done,) = spawn([*words, "--run.name", name, "--train.compile", compiled], fresh=True)
        assert done.returncode == 0, done.stderr
    plain, faster = (metrics(tmp_path / "runs" / name) for name in ("plain", "compiled"))
    assert [r["loss"] for r in faster] == pytest.approx([r["loss"] for r in plain], rel=0.05)
    environment = json.loads((tmp_path / "runs" / "compiled" / "environment.json").read_text())
    assert environment["variables"]["TORCHINDUCTOR_CACHE_DIR"]
