"""Find the folder of a run that the user names."""

from __future__ import annotations

import os
from pathlib import Path

from cifar_dist.config.saved import way_to_repair
from cifar_dist.config.section import expand_existing
from cifar_dist.errors import UserError, nearest
from cifar_dist.files.folders import list_complete
from cifar_dist.run_folder.folder import RunFolder


def split_step(text: str) -> tuple[str, str]:
    """Split ``RUN@STEP`` into the run and what names its checkpoint, which is empty if nothing does.

    A folder above the run may have an ``@`` in its name; a run has none.
    """
    run, at, which = text.rpartition("@")
    return (run, which) if at and "/" not in which else (text, "")


def find_run(run: str, parent: Path = Path("runs"), checkpoint: str = "") -> RunFolder:
    """Return the folder of a run, given by name or path; ``./NAME`` is always a path first.

    Args:
        run: the name or path.
        parent: folder of the runs that are known by name.
        checkpoint: how the user names a checkpoint of the run here, for who gives the path of one.

    Raises:
        UserError: it does not exist, may not be read, or has lost its config; the message suggests the nearest name,
            or the repair.
    """
    own = expand_existing(run)
    places = (own, parent / run) if "/" in run else (parent / run, own)
    for path in places:
        if RunFolder(path).exists():
            return RunFolder(path if path.name not in ("", "..") else Path(os.path.abspath(path)))  # "." has no name
    for path in places:
        if os.path.isfile(RunFolder(path).started_config):
            config = RunFolder(path).config
            raise UserError(f"the run {path} has lost its {config.name}{way_to_repair(config)}")
        if _is_forbidden(path):
            raise UserError(f"{path} cannot be read: permission denied; ask its owner for access, or use a copy")
    way = f", and its checkpoint {checkpoint}" if checkpoint else ""
    for path in own.parents:
        if RunFolder(path).exists():
            raise UserError(f"'{run}' is inside the run {path}; name the run{way}")
    name, which = split_step(run)
    if which and any(RunFolder(path).exists() for path in (parent / name, expand_existing(name))):
        raise UserError(f"'{run}' is not a run; name {name}{way}")
    known = [path.name for path in list_complete(parent) if RunFolder(path).exists()]
    hint = nearest(run, known) if known else f"{parent} has no run yet; train one first"
    raise UserError(f"run '{run}' does not exist; {hint}")


def _is_forbidden(path: Path) -> bool:
    """Whether this user may not search a folder that exists."""
    try:
        os.stat(RunFolder(path).config)
    except PermissionError:
        return True
    except (OSError, ValueError):
        pass
    return False
