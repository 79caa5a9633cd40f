"""Whether all processes see one folder, in which names change atomically and locks exclude each other."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cifar_dist.config.run import SHARE_DIR
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.shared_path import SEEN_SECONDS, appears
from cifar_dist.doctor.finding import Finding, Verdict
from cifar_dist.files.atomic import fsync
from cifar_dist.launch.launched import machine_name
from cifar_dist.launch.waiting import wait_until


def check_shared_folder(folder: Path, ranks: Ranks) -> Finding:
    """Let every rank write a file into ``folder``, rename it, and look for those of all others. Collective."""
    with contextlib.ExitStack() as created:  # on rank 0

        def create() -> Path | str:
            try:
                return created.enter_context(trial_folder(folder))
            except OSError as error:
                return error.strerror or str(error)

        trial = ranks.run_on_main(create)
        if isinstance(trial, str):
            text = f"run.dir {folder} cannot be written ({trial})"
            return Finding("files", text, Verdict.FAILED, "choose another --run.dir")
        return _try_folder(folder, trial, ranks)


@contextmanager
def trial_folder(folder: Path) -> Iterator[Path]:
    """A new folder in ``folder``; removed after the block, with the parents that had to be created for it.

    Raises:
        OSError: it cannot be created.
    """
    parents = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = Path(tempfile.mkdtemp(prefix=".doctor.", suffix=".tmp", dir=folder))  # other nodes repeat process ids
        try:
            yield trial
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):  # something else is in one of them by now
            for path in parents:
                path.rmdir()


def _try_folder(folder: Path, trial: Path, ranks: Ranks) -> Finding:
    hosts = ranks.gather_objects(machine_name())
    for problem_of in (_write, _look):
        problems = ranks.gather_objects(problem_of(trial, ranks.rank, ranks.world_size))
        for rank, problem in enumerate(problems):
            if problem:
                who = f"rank {rank} on {hosts[rank]} " if ranks.world_size > 1 else ""
                return Finding("files", f"run.dir {folder}: {who}{problem}", Verdict.FAILED, SHARE_DIR)
    together = f"{ranks.world_size} ranks write, rename and see each other's files"
    text = together if ranks.world_size > 1 else "files are written and renamed"
    locks = _try_locks(trial, ranks)
    remedy = "two jobs of one run would not notice each other: mount it with locks (Lustre: -o flock)" if locks else ""
    return Finding.ok_or(Verdict.WARNING, "files", f"run.dir {folder}: {text}, {locks or 'and locks exclude'}", remedy)


def _write(trial: Path, rank: int, _: int) -> str:
    """Write this rank's file under a temporary name and rename it; return the problem, or an empty string."""
    if not appears(trial):
        return "does not see the folder that rank 0 has created in it"
    temporary = trial / f"rank-{rank}.tmp"
    try:
        temporary.write_text(str(rank))
        fsync(temporary)
        temporary.rename(trial / f"rank-{rank}")
        fsync(trial)
    except OSError as error:
        return f"cannot write in it ({error.strerror})"
    return ""


def _look(trial: Path, _: int, world_size: int) -> str:
    """Look for the files of all ranks; return the problem, or an empty string."""
    wanted = {f"rank-{rank}": str(rank) for rank in range(world_size)}
    if wait_until(lambda: _contents(trial) == wanted, SEEN_SECONDS):
        return ""
    found = _contents(trial)
    missing = [name for name in wanted if name not in found]
    if missing:
        return f"does not see what {missing[0].replace('-', ' ')} has written, after {SEEN_SECONDS:.0f} s"
    if left := [name for name in found if name not in wanted]:
        return f"still sees {left[0]}, which has been renamed, after {SEEN_SECONDS:.0f} s"
    return "sees files without their contents"


def _contents(trial: Path) -> dict[str, str]:
    try:
        return {path.name: path.read_text() for path in trial.iterdir()}
    except OSError:
        return {}


def _try_locks(trial: Path, ranks: Ranks) -> str:
    """Lock a file on rank 0 and try to on the others; return why that protects nothing, or an empty string."""
    with contextlib.ExitStack() as held:
        problem = ranks.run_on_main(lambda: _lock(held.enter_context((trial / "lock").open("a"))))
        if problem:
            return f"and cannot be locked ({problem})"
        tries = not ranks.is_main or ranks.world_size == 1  # a second handle of this process is another holder, too
        others = ranks.gather_objects(_lock_again(trial / "lock") if tries else "")
    return next(filter(None, others), "")


def _lock(file: IO[str]) -> str:
    """Lock an open file without waiting; return why that fails, or an empty string."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _lock_again(path: Path) -> str:
    """Lock a file that rank 0 has locked; return the problem if that succeeds, or an empty string."""
    with path.open("a") as file:
        return "" if _lock(file) else f"but a second process on {machine_name()} can lock a locked file"
