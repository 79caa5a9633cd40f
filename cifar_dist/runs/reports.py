"""Keep the reports of runs and the pages of their folders up to date; no command fails for one that cannot be drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cifar_dist.errors import in_one_line, quoted
from cifar_dist.launch.launched import is_main_process
from cifar_dist.terminal.notice import notice, warn
from cifar_dist.terminal.progress import waiting

if TYPE_CHECKING:
    from cifar_dist.run_folder import RunFolder
    from cifar_dist.runs.listing import ListedRun


def draw(run: RunFolder, data: Path | None = None) -> None:
    """Draw the report of a run, and the page of the runs beside it; a drawing error must not fail the run.

    Args:
        run: the run.
        data: a packed dataset, see :func:`cifar_dist.report.run_page.write_report`.
    """
    draw_report(run, data=data)
    draw_index(run.path.parent, asked=False)


def draw_report(run: RunFolder, said_on: TextIO | None = None, which: str = "", data: Path | None = None) -> None:
    """Draw the report of a run; a drawing error must not fail the run.

    Args:
        run: the run.
        said_on: where its path is printed; None for standard output.
        which: said of the report at a terminal meanwhile, where it is one of many.
        data: a packed dataset, as for :func:`draw`.
    """
    try:
        with waiting(f"drawing the report {which}".rstrip(), show=is_main_process()):
            from cifar_dist.report.run_page import write_report

            report = write_report(run, data)
    except Exception as error:
        notice(f"cannot draw the report ({in_one_line(error)}); retry: cifar-dist report {quoted(run.path)}")
    else:
        with contextlib.suppress(OSError):  # of the console: a full disk, or a pipe that nobody reads any more
            print(f"report: {report}", file=said_on, flush=True)


def draw_if_outdated(run: RunFolder) -> None:
    """Draw the report of a run, and the page, if something has happened in the run since it was drawn."""
    from cifar_dist.runs.listing import has_outdated_report

    if has_outdated_report(run):
        draw(run)


def draw_index(folder: Path, entries: Sequence[ListedRun] | None = None, *, asked: bool = True) -> None:
    """Write the page of all runs of a folder, where the folder can be written.

    Args:
        folder: the folder.
        entries: its runs; None reads them.
        asked: False writes it only where it belongs: beside a run may be all that somebody has.
    """
    try:
        from cifar_dist.runs.index import belongs_in, write_index

        if asked or belongs_in(folder):
            write_index(folder, entries)
    except Exception as error:
        why = (isinstance(error, OSError) and error.strerror) or error  # its text names the file again
        warn(f"{folder}/index.html was not written: {why}")
