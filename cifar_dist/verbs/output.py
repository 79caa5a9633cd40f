"""Files that verbs write: what is refused before the work starts, and one line for an error of writing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from cifar_dist.errors import UserError


def check_writable(path: Path, option: str, *inputs: str | Path) -> None:
    """Refuse a file that cannot be written, or must not be, before the work whose result it receives.

    Args:
        path: the file; a pipe or a device is accepted.
        option: the option that names it.
        inputs: files and folders that the verb reads. A text may also be a name, and counts only if it is a file.

    Raises:
        UserError: it is a folder, an input or in one, its folder does not exist, or permissions forbid it.
    """
    if str(path) == "-":
        raise UserError(f"{option} requires a file; for standard output use {option} /dev/stdout")
    target = path.resolve()  # a link is written through
    folder = target.parent
    if target.is_dir():
        raise UserError(f"{path} is a folder; name a file in it: {option} {path / 'NAME'}")
    for given in inputs:
        source = Path(given)
        if (source.is_file() if isinstance(given, str) else source.exists()) and _is_in(target, source.resolve()):
            raise UserError(f"{option} {path} would change {source}, which is read; use another {option}")
    refuse_lasting(path, option)
    if target.suffix == ".toml" and target.is_file():
        raise UserError(f"{option} {path} would replace a recipe; use another {option}")
    if not folder.exists():
        raise UserError(f"{path} cannot be written: the folder {path.parent} does not exist; use another {option}")
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written: {path.parent} is not a folder; use another {option}")
    from cifar_dist.files.open_files import find_descriptor

    if find_descriptor(path) is not None:  # the shell has opened it, and it is not replaced
        return
    if not os.access(target if target.exists() and not target.is_file() else folder, os.W_OK):
        raise UserError(f"{path} cannot be written: permission denied; use another {option}")


def stream_for_people(out: Path | None) -> TextIO:
    """Return where to print what a person reads: not to standard output if that is ``out``, nor beside a pipe."""
    from cifar_dist.files.open_files import find_descriptor

    has_content_only = out is not None and (find_descriptor(out) is not None or (out.exists() and not out.is_file()))
    return sys.stderr if has_content_only else sys.stdout


def refuse_lasting(path: Path, option: str) -> None:
    """Refuse a file whose replacement would damage a run or a packed dataset, whether the verb reads it or not.

    Raises:
        UserError: the file is what a run cannot be used without, one of its results, or a part of a dataset.
    """
    from cifar_dist.data.dataset_folder import FILE_NAME, is_dataset
    from cifar_dist.run_folder import RunFolder

    target = path.resolve()
    for parent in [*target.parents][:4]:  # the deepest are runs/NAME/evaluations/NAME/figures/FILE
        run = RunFolder(parent)
        lasting = [path for path in run.essential if path.exists()]
        if run.exists() and run.is_of_this_program() and any(_is_in(target, path) for path in lasting):
            raise UserError(f"{option} {path} would change the run {parent}; use another {option}")
    if (target.name == FILE_NAME or target.suffix == ".tar") and is_dataset(target.parent):
        raise UserError(f"{option} {path} would change the dataset {target.parent}; use another {option}")


def _is_in(target: Path, source: Path) -> bool:
    """Whether a path is that of ``source``, another name of it, or inside it."""
    return target.is_relative_to(source) or (target.exists() and target.samefile(source))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write to ``path`` inside.

    Raises:
        UserError: ``path`` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
