"""Items of the other parts: times of speedruns and of steps, beside the record holders' scripts, and whole recipes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from cifar_dist.formatting import percent
from gpu import processes
from gpu.bench import CUDA_GRAPHS, Bench, FailedError, SkippedError, UnfinishedError, final_accuracy

_ONE_VIEW = ("--eval.tta", "0", "--eval.tta_below", "1")
_TINY = ("--train.max_steps", "2", "--train.batch_size", "40", "--train.precision", "no", *_ONE_VIEW)
_PEERS = ("airbench94", "hiverge")
_SPEEDRUNS = ("speedrun", "speedrun.graphs", "speedrun.cpu-quick")
_SECONDS = re.compile(r"([\d.]+) s\b")  # the first in what one of these items found is that of a training
_PEER_RUNS = 8  # of the 200 that their scripts train
_PEER_ROW = re.compile(r"\|\s+eval\s+\|.*\|\s+([\d.]+)\s+\|\s+([\d.]+)\s+\|")


def speedrun(recipe: str, compiled: str) -> Callable[[Bench], str]:
    """Train a recipe, warm, several times in one process; ``compiled`` is its ``train.compile``."""

    def work(bench: Bench) -> str:
        repeats, tiny = (1, _TINY) if bench.rehearse else (4, ())
        settings = ("--data.path", bench.cifar(), "--train.compile", compiled, "--train.precision", "auto", *tiny)
        folder = str(bench.work / f"speedruns.{recipe}.{compiled}")
        script = str(Path(__file__).with_name("speedrun.py"))
        ended = bench.python(script, recipe, str(repeats), folder, *settings, env=CUDA_GRAPHS)
        found = _compiled(ended).last_line
        ratios = [f"{_seconds(found) / theirs:.2f} of {name}" for name, theirs in _found(bench, _PEERS)]
        return "; ".join([found, *ratios])

    return work


def _seconds(found: str) -> float:
    return float(_SECONDS.findall(found)[0])


def _found(bench: Bench, items: tuple[str, ...]) -> list[tuple[str, float]]:
    """Return the names and seconds of those of ``items`` that have passed."""
    return [(name, _seconds(bench.found[name])) for name in items if name in bench.found]


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
        bench.machine.require_gpu()
        folder = bench.work / "airbench"
        if not folder.is_dir():
            bench.python(str(Path(__file__).with_name("airbench_data.py")), bench.cifar(), str(folder))
        seconds, accuracy = time_peer(bench, Path(script).resolve(), folder)
        ratios = [f"{name} {ours / seconds:.2f} of it" for name, ours in _found(bench, _SPEEDRUNS)]
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
        return final_accuracy(run, 0.0 if bench.rehearse else 0.8)

    return work
