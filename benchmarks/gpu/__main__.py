"""The checks and figures that need a GPU, in one command: see benchmarks/gpu.sh."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from gpu.bench import ROOT, Bench, UnusableError, find_machine
from gpu.items import ITEMS, PARTS, Item, choose
from gpu.record import Record, count, create
from gpu.schedule import run_items

USAGE = "usage: benchmarks/gpu.sh CIFAR10 OUT [BUDGET_S] [PART or ITEM ...] [--rehearse]"
_BUDGET = 540.0
_REQUIRED = ("accelerate", "deepspeed", "numpy", "pydantic", "rich", "safetensors", "sklearn", "tomli_w", "webdataset")


def main(words: Sequence[str]) -> int:
    begin = time.monotonic()
    rehearse = "--rehearse" in words
    source, out, *rest = [word for word in words if word != "--rehearse"] if len(words) > 1 else ["", ""]
    if not source or not out:
        return _refuse(USAGE)
    budget = float(rest.pop(0)) if rest and rest[0].replace(".", "", 1).isdecimal() else _BUDGET
    if unknown := set(rest) - {*PARTS, *(item.name for item in ITEMS)}:
        names = ", ".join((*PARTS, *(item.name for item in ITEMS)))
        return _refuse(f"no part or item is called '{min(unknown)}'; there are: {names}")
    work = Path(tempfile.mkdtemp(prefix="cifar-dist-gpu-"))
    try:
        folder = create(Path(out))
        env = _environment(work)
        machine = find_machine(env)
        deadline = begin + budget - min(20.0, budget / 20)  # what is left is for the archives
        source = str(Path(source).resolve()) if Path(source).exists() else source
        bench = Bench(machine, source, work, deadline, rehearse or not machine.gpus, env)
        if bench.rehearse:
            folder = create(folder / "rehearsal")
        return _run(choose(rest, machine), bench, Record(folder, bench.runs, machine.name, env))
    except UnusableError as why:
        return _refuse(str(why))
    except KeyboardInterrupt:
        print("benchmarks/gpu: stopped; the same command continues", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(items: Sequence[Item], bench: Bench, record: Record) -> int:
    """Run the items and print the table; 1 if one of them failed.

    Raises:
        UnusableError: CIFAR-10 or an archive of earlier calls.
    """
    print(bench.machine.name + (": a rehearsal, with a few steps of each" if bench.rehearse else ""), flush=True)
    record.restore()
    if any(item.reads_cifar and not record.passed(item.name) for item in items):
        bench.check_source()
    try:
        run_items(items, bench, record)
    finally:
        record.finish()
    rows = [record.rows[item.name] for item in items if item.name in record.rows]
    width = max(len(row.name) for row in rows)
    print()
    for row in rows:
        print(f"{row.name:{width}}  {row.result:10}  {row.seconds:5.0f} s  {row.found}")
    print(f"\n{count(rows)}", flush=True)
    return int(any(row.result == "failed" for row in rows))


def _environment(work: Path) -> dict[str, str]:
    """The environment of all commands: this repository, and the packages of ``$WHEELS`` before those installed.

    Raises:
        SystemExit: a package that training requires is missing.
        UnusableError: a wheel is damaged.
    """
    path = [str(ROOT)]
    if wheels := os.environ.get("WHEELS"):
        files = sorted(map(str, Path(wheels).glob("*.whl")))
        if not files:
            sys.exit(_refuse(f"WHEELS is {wheels}, which has none; fill it with: benchmarks/gpu_wheels.sh {wheels}"))
        options = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir")
        words = [sys.executable, "-m", "pip", "install", *options, "--target", str(work / "site"), *files]
        for file in files:
            if not zipfile.is_zipfile(file):
                raise UnusableError(f"{file} is damaged; fill that folder again: benchmarks/gpu_wheels.sh {wheels}")
        installed = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if installed.returncode:
            said = (installed.stderr.strip().splitlines() or ["no output"])[-1]
            raise UnusableError(f"the wheels in {wheels} cannot be installed ({said}); fill it again")
        path.append(str(work / "site"))
    path += filter(None, [os.environ.get("PYTHONPATH")])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    find = f"import importlib.util as u; print(*[n for n in {_REQUIRED} if u.find_spec(n) is None])"
    missing = subprocess.run([sys.executable, "-c", find], env=env, capture_output=True, text=True).stdout.split()
    if missing:
        sys.exit(
            _refuse(
                f"{sys.executable} lacks {', '.join(missing)}; on a connected machine run benchmarks/gpu_wheels.sh "
                "WHEELS, bring that folder here and set WHEELS to it"
            )
        )
    return env


def _refuse(why: str) -> int:
    print(f"benchmarks/gpu: {why}", file=sys.stderr)
    return 2


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # the archives are written nevertheless
    sys.exit(main(sys.argv[1:]))
