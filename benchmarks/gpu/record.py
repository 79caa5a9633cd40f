"""The results in OUT: results.json, results.md, the archives of run folders, and a log for each part."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from gpu.bench import ROOT, UnusableError

Result = Literal["passed", "failed", "skipped", "unfinished"]
FINISHED = "runs.tar.gz"
UNFINISHED = "unfinished.tar"
_LIMIT = "LIMIT_MIB"
_HEADERS = 1.1  # of an archive, beside what it holds
_LARGE = (".safetensors", ".npz", ".png", ".html")  # weights, and what `cifar-dist report` draws again


@dataclass(frozen=True)
class Row:
    """The result of an item.

    Attributes:
        name, part: of the item.
        result: passed, failed, skipped or unfinished.
        seconds: it took.
        found: one line: a figure, or the reason.
        machine: it ran on.
    """

    name: str
    part: str
    result: Result
    seconds: float
    found: str
    machine: str

    @property
    def run(self) -> str:
        """Name of the run that an item of the recipes trains."""
        return self.name.replace("/", "-")


class Record:
    """The rows of this call and of those before it with the same code.

    Args:
        out: folder of results, see :func:`create`.
        runs: folder of run folders.
        machine: that of this call. Rows of others are kept beside its own, and none of them counts for it.
        env: environment of the commands.

    Attributes:
        rows: those of this machine.

    Raises:
        UnusableError: ``out`` is damaged, or holds the results of other code.
    """

    def __init__(self, out: Path, runs: Path, machine: str, env: Mapping[str, str]) -> None:
        self._out, self._runs, self._before, self._env = out, runs, runs.with_name("before"), env
        self._code = _fingerprint()
        self._file = out / "results.json"
        kept = self._read()
        self._others = [row for row in kept if row.machine != machine]
        self.rows = {row.name: row for row in kept if row.machine == machine}

    def _read(self) -> list[Row]:
        if not self._file.is_file():
            return []
        try:
            kept = json.loads(self._file.read_text("utf-8"))
            code, rows = kept["code"], [Row(**row) for row in kept["rows"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnusableError(f"{self._file} is damaged ({error}); remove it, or use another folder") from None
        if code != self._code:
            raise UnusableError(f"{self._out} holds results of other code; use another folder")
        return rows

    @property
    def _all_rows(self) -> list[Row]:
        return [*self._others, *self.rows.values()]

    def restore(self) -> None:
        """Unpack the run folders of earlier calls: the unfinished ones to resume them, the others to keep them.

        Raises:
            UnusableError: an archive is damaged.
        """
        for name, folder in ((FINISHED, self._before), (UNFINISHED, self._runs)):
            path = self._out / name
            if path.is_file():
                try:
                    with tarfile.open(path) as archive:
                        archive.extractall(folder, filter="data")
                except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
                    why = str(error).partition(":\n")[0]
                    raise UnusableError(f"{path} is damaged ({why}); remove it, or use another folder") from None

    def log(self, part: str) -> Path:
        """File of a part's output."""
        return self._out / f"{part}.log"

    def passed(self, name: str) -> bool:
        """Whether an item passed on this machine, in this call or before."""
        return name in self.rows and self.rows[name].result == "passed"

    def add(self, row: Row) -> None:
        """Record a result, and write the tables at once; a skip does not replace what an earlier call found."""
        if row.result == "skipped" and row.name in self.rows:
            return
        self.rows.pop(row.name, None)
        self.rows[row.name] = row
        rows = [asdict(row) for row in self._all_rows]
        self._file.write_text(json.dumps({"code": self._code, "rows": rows}, indent=1) + "\n", "utf-8")
        (self._out / "results.md").write_text(table(self._all_rows), "utf-8")

    def finish(self) -> None:
        """Write the archives, and the table of trained recipes below that of the items."""
        with self._replaced(FINISHED, "w:gz") as archive:
            for run in self._all_runs():
                for path in _files(run):
                    if "checkpoints" not in path.relative_to(run).parts and path.suffix not in _LARGE:
                        archive.add(path, f"{run.name}/{path.relative_to(run)}", recursive=False)
        recipes = {row.run: row for row in self._all_rows if row.part == "recipes"}  # of two, this machine's
        begun = [self._runs / run for run, row in recipes.items() if not self.passed(row.name)]
        unfinished = self._within_limit([run for run in begun if (run / "checkpoints" / "latest").exists()])
        with self._replaced(UNFINISHED, "w") as archive:
            for run in unfinished:
                for path in _resumable(run):
                    archive.add(path, f"{run.name}/{path.relative_to(run)}", recursive=False)
        if not unfinished:
            (self._out / UNFINISHED).unlink()
        text = table(self._all_rows)
        (self._out / "results.md").write_text(text + self._trained(), "utf-8")

    def _within_limit(self, runs: Sequence[Path]) -> list[Path]:
        """The runs that an archive of at most ``$LIMIT_MIB`` holds; the rows of the others say that they begin anew."""
        left, kept = _limit_bytes(), []
        rows = {row.run: row for row in self.rows.values()}
        for run in runs:
            size = _HEADERS * sum(path.stat().st_size for path in _resumable(run))
            if size <= left:
                left -= size
                kept.append(run)
            elif row := rows.get(run.name):
                found = f"{row.found.partition(';')[0]}; not kept, because it takes {size / 2**20:.0f} MiB ({_LIMIT})"
                self.add(replace(row, found=found))
        return kept

    @contextmanager
    def _replaced(self, name: str, mode: Literal["w", "w:gz"]) -> Iterator[tarfile.TarFile]:
        """Write an archive beside the old one, and replace that once it is complete."""
        partial = self._out / f".{name}.partial"
        with tarfile.open(partial, mode) as archive:
            yield archive
        partial.replace(self._out / name)

    def _all_runs(self) -> list[Path]:
        found = {run.name: run for folder in (self._before, self._runs) for run in _folders(folder)}
        return [found[name] for name in sorted(found)]

    def _trained(self) -> str:
        """The tables of docs/results.md for the recipes that are finished."""
        names = {row.run for row in self._all_rows if row.part == "recipes"}
        runs = [str(run) for run in self._all_runs() if run.name in names and any(run.glob("evaluations/*"))]
        page = self._runs.with_name("trained.md")
        words = [sys.executable, str(ROOT / "docs" / "make_results.py"), "--to", str(page), *runs]
        if not runs:
            return ""
        done = subprocess.run(words, cwd=ROOT, env=self._env, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no output"])[-1]
            return f"\nThe table of trained recipes could not be written: {said}\n"
        return "\n" + page.read_text("utf-8").partition("\n## Finished\n")[2].lstrip()


def create(out: Path) -> Path:
    """Create a folder of results unless it exists; return its absolute path.

    Raises:
        UnusableError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UnusableError(f"OUT is {out}, which cannot be written ({error.strerror}); use another folder") from None
    return out.resolve()


def table(rows: Iterable[Row]) -> str:
    """The page of results: a table for each machine."""
    by_machine: dict[str, list[Row]] = {}
    for row in rows:
        by_machine.setdefault(row.machine, []).append(row)
    text = "# Results of benchmarks/gpu.sh\n"
    for machine, own in by_machine.items():
        text += f"\n## {machine}\n\n{count(own)}\n\n| item | result | seconds | found |\n| --- | --- | --- | --- |\n"
        for row in own:
            text += f"| {row.part}: {row.name} | {row.result} | {row.seconds:.0f} | {row.found.replace('|', '/')} |\n"
    return text


def count(rows: Sequence[Row]) -> str:
    """How many rows have each result: ``9 passed, 1 failed``."""
    found: Mapping[str, int] = {
        result: sum(row.result == result for row in rows) for result in ("passed", "failed", "unfinished", "skipped")
    }
    return ", ".join(f"{number} {result}" for result, number in found.items() if number)


def _resumable(run: Path) -> Iterator[Path]:
    """The files of a run with its newest checkpoint and no other."""
    newest = (run / "checkpoints" / "latest").resolve()
    for path in _files(run):
        parts = path.relative_to(run).parts
        if parts[0] != "checkpoints" or parts[1] in ("latest", newest.name):
            yield path


def _limit_bytes() -> float:
    text = os.environ.get(_LIMIT, "")
    return float(text) * 2**20 if text.isdecimal() else math.inf


def _files(run: Path) -> Iterator[Path]:
    return (path for path in sorted(run.rglob("*")) if path.is_symlink() or path.is_file())


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _fingerprint() -> str:
    """A hash of the code whose results these are."""
    digest = hashlib.sha256()
    for folder in ("cifar_dist", "launch", "benchmarks/gpu"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".toml", ".yaml"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
