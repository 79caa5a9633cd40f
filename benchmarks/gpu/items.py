"""The table of items: what is tested or measured, how long it takes on a GPU of a data centre, and what must hold."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import processes
from bench import ROOT, STOPPED, Bench, FailedError, Machine, SkippedError, UnfinishedError, launched

from cifar_dist.formatting import percent

PARTS = ("correctness", "speed", "recipes")
_SHARED = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}
_FEW = ("--train.max_steps", "20", "--train.threads", "1")
_TINY = ("--train.max_steps", "2", "--train.batch_size", "40", "--eval.tta", "0", "--train.precision", "no")
_EACH_STEP = ("--tracking.every", "1")
_DETERMINISTIC = ("--train.deterministic", "true", *_EACH_STEP, "--checkpoint.every_steps", "4")
_ROUNDED = ("--train.compress_gradients", "fp16", "--train.sync_batchnorm", "true")
_KILL_AFTER = 6  # records of metrics.jsonl
_LAST_SECONDS = 60.0  # that a job may take to end, from the signal to one of its ranks
_PEER_RUNS = 8  # of the 200 that their scripts train
SPEEDRUNS = {"speedrun": "no", "speedrun.graphs": "reduce-overhead"}
"""Items that time speedrun-94, with its ``train.compile``."""
_PEER_ROW = re.compile(r"\|\s+eval\s+\|.*\|\s+([\d.]+)\s+\|\s+([\d.]+)\s+\|")


@dataclass(frozen=True)
class Item:
    """A row of the table.

    Attributes:
        name: of the item, and of its run.
        part: one of :data:`PARTS`.
        seconds: estimate on one GPU; the item begins only if so many are left, and a command of it that takes three
            times as many, at least 90, has failed.
        work: does it and returns what was found; raises FailedError, SkippedError or UnfinishedError.
        open_ended: a training run that takes all the time left, and resumes.
    """

    name: str
    part: str
    seconds: float
    work: Callable[[Bench], str]
    open_ended: bool = False

    @property
    def reads_cifar(self) -> bool:
        """Whether it needs CIFAR-10; those of the first part train on the digits."""
        return self.part != PARTS[0]

    @property
    def is_measured(self) -> bool:
        """Whether its time counts, so that nothing may run beside it; in the first part nothing is timed."""
        return self.part != PARTS[0]


def run_gpu_tests(bench: Bench) -> str:
    """The tests marked ``gpu``."""
    _require_gpu(bench.machine)
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    names = [str(path.relative_to(ROOT)) for path in files]
    workers = ("-n", "8") if importlib.util.find_spec("xdist") else ()  # each compiles for itself
    ended = bench.python("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *workers, *names)
    return ended.last_line.strip("= ")


def demo(name: str, *settings: str, on_gpu: bool = False) -> Callable[[Bench], str]:
    """Train ``demo`` to a test accuracy of 95 %."""

    def work(bench: Bench) -> str:
        if on_gpu:
            _require_gpu(bench.machine)
        return _accuracy(_train_demo(bench, name, *settings), 0.0 if bench.rehearse else 0.95)

    return work


def kill_and_resume(bench: Bench) -> str:
    """A run that is killed with SIGKILL and resumed ends with the bytes of one that is not."""
    whole = _train_demo(bench, "not-killed", *_DETERMINISTIC)
    killed = bench.runs / "killed"
    for _ in range(3):  # a run of a few steps can end before it is seen to have begun
        shutil.rmtree(killed, ignore_errors=True)
        _train_demo(bench, "killed", *_DETERMINISTIC, until=lambda _: _records(killed) >= _KILL_AFTER)
        if not (killed / "final").exists():
            break
    else:
        raise FailedError("the run ended before it could be killed")
    steps_done = _records(killed)
    _require_equal(whole, _train_demo(bench, "killed", *_DETERMINISTIC))
    return f"killed after {steps_done} steps, resumed, the same weights"


def _records(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


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
    return f"{_accuracy(run, 0.0 if bench.rehearse else 0.95)}, {ranks} ranks over {transport}"


def ddp_with(name: str, *settings: str, on_gpus: tuple[str, ...] = ()) -> Callable[[Bench], str]:
    """Train ``demo`` to a test accuracy of 95 % with DDP on all of several GPUs.

    Args:
        name: of the run.
        settings: of the run.
        on_gpus: more settings, which a rehearsal on a CPU leaves out; without others it has nothing to try.
    """

    def work(bench: Bench) -> str:
        config, ranks = _several_ranks(bench.machine)
        if not settings:
            _require_gpu(bench.machine)
        more = on_gpus if bench.machine.gpus else ()
        run = _train_demo(bench, name, *settings, *more, config=config, processes=ranks)
        return f"{_accuracy(run, 0.0 if bench.rehearse else 0.95)}, {ranks} ranks"

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
    _train_demo(bench, run.name, *_EACH_STEP, config="fsdp", processes=ranks, until=stop, code=STOPPED)
    _train_demo(bench, run.name, *_EACH_STEP, config=config, processes=ranks - 1)
    events = map(json.loads, (run / "timeline.jsonl").read_text("utf-8").splitlines())
    resumed = next((event for event in events if event["kind"] == "resumed"), None)
    if resumed is None:
        raise FailedError("the run began anew")
    accuracy = _accuracy(run, 0.0 if bench.rehearse else 0.95)
    return f"{accuracy}, FSDP on {ranks} ranks until step {resumed['step']}, then DDP on {resumed['processes']}"


@dataclass
class SignalToRank:
    """Sends a signal to a rank of a run that has trained a few steps: ``until`` of :meth:`Bench.python`.

    Attributes:
        run: its folder.
        rank: receives the signal.
        number: of the signal.
        sent: when it was, on the monotonic clock; 0 before.
    """

    run: Path
    rank: int
    number: signal.Signals
    sent: float = 0.0

    def __call__(self, output: str) -> bool:
        """Send it once it is time to.

        Raises:
            FailedError: the rank has ended before, or the job still runs a minute after it.
        """
        if self.sent and time.monotonic() > self.sent + _LAST_SECONDS:
            raise FailedError(f"it still ran {_LAST_SECONDS:.0f} s after {self.number.name} to rank {self.rank}")
        if not self.sent and _records(self.run) >= _KILL_AFTER:
            os.kill(self._find_process(), self.number)
            self.sent = time.monotonic()
        return False

    def _find_process(self) -> int:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words, variables = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            except OSError:  # it has ended, or belongs to another user
                continue
            if self.run.name.encode() in words and f"RANK={self.rank}".encode() in variables:
                found.append(int(folder.name))
        if not found:
            raise FailedError(f"rank {self.rank} ended before {self.number.name} could be sent to it")
        return min(found)  # the others are its forks


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
        return f"{_accuracy(run, 0.0 if bench.rehearse else 0.9)}, {processes} ranks"

    return work


def speedrun(compiled: str) -> Callable[[Bench], str]:
    """Train speedrun-94, warm, several times in one process; ``compiled`` is its ``train.compile``."""

    def work(bench: Bench) -> str:
        repeats, tiny = (1, _TINY) if bench.rehearse else (4, ())
        settings = ("--data.path", bench.cifar(), "--train.compile", compiled, *tiny)
        folder = str(bench.work / f"speedruns.{compiled}")
        script = str(Path(__file__).with_name("speedrun.py"))
        return _compiled(bench.python(script, "speedrun-94", str(repeats), folder, *settings)).last_line

    return work


def peer(variable: str, name: str) -> Callable[[Bench], str]:
    """Train with the script of a record's holder, as it is, on the same images.

    Args:
        variable: environment variable with its path.
        name: that it is published under.
    """

    def work(bench: Bench) -> str:
        script = os.environ.get(variable)
        if not script:
            raise SkippedError(f"set {variable} to the path of {name}")
        _require_gpu(bench.machine)
        folder = bench.work / "airbench"
        if not folder.is_dir():
            bench.python(str(Path(__file__).with_name("airbench_data.py")), bench.cifar(), str(folder))
        seconds, accuracy = time_peer(bench, Path(script).resolve(), folder)
        ours = {way: float(bench.found[item].split()[3]) for item, way in SPEEDRUNS.items() if item in bench.found}
        ratios = [f"speedrun-94 {ours[way] / seconds:.2f} of it (compile {way})" for way in ours]
        return "; ".join([f"{seconds:.3f} s, {percent(accuracy)}", *ratios])

    return work


def time_peer(bench: Bench, script: Path, folder: Path) -> tuple[float, float]:
    """Run a peer's script in ``folder``, which has its images, until it has trained enough.

    Returns:
        The mean seconds of a run, and the mean accuracy, a fraction.

    Raises:
        FailedError: it ended with an error or printed no run.
    """
    code = f"import os, runpy, sys; os.chdir({str(folder)!r}); sys.argv = [{str(script)!r}]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    wanted = 1 + _PEER_RUNS  # the first one warms up
    ended = bench.python("-uc", code, until=lambda output: len(_PEER_ROW.findall(output)) >= wanted)
    rows = [(float(seconds), float(accuracy)) for accuracy, seconds in _PEER_ROW.findall(ended.output)][1:]
    if not rows:
        raise FailedError(f"{script.name} printed no run: {ended.last_line}")
    return sum(row[0] for row in rows) / len(rows), sum(row[1] for row in rows) / len(rows)


def steps(recipe: str) -> Callable[[Bench], str]:
    """Time of a step, of its augmentation and data, and peak memory."""

    def work(bench: Bench) -> str:
        script = str(Path(__file__).with_name("steps.py"))
        count, tiny = ("2", _TINY) if bench.rehearse else ("60", ())
        return _compiled(bench.python(script, recipe, count, "--data.path", bench.cifar(), *tiny)).last_line

    return work


def _compiled(ended: processes.Ended) -> processes.Ended:
    """Return how a measurement ended, unless its augmentation was not compiled: it would be that of another program."""
    if found := re.search(r"runs without being compiled, and slower \((.*)\)", ended.output):
        raise FailedError(f"the augmentation was not compiled: {found[1]}")
    return ended


def train(name: str, recipe: str, *settings: str) -> Callable[[Bench], str]:
    """Train a recipe to its end, on all GPUs, in as many calls as it takes."""

    def work(bench: Bench) -> str:
        machine, tiny = bench.machine, _TINY if bench.rehearse else ()
        config = "ddp" if machine.gpus > 1 else ""
        words = ("--data.path", bench.cifar(), *settings, *tiny)
        try:
            run = bench.train(name, recipe, *words, config=config, processes=machine.gpus)
        except UnfinishedError:
            done = (bench.runs / name / "metrics.jsonl").read_text("utf-8").splitlines()
            raise UnfinishedError(f"{json.loads(done[-1])['step']} steps done; the same command resumes it") from None
        return _accuracy(run, 0.0 if bench.rehearse else 0.8)

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


def _require_gpu(machine: Machine) -> None:
    if not machine.gpus:
        raise SkippedError("needs a GPU")


def _require_equal(one: Path, other: Path) -> None:
    weights = [(run / "final" / "model.safetensors").read_bytes() for run in (one, other)]
    if weights[0] != weights[1]:
        raise FailedError(f"the weights of {one.name} and {other.name} differ")


def _accuracy(run: Path, least: float) -> str:
    summaries = [json.loads(path.read_text("utf-8")) for path in run.glob("evaluations/*/summary.json")]
    accuracy = next((float(found["accuracy"]) for found in summaries if found["checkpoint"] == "final"), None)
    if accuracy is None:
        raise FailedError(f"{run.name} has no final evaluation")
    if accuracy < least:
        raise FailedError(f"accuracy {percent(accuracy)}, not at least {percent(least, 0)}")
    return percent(accuracy)


ITEMS: tuple[Item, ...] = (
    Item("gpu-tests", "correctness", 180, run_gpu_tests),
    Item("ddp", "correctness", 60, ddp),
    Item("parts", "correctness", 90, fixed_parts),
    Item("fsdp-to-ddp", "correctness", 55, fsdp_to_ddp),
    Item("lost-rank", "correctness", 55, lost_rank),
    Item("ddp.graphs", "correctness", 55, ddp_with("ddp.graphs", on_gpus=("--train.compile", "reduce-overhead"))),
    Item("ddp.fp16", "correctness", 40, ddp_with("ddp.fp16", *_ROUNDED, on_gpus=("--train.precision", "fp16"))),
    Item("evaluate", "correctness", 50, evaluate),
    Item("fp32", "correctness", 45, demo("fp32", "--train.precision", "no")),
    Item("bf16", "correctness", 30, demo("bf16", "--train.precision", "bf16")),
    Item("fp16", "correctness", 30, demo("fp16", "--train.precision", "fp16", on_gpu=True)),
    Item("compile", "correctness", 50, demo("compile", "--train.compile", "true")),
    Item("kill-resume", "correctness", 90, kill_and_resume),
    Item("same-seed", "correctness", 75, same_seed),
    Item("zero2", "correctness", 50, sharded("zero2", "DeepSpeed ZeRO-2")),
    Item("zero3", "correctness", 60, sharded("zero3", "DeepSpeed ZeRO-3")),
    Item("fsdp", "correctness", 40, sharded("fsdp", "FSDP")),
    *(Item(name, "speed", 110 if way != "no" else 85, speedrun(way)) for name, way in SPEEDRUNS.items()),
    Item("airbench94", "speed", 120, peer("AIRBENCH94", "airbench94_muon.py")),
    Item("hiverge", "speed", 180, peer("HIVERGE", "cifar10_speedrun.py")),
    Item("steps.speedrun-94", "speed", 25, steps("speedrun-94")),
    Item("steps.custom-resnet", "speed", 30, steps("custom-resnet")),
    Item("steps.se-resnet-randaugment", "speed", 70, steps("se-resnet-randaugment")),
    Item("steps.resnet18", "speed", 30, steps("resnet18")),
    *(
        Item(f"speedrun-94.s{seed}", "recipes", 40, train(f"speedrun-94.s{seed}", "speedrun-94", "--run.seed", seed))
        for seed in "012"
    ),
    *(
        Item(name, "recipes", 60, train(name.replace("/", "-"), name), open_ended=True)
        for name in (
            *("speedrun-96", "custom-resnet", "resnet18", "se-resnet-randaugment", "small-resnet", "se-resnet"),
            *("resnet34-scratch", "se-resnet-stochastic-depth", "small-resnet/baseline", "wrn-28-10"),
        )
    ),
)
"""In the order in which they run; the recipes in that of the value of their figures."""
