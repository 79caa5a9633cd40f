"""Kill and damage runs, chosen by a seed: ``python tests/chaos/drill.py --kills 200 --damages 500 --seed 1``.

A killed run is started again until it finishes: nothing may be lost, hang, be left running or differ from the
uninterrupted run. A damaged run is started again once: it may be refused with one line or report what it lost, but
must never be silently wrong. ``--launches`` kills agents, launchers and ranks under ``cifar-dist launch``; one takes
half a minute. Prints each failure with the name that repeats it (``--only kill-17``), and exits with 1 if one occurred.
"""

from __future__ import annotations

import argparse
import collections
import functools
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.crashing import dying, read_count
from support.running import TRAIN, environment, spawn, start, story

from cifar_dist.data.manifest import Manifest
from cifar_dist.files.temporary import is_being_written

HANG = 180
"""Seconds after which a job counts as hung once one of its processes was killed."""
_LONGEST = 300
_STARTS = 4
_RECIPE = """
run.dir = "{folder}/runs"
data.path = "{data}"
augment.transforms = [{{ name = "crop", pad = 2 }}]
model.name = "tiny-cnn"
optim.lr = 0.1
schedule.name = "cosine"
train = {{ epochs = 2, batch_size = {batch}, threads = 1 }}
checkpoint = {{ every_steps = 5, keep = 3 }}
tracking.every = 1
eval.tta = "0"
"""
IN_PARTS = ("--checkpoint.sharded", "true")


@dataclass
class Drill:
    """A folder with a recipe, its data, and the uninterrupted runs, by number of processes.

    Attributes:
        counts: number of trials with each outcome.
        failures: one line each.
    """

    folder: Path
    data: Path
    seed: int
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)
    whole: dict[int, Path] = field(default_factory=dict)
    calls: dict[int, list[int]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recipe = self.folder / "drill.toml"
        batch = Manifest.load(self.data).samples("train") // 12  # thirteen steps, the last one smaller
        self.recipe.write_text(_RECIPE.format(folder=self.folder, data=self.data, batch=batch))

    def run_whole(self, processes: int) -> None:
        """Train without interruption, and count the write calls of each rank."""
        run = self.folder / "runs" / f"whole-{processes}"
        begin = time.monotonic()
        job = self.start(run.name, processes, dict.fromkeys(range(processes), 2**40), IN_PARTS)
        done = end(job, _LONGEST)
        assert done.codes == [0] * processes, done.said
        self.whole[processes], self.seconds[processes] = run, time.monotonic() - begin
        self.calls[processes] = [read_count(Path(f"{self._counted(run.name)}.{rank}")) for rank in range(processes)]

    def start(
        self, name: str, processes: int, die_at: dict[int, int], words: Sequence[str] = ()
    ) -> list[subprocess.Popen[str]]:
        """Start a run whose ranks kill themselves before the given write calls."""
        env = {**dying(die_at, self._counted(name))}
        return start([TRAIN, str(self.recipe), "--run.name", name, *words], processes, env)

    def _counted(self, name: str) -> Path:
        return self.folder / f"{name}.calls"

    def fail(self, trial: str, what: str) -> None:
        self.failures.append(f"{trial} (seed {self.seed}): {what}")
        print(self.failures[-1], flush=True)


@dataclass(frozen=True)
class Ended:
    """Exit codes and output of a job; the code is None for a process that hung and was killed."""

    codes: list[int | None]
    said: str


def end(job: Sequence[subprocess.Popen[str]], timeout: float) -> Ended:
    """Wait for all processes of a job, and kill those that hang."""
    deadline, codes, said = time.monotonic() + timeout, [], []
    for process in job:
        try:
            out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            codes.append(process.returncode)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            codes.append(None)
        said.append(out + (err or ""))  # None where both go into one pipe
    return Ended(codes, "\n".join(said))


# ---- kills ----------------------------------------------------------------------------------------------------------


def kill(drill: Drill, number: int) -> None:
    """Train a run in several attempts, killing all but the last, and compare it with the uninterrupted run."""
    trial, draw = f"kill-{number}", random.Random(f"{drill.seed} kill {number}")
    processes = draw.choice((1, 2))
    kinds = []
    timeline = drill.folder / "runs" / trial / "timeline.jsonl"
    for _ in range(draw.randint(1, _STARTS - 1)):
        victims = draw.choice([[rank] for rank in range(processes)] + [list(range(processes))])
        kind = draw.choice(("file-system event", "moment"))
        kinds.append(kind)
        before = _size(timeline)
        words = draw.choice((IN_PARTS, ()))
        if kind == "moment":
            job = drill.start(trial, processes, {}, words)
            _wait(draw.uniform(0, drill.seconds[processes]), job)
            for rank in victims:
                job[rank].kill()
        else:
            calls = drill.calls[processes]
            job = drill.start(trial, processes, {rank: draw.randint(1, calls[rank]) for rank in victims}, words)
            _wait(_LONGEST, job, until_one_ends=True)
        if _size(timeline) == before:  # before all have joined, a launcher ends those that wait
            for process in job:
                process.kill()
        done = end(job, HANG)
        if None in done.codes:
            drill.fail(trial, f"hung after a {kind} on {processes} processes:\n{done.said}")
    drill.counts.update(f"killed at a {kind}" for kind in kinds)
    done = end(drill.start(trial, processes, {}), _LONGEST)
    if done.codes != [0] * processes:
        drill.fail(trial, f"the last start ended with {done.codes}:\n{done.said}")
    elif problem := differs(drill.folder / "runs" / trial, drill.whole[processes]):
        drill.fail(trial, f"{problem} after {kinds} on {processes} processes")
    else:
        drill.counts["runs killed, and the same"] += 1


def launch(drill: Drill, number: int) -> None:
    """Kill the agent, the launcher or a rank of ``cifar-dist launch``, then let the same command finish the run."""
    trial, draw = f"launch-{number}", random.Random(f"{drill.seed} launch {number}")
    mark = {"CIFAR_DIST_DRILL": uuid.uuid4().hex}
    words = ["-m", "cifar_dist", "launch", "cpu", "--num_processes=2", str(drill.recipe), "--run.name", trial]

    def run() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words],
            env=environment(mark),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    agent = run()
    victim = draw.choice(("agent", "launcher", "rank"))
    if draw.random() < 0.5:
        _wait(draw.uniform(0, 15), [agent])
    else:  # once it trains
        metrics = drill.folder / "runs" / trial / "metrics.jsonl"
        steps = draw.randint(0, 20)
        _until(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= steps, [agent])
    below = psutil.Process(agent.pid).children(recursive=True) if agent.poll() is None else []
    choice = {"agent": [agent], "launcher": below[:1], "rank": below[1:]}[victim]
    if choice:
        draw.choice(choice).kill()
    done = end([agent], HANG)
    drill.counts[f"killed a {victim}"] += 1
    if None in done.codes:
        drill.fail(trial, f"hung after its {victim} was killed:\n{done.said}")
    _until(lambda: not _marked(mark["CIFAR_DIST_DRILL"]), [], HANG)
    for orphan in _marked(mark["CIFAR_DIST_DRILL"]):
        drill.fail(trial, f"left {' '.join(orphan.cmdline())[:100]} running after its {victim} was killed")
        orphan.kill()
    done = end([run()], _LONGEST)
    if done.codes != [0]:
        drill.fail(trial, f"the last start ended with {done.codes}:\n{done.said}")
    elif problem := differs(drill.folder / "runs" / trial, drill.whole[2]):
        drill.fail(trial, f"{problem} after its {victim} was killed")


def differs(run: Path, whole: Path) -> str:
    """Describe how a finished run differs from the uninterrupted one; empty if it does not."""
    if not (run / "final" / "model.safetensors").is_file():
        return "no final weights"
    if (run / "final" / "model.safetensors").read_bytes() != (whole / "final" / "model.safetensors").read_bytes():
        return "other final weights"
    if story(run) != story(whole):
        return "other metrics, or steps that are lost or doubled"
    tables = [{path.read_bytes() for path in one.glob("evaluations/[!.]*_model_final/*.csv")} for one in (run, whole)]
    if tables[0] != tables[1]:
        return "another final evaluation"
    # One whose process number another process has by now counts as being written.
    left = [str(path.relative_to(run)) for path in run.rglob(".*.tmp*") if not is_being_written(path)]
    return f"incomplete files are left: {left}" if left else ""


def _wait(seconds: float, job: Sequence[subprocess.Popen[str]], *, until_one_ends: bool = False) -> None:
    """Wait until all processes of a job, or one, have ended, or the time is over."""
    over = any if until_one_ends else all
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not over(process.poll() is not None for process in job):
        time.sleep(0.005)


def _until(happened: Callable[[], bool], job: Sequence[subprocess.Popen[str]], seconds: float = _LONGEST) -> None:
    """Wait until a condition is true, or any process of a job has ended."""
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline and all(process.poll() is None for process in job):
        time.sleep(0.05)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _marked(mark: str) -> list[psutil.Process]:
    """Return the living processes that inherited a mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if mark in process.environ().values() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


# ---- damages ------------------------------------------------------------------------------------------------------


def damage(drill: Drill, number: int) -> None:
    """Damage one file of a run or of its data, read the run, and start it again."""
    trial, draw = f"damage-{number}", random.Random(f"{drill.seed} damage {number}")
    run, data = drill.folder / "runs" / trial, drill.folder / f"data-{number}"
    shutil.copytree(drill.folder / "runs" / draw.choice(("whole-1", "stopped")), run, symlinks=True)
    shutil.copytree(drill.data, data)
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != ".lock"]
    packed = sorted(path for path in data.iterdir() if path.is_file())
    victim = draw.choice(packed if draw.random() < 0.25 else files)
    how = draw.choice(_DAMAGES)
    before = victim.read_bytes()
    how(victim, draw, files)
    what = f"{how.__name__} of {victim.relative_to(drill.folder)}"
    changed = victim.is_symlink() or not victim.is_file() or victim.read_bytes() != before

    verb = draw.choice((["report"], ["evaluate", "--checkpoint", "best"], ["evaluate", "--checkpoint", "latest"]))
    (read,) = spawn(["-m", "cifar_dist", verb[0], str(run), *verb[1:]], timeout=_LONGEST)
    if problem := unclean(read.returncode, read.stdout + read.stderr):
        drill.fail(trial, f"{what}: {' '.join(verb)} {problem}")
    done = end(drill.start(trial, 1, {}, ["--data.path", str(data)]), _LONGEST)
    drill.counts[f"damages with exit code {done.codes[0]}"] += 1
    if problem := unclean(done.codes[0], done.said):
        drill.fail(trial, f"{what}: the next start {problem}")
    elif done.codes == [0] and changed and (problem := differs(run, drill.whole[1])) and "warning:" not in done.said:
        drill.fail(trial, f"{what}: {problem}, and nothing was said:\n{done.said}")
    shutil.rmtree(data)
    shutil.rmtree(run)


def unclean(code: int | None, said: str) -> str:
    """Describe what is wrong with how a command ended; empty if it succeeded, or refused its input with one line."""
    if code not in (0, 1, 2):
        return f"ended with {code}:\n{said}"
    if "Traceback" in said or "Error:" in said:
        return f"printed a traceback:\n{said}"
    if code and "cifar-dist: " not in said:
        return f"failed without a word:\n{said}"
    return ""


def flip_a_bit(path: Path, draw: random.Random, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, draw: random.Random, _: list[Path]) -> None:
    path.write_bytes(path.read_bytes()[: draw.randint(0, max(0, path.stat().st_size - 1))])


def empty(path: Path, _: random.Random, __: list[Path]) -> None:
    path.write_bytes(b"")


def delete(path: Path, _: random.Random, __: list[Path]) -> None:
    path.unlink()


def fill_with_noise(path: Path, draw: random.Random, _: list[Path]) -> None:
    path.write_bytes(draw.randbytes(path.stat().st_size))


def overwrite_a_block(path: Path, draw: random.Random, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    begin = draw.randint(0, len(data))
    data[begin : begin + 512] = bytes(len(data[begin : begin + 512]))
    path.write_bytes(data)


def become_a_folder(path: Path, _: random.Random, __: list[Path]) -> None:
    path.unlink()
    path.mkdir()


def become_unreadable(path: Path, _: random.Random, __: list[Path]) -> None:
    """Make every read of a file an input/output error."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def become_another(path: Path, draw: random.Random, files: list[Path]) -> None:
    path.write_bytes(draw.choice([file for file in files if file.is_file()]).read_bytes())


_DAMAGES: list[Callable[[Path, random.Random, list[Path]], None]] = [
    *(flip_a_bit, truncate, empty, delete, fill_with_noise, overwrite_a_block),
    *(become_a_folder, become_unreadable, become_another),
]


# ---- the drill ------------------------------------------------------------------------------------------------------


def trials(kills: int, launches: int, damages: int) -> Iterator[tuple[str, Callable[[Drill], None]]]:
    """Yield the name of each trial, and the trial."""
    for kind, count in ((kill, kills), (launch, launches), (damage, damages)):
        for number in range(count):
            yield f"{kind.__name__}-{number}", functools.partial(kind, number=number)


def run_drill(folder: Path, data: Path, seed: int, wanted: Sequence[tuple[str, Callable[[Drill], None]]]) -> Drill:
    """Run these trials in ``folder`` on the packed digits ``data``."""
    drill = Drill(folder, data, seed)
    kinds = {name.partition("-")[0] for name, _ in wanted}
    for processes in (1, 2) if kinds & {"kill", "launch"} else (1,):
        drill.run_whole(processes)
    if "damage" in kinds:
        end(drill.start("stopped", 1, {0: drill.calls[1][0] * 3 // 5}), _LONGEST)
    for name, trial in wanted:
        trial(drill)
        print(f"{name} done, {len(drill.failures)} failures so far", flush=True)
        shutil.rmtree(drill.folder / "runs" / name, ignore_errors=True)
    return drill


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--kills", 40), ("--launches", 0), ("--damages", 200), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--only", help="the name of one trial")
    asked = parser.parse_args()

    from cifar_dist.data.pack import pack

    wanted = [one for one in trials(asked.kills, asked.launches, asked.damages) if asked.only in (None, one[0])]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        pack("digits", data, samples_per_shard=500, show=False)
        drill = run_drill(Path(folder), data, asked.seed, wanted)
    for what, count in sorted(drill.counts.items()):
        print(f"{count:5} {what}")
    print(f"{len(wanted)} trials, {len(drill.failures)} failures (seed {asked.seed})")
    return 1 if drill.failures else 0


if __name__ == "__main__":
    sys.exit(main())
