"""Items of the first part: what must hold on a GPU. They train the digits; each says what was found."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cifar_dist.exit_codes import EXIT_REQUEUE
from gpu.bench import CUDA_GRAPHS, ROOT, Bench, FailedError, Machine, SkippedError, final_accuracy, launched
from gpu.signal_to_rank import SOME_STEPS, SignalToRank, records

_SHARED = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
_EXCHANGE_SECONDS = "60"
_FEW = ("--train.max_steps", "20", "--train.threads", "1")
_EACH_STEP = ("--tracking.every", "1")
_DETERMINISTIC = ("--train.deterministic", "true", *_EACH_STEP, "--checkpoint.every_steps", "4")


def exchange(bench: Bench) -> str:
    """All GPUs exchange over NCCL: what does not work between them is found here once, and not in each item."""
    _, ranks = _several_ranks(bench.machine)
    backend = "nccl" if bench.machine.gpus else "gloo"
    return bench.python(f"{ROOT}/benchmarks/gpu/exchange.py", backend, str(ranks), _EXCHANGE_SECONDS).last_line


def run_gpu_tests(bench: Bench) -> str:
    """The tests marked ``gpu``."""
    bench.machine.require_gpu()
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    names = [str(path.relative_to(ROOT)) for path in files]
    workers = ("-n", "8") if importlib.util.find_spec("xdist") else ()  # each compiles for itself
    ended = bench.python("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *workers, *names)
    return ended.last_line.strip("= ")


def demo(name: str, *settings: str, on_gpu: bool = False) -> Callable[[Bench], str]:
    """Train ``demo`` to a test accuracy of 95 %."""

    def work(bench: Bench) -> str:
        if on_gpu:
            bench.machine.require_gpu()
        return final_accuracy(_train_demo(bench, name, *settings), 0.0 if bench.rehearse else 0.95)

    return work


def kill_and_resume(bench: Bench) -> str:
    """A run that is killed with SIGKILL and resumed ends with the bytes of one that is not."""
    whole = _train_demo(bench, "not-killed", *_DETERMINISTIC)
    killed = bench.runs / "killed"
    for _ in range(3):  # a run of a few steps can end before it is seen to have begun
        shutil.rmtree(killed, ignore_errors=True)
        _train_demo(bench, "killed", *_DETERMINISTIC, until=lambda _: records(killed) >= SOME_STEPS)
        if not (killed / "final").exists():
            break
    else:
        raise FailedError("the run ended before it could be killed")
    steps_done = records(killed)
    _require_equal(whole, _train_demo(bench, "killed", *_DETERMINISTIC))
    return f"killed after {steps_done} steps, resumed, the same weights"


def same_seed(bench: Bench) -> str:
    """The same seed twice gives the same bytes, on one device with deterministic algorithms."""
    _require_equal(*(_train_demo(bench, f"same-seed.{number}", *_DETERMINISTIC) for number in (1, 2)))
    return "the same weights"


def ddp(bench: Bench) -> str:
    """DDP on all GPUs, or with two ranks on one: over NCCL where it can do that, else over gloo."""
    config, env, transport = _pair(bench.machine)
    engine = ("--train.engine", f"{ROOT}/benchmarks/gpu/over_gloo.py:DataParallelOverGloo")
    settings = engine if transport == "gloo" else ()
    ranks = max(2, bench.machine.gpus)
    run = _train_demo(bench, "ddp", *settings, config=config, processes=ranks, env=env)
    return f"{final_accuracy(run, 0.0 if bench.rehearse else 0.95)}, {ranks} ranks over {transport}"


def ddp_with(name: str, *settings: str, on_gpus: tuple[str, ...] = ()) -> Callable[[Bench], str]:
    """Train ``demo`` to a test accuracy of 95 % with DDP on all of several GPUs.

    Args:
        name: of the run.
        settings: of the run.
        on_gpus: more settings, which a rehearsal on a CPU leaves out; without others it has nothing to try. CUDA graphs
            that they ask for must be recorded.
    """

    def work(bench: Bench) -> str:
        config, ranks = _several_ranks(bench.machine)
        if not settings:
            bench.machine.require_gpu()
        more = on_gpus if bench.machine.gpus else ()
        run = _train_demo(bench, name, *settings, *more, config=config, processes=ranks, env=CUDA_GRAPHS)
        return f"{final_accuracy(run, 0.0 if bench.rehearse else 0.95)}, {ranks} ranks"

    return work


def lost_rank(bench: Bench) -> str:
    """A rank that is killed with SIGKILL ends the job in one line, although the others wait for it."""
    config, ranks = _several_ranks(bench.machine)
    run, lost = bench.runs / "lost-rank", ranks - 1
    settings = ("--data.path", bench.digits(), *_EACH_STEP, "--train.epochs", "1000")  # it ends only with its rank
    words = (*launched(config, ranks), "demo", *settings, "--run.dir", str(run.parent), "--run.name", run.name)
    kill = SignalToRank(run, lost, signal.SIGKILL)
    ended = bench.python(*words, until=kill, code=128 + signal.SIGKILL)
    took = time.monotonic() - kill.sent
    if "Traceback" in ended.output or f"rank {lost} was killed by SIGKILL" not in ended.last_line:
        raise FailedError(f"its end is not explained in one line: {ended.last_line}")
    return f"the job ended {took:.0f} s after rank {lost} of {ranks} was killed"


def fsdp_to_ddp(bench: Bench) -> str:
    """A run that FSDP began on all GPUs, and that was stopped, resumes with DDP on one less."""
    config, ranks = _several_ranks(bench.machine)
    run = bench.runs / "fsdp-to-ddp"
    stop = SignalToRank(run, ranks - 1, signal.SIGTERM)
    _train_demo(bench, run.name, *_EACH_STEP, config="fsdp", processes=ranks, until=stop, code=EXIT_REQUEUE)
    _train_demo(bench, run.name, *_EACH_STEP, config=config, processes=ranks - 1)
    events = map(json.loads, (run / "timeline.jsonl").read_text("utf-8").splitlines())
    resumed = next((event for event in events if event["kind"] == "resumed"), None)
    if resumed is None:
        raise FailedError("the run began anew")
    accuracy = final_accuracy(run, 0.0 if bench.rehearse else 0.95)
    return f"{accuracy}, FSDP on {ranks} ranks until step {resumed['step']}, then DDP on {resumed['processes']}"


def evaluate(bench: Bench) -> str:
    """The evaluation on all GPUs gives the bytes of that at the end of a training on one."""
    config, ranks = _several_ranks(bench.machine)
    batches = ("--eval.batch_size", "16", "--train.deterministic", "true", "--train.epochs", "1")
    run = _train_demo(bench, "evaluate", *batches)
    bench.python(*launched(config, ranks), "evaluate", str(run))
    one, other = (path.read_bytes() for path in run.glob("evaluations/*/probabilities.npz"))
    if one != other:
        raise FailedError(f"the probabilities on 1 rank and on {ranks} differ")
    return f"the same probabilities on 1 rank and on {ranks}"


def fixed_parts(bench: Bench) -> str:
    """``train.parts`` gives the same bytes on one process and on two."""
    config, env, transport = _pair(bench.machine)
    settings = ("--train.parts", "4", "--train.deterministic", "true")
    one = _train_demo(bench, "parts.1", *settings)
    engine = ("--train.engine", f"{ROOT}/benchmarks/gpu/over_gloo.py:FixedPartsOverGloo")
    more = engine if transport == "gloo" else ()
    two = _train_demo(bench, "parts.2", *settings, *more, config=config, processes=2, env=env)
    _require_equal(one, two)
    return f"the same weights on 1 and 2 processes, over {transport}"


def sharded(config: str, wrapper: str) -> Callable[[Bench], str]:
    """Train with ``launch/CONFIG.yaml``, on two ranks where that is possible."""

    def work(bench: Bench) -> str:
        machine = bench.machine
        shares = machine.nccl_shares_gpus and wrapper == "FSDP"  # DeepSpeed takes the GPU of its local rank's number
        processes = 2 if machine.gpus != 1 or shares else 1
        env = _SHARED if machine.gpus == 1 else None
        run = _train_demo(bench, config, config=config, processes=processes, env=env)
        facts = json.loads((run / "environment.json").read_text("utf-8"))["run"]
        if wrapper not in facts["wrapper"]:
            raise FailedError(f"the wrapper is {facts['wrapper']}, not {wrapper}")
        return f"{final_accuracy(run, 0.0 if bench.rehearse else 0.9)}, {processes} ranks"

    return work


def _train_demo(
    bench: Bench,
    name: str,
    *settings: str,
    config: str = "",
    processes: int = 1,
    env: Mapping[str, str] | None = None,
    until: Callable[[str], bool] | None = None,
    code: int = 0,
) -> Path:
    words = ("--data.path", bench.digits(), *settings, *(_FEW if bench.rehearse else ()))
    return bench.train(name, "demo", *words, config=config, processes=processes, env=env, until=until, code=code)


def _pair(machine: Machine) -> tuple[str, Mapping[str, str] | None, str]:
    """How two ranks are launched: the launch config, the environment, and what carries their messages."""
    if machine.gpus == 0:
        return "cpu", None, "gloo"
    if machine.gpus > 1:
        return "ddp", None, "NCCL"
    return "ddp", _SHARED, "NCCL on one GPU" if machine.nccl_shares_gpus else "gloo"


def _several_ranks(machine: Machine) -> tuple[str, int]:
    """The launch config of DDP on all GPUs, and their number; without a GPU, two processes on the CPU.

    Raises:
        SkippedError: there is one GPU.
    """
    if machine.gpus == 1:
        raise SkippedError("needs several GPUs")
    return ("ddp", machine.gpus) if machine.gpus else ("cpu", 2)


def _require_equal(one: Path, other: Path) -> None:
    weights = [(run / "final" / "model.safetensors").read_bytes() for run in (one, other)]
    if weights[0] != weights[1]:
        raise FailedError(f"the weights of {one.name} and {other.name} differ")
