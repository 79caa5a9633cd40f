"""What the items of the table work with: the machine, the clock, the folders, and runs of the trainer."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cifar_dist.exit_codes import EXIT_REQUEUE
from cifar_dist.formatting import percent
from gpu import processes

ROOT = Path(__file__).parents[2]
CUDA_GRAPHS = {"TORCHINDUCTOR_CUDAGRAPH_OR_ERROR": "1"}
"""Environment of a command that fails where torch cannot record a CUDA graph, of which it only warns by default."""
_FACTS = """
import json, platform, torch
gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
device = torch.cuda.get_device_name(0) if gpus else "CPU"
nccl = torch.cuda.nccl.version() if gpus else ()
print(json.dumps([device, gpus, nccl, torch.__version__, platform.python_version()]))
"""


class FailedError(Exception):
    """What must hold does not; the message says what was found."""


class SkippedError(Exception):
    """The item cannot be tested here; the message says why."""


class UnfinishedError(Exception):
    """A run was stopped by the end of the budget, and resumes; the message says how far it is."""


class UnusableError(Exception):
    """What the call was given cannot be used; the message says what to give instead."""


@dataclass(frozen=True)
class Machine:
    """This machine.

    Attributes:
        device: the GPU's name, or ``CPU``.
        gpus: number of GPUs.
        nccl: version of NCCL; empty without a GPU.
        torch, python: versions.
    """

    device: str
    gpus: int
    nccl: tuple[int, ...]
    torch: str
    python: str

    @property
    def name(self) -> str:
        """One line for the table."""
        nccl = f", NCCL {'.'.join(map(str, self.nccl))}" if self.nccl else ""
        return f"{self.gpus or 1} x {self.device}, torch {self.torch}, Python {self.python}{nccl}"

    @property
    def nccl_shares_gpus(self) -> bool:
        """Whether NCCL lets several ranks use one GPU."""
        return self.nccl >= (2, 30)

    def require_gpu(self) -> None:
        """Skip the item on a CPU.

        Raises:
            SkippedError: there is no GPU.
        """
        if not self.gpus:
            raise SkippedError("needs a GPU")


def find_machine(env: Mapping[str, str]) -> Machine:
    """Ask torch, in a process of its own: a CUDA context here would take memory from every item.

    Raises:
        SystemExit: this Python has no torch.
    """
    done = subprocess.run([sys.executable, "-c", _FACTS], env=env, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        sys.exit(f"benchmarks/gpu: {sys.executable} cannot import torch ({said}); set PYTHON to one that can")
    device, gpus, nccl, torch, python = json.loads(done.stdout.splitlines()[-1])
    return Machine(device, gpus, tuple(nccl), torch, python)


def launched(config: str, processes: int) -> tuple[str, ...]:
    """The words before those of a command that runs on several processes, with a config of ``launch/``."""
    return "-m", "cifar_dist", "launch", config, f"--num_processes={processes}"


def final_accuracy(run: Path, least: float) -> str:
    """Return the accuracy of a run's final evaluation, in percent.

    Raises:
        FailedError: it is below ``least``, a fraction, or there is none.
    """
    summaries = [json.loads(path.read_text("utf-8")) for path in run.glob("evaluations/*/summary.json")]
    accuracy = next((float(found["accuracy"]) for found in summaries if found["checkpoint"] == "final"), None)
    if accuracy is None:
        raise FailedError(f"{run.name} has no final evaluation")
    if accuracy < least:
        raise FailedError(f"accuracy {percent(accuracy)}, not at least {percent(least, 0)}")
    return percent(accuracy)


@dataclass
class Bench:
    """The state of one call.

    Attributes:
        machine: where it runs.
        source: CIFAR-10, as ``cifar-dist pack`` reads it, or packed already.
        work: folder of packed data and run folders.
        deadline: on the monotonic clock; no item runs beyond it.
        rehearse: whether items run with a few steps only, to try out this program itself.
        env: environment of the commands.
        log: file of the current item's output.
        limit: seconds that the current item may take.
        found: by the items that have passed, in this call or before; by their names.
        halt: set to end the items that run.
        packing: held while data are packed.
    """

    machine: Machine
    source: str
    work: Path
    deadline: float
    rehearse: bool
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    log: Path = Path(os.devnull)
    limit: float = 0.0
    found: dict[str, str] = field(default_factory=dict)
    halt: threading.Event = field(default_factory=threading.Event)
    packing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def at_once(self) -> int:
        """How many items run at a time, of those that may: each starts processes, which use several cores."""
        return min(4, max(1, len(os.sched_getaffinity(0)) // 4))

    @property
    def runs(self) -> Path:
        """Folder of run folders."""
        return self.work / "runs"

    def seconds_left(self) -> float:
        """Seconds until the end of the budget."""
        return self.deadline - time.monotonic()

    def python(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        until: Callable[[str], bool] | None = None,
        code: int = 0,
    ) -> processes.Ended:
        """Run ``python *words`` in the repository, with its output in the log, and return how it ended.

        Args:
            words: of the command.
            env: variables beside those of all commands.
            until: see :func:`processes.run`.
            code: with which it must end.

        Raises:
            FailedError: it ended otherwise, or took longer than its item may.
            UnfinishedError: a run that saved and stopped because the budget is at its end.
            SkippedError: it was stopped there without having saved.
        """
        left = self.seconds_left() - processes.GRACE
        by_budget = left < self.limit
        ended = processes.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**self.env, **(env or {})},
            log=self.log,
            seconds=max(left if by_budget else self.limit, 1.0),
            halt=self.halt,
            until=until,
        )
        if self.halt.is_set():
            raise SkippedError("stopped while it ran")
        if ended.code == code or (until is not None and not ended.limited and ended.code == -signal.SIGKILL):
            return ended
        if ended.limited and by_budget:
            raise (
                UnfinishedError("stopped by the budget")
                if ended.code == EXIT_REQUEUE
                else SkippedError("out of time while it ran")
            )
        took = f"took longer than {self.limit:.0f} s; " if ended.limited else ""
        raise FailedError(f"{took}exit code {ended.code}: {ended.last_line}")

    def train(
        self,
        name: str,
        recipe: str,
        *settings: str,
        config: str = "",
        processes: int = 1,
        env: Mapping[str, str] | None = None,
        until: Callable[[str], bool] | None = None,
        code: int = 0,
    ) -> Path:
        """Train a recipe, or resume it, and return the run folder.

        Args:
            name: of the run.
            recipe, settings: as for ``train.py``.
            config: of ``launch/``; empty: one process without a launcher.
            processes: number of processes, with a config.
            env, until, code: see :meth:`python`.
        """
        start = launched(config, processes) if config else ("train.py",)
        words = (*start, recipe, *settings, "--run.dir", str(self.runs), "--run.name", name)
        self.python(*words, env=env, until=until, code=code)
        return self.runs / name

    def digits(self) -> str:
        """Folder of the packed digits."""
        return self._packed("digits", "digits")

    def cifar(self) -> str:
        """Folder of packed CIFAR-10."""
        if (Path(self.source) / "manifest.json").is_file():
            return self.source
        return self._packed("cifar10", self.source, "--codec", "raw")

    def check_source(self) -> None:
        """Pack CIFAR-10, so that a wrong path is found before the first item.

        Raises:
            UnusableError: it is no dataset.
        """
        self.log, self.limit = self.work / "pack.log", math.inf
        load = "import sys; from cifar_dist.data.manifest import Manifest; Manifest.load(sys.argv[1])"
        try:
            self.python("-c", load, self.cifar())
        except FailedError as error:
            raise UnusableError(f"CIFAR10 is {self.source}, which cannot be used ({error})") from None
        except (SkippedError, UnfinishedError):  # the items say that no time is left
            pass

    def _packed(self, name: str, source: str, *options: str) -> str:
        folder = self.work / name
        with self.packing:
            if not (folder / "manifest.json").is_file():
                self.python("-m", "cifar_dist", "pack", source, str(folder), *options)
        return str(folder)
