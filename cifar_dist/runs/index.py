"""``index.html``: the runs of a folder on one page, each with its state, its results and a link to its report."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from cifar_dist.config.saved import CONFIG_NAME
from cifar_dist.errors import UserError
from cifar_dist.files.atomic import write_atomic
from cifar_dist.formatting import counted
from cifar_dist.report.page import escape, page
from cifar_dist.runs.listing import ListedRun, describe, find_runs, version, written

FILE_NAME = "index.html"
_TEXTS = ("run", "state", "model", "data")  # columns aligned to the left
_FIGURES = ("epochs", "val %", "test %", "TTA", "time", "written (UTC)")
_WIDE = ("model", "data", "epochs", "TTA", "time", "written (UTC)")  # columns that are a line below on phones and paper
_RESULTS = ("model", "data", "epochs", "val %", "test %", "TTA", "time")  # columns that a damaged run cannot fill
_IN_LINE = {"epochs": "{} epochs", "TTA": "TTA {}", "written (UTC)": "{} UTC"}  # which has no heads of columns
_SHORT = 24  # letters that a cell keeps on one line
_CSS = """
td.text.short { white-space: nowrap; }
td.problem { max-width: 0; overflow-wrap: anywhere; }
@media screen and (min-width: 641px) { .narrow, td.text.short wbr { display: none; } }
@media print, (max-width: 640px) {
  .wide { display: none; }
  th, td { padding: 6px; }
  td.text.short { white-space: normal; }
  tbody tr:not(.narrow) { break-after: avoid; }
  tbody tr:not(.narrow) td { border: 0; padding-bottom: 0; }
  .narrow td { padding-top: 2px; overflow-wrap: anywhere; }
}
"""
_BREAKABLE = re.compile(r"([-.+=_/])")  # where a phone may continue a long name in the next line
_ROW = re.compile(r'<tr data-files="([0-9a-f]+)">.*<tr class="narrow">.*</tr>\n')  # of a run, written by _row
_DATA = re.compile(r'(<bdi data-content="(\w{8})\w*">([^<]*)</bdi>)(?:<span>[^<]*</span>)?')
_TITLE = "Runs in "
_OWN = re.compile(f"<title>(Runs( of cifar-dist)?|{_TITLE}[^<]*)</title>.*--ink:", re.DOTALL)  # or an earlier version's


def write_index(folder: Path, entries: Sequence[ListedRun] | None = None) -> Path:
    """Write ``index.html`` into a folder of runs and return its path.

    Args:
        folder: the folder.
        entries: its runs; None reads those whose files have changed since the page was written.

    Raises:
        UserError: it contains no run, or has an ``index.html`` of its own.
        OSError: it cannot be written.
    """
    path = folder / FILE_NAME
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if path.exists() and not _OWN.search(before):
        raise UserError(f"{path} exists and is not a page of runs; move it")
    titles = "".join(f"<th{_class(title)}>{title}</th>" for title in (*_TEXTS, *_FIGURES))
    head = f"<thead><tr>{titles}</tr></thead>"
    if entries is not None:
        dated = [(entry.written, _row(entry, folder)) for entry in entries]
    else:  # at the end of each run of a sweep: to read all of them would take ever longer
        reusable = _ROW.finditer(before) if head in before else ()  # an earlier version may have other columns
        known = {found[1]: found[0] for found in reusable}
        runs = find_runs(folder, show=False)
        dated = [(written(run), known.get(version(run)) or _row(describe(run), folder)) for run in runs]
    rows = _tell_data_apart("".join(row for _, row in sorted(dated, key=lambda dated: -dated[0])))
    table = f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
    heading = f"<h1>{counted(len(dated), 'run')} in {escape(str(folder))}</h1>"
    title = _TITLE + "/".join(Path(os.path.abspath(folder)).parts[-2:])  # most are named "runs"
    write_atomic(path, page(title, f"{heading}\n{table}", _CSS))
    return path


def belongs_in(folder: Path) -> bool:
    """Whether a folder has the page already, or no other folders than runs.

    Raises:
        OSError: it cannot be read.
    """
    if (folder / FILE_NAME).exists():
        return True
    with os.scandir(folder) as entries:
        folders = (entry.path for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        return all(os.path.exists(os.path.join(path, CONFIG_NAME)) for path in folders)


def _row(entry: ListedRun, folder: Path) -> str:
    name, report = os.path.relpath(entry.run.path, folder), entry.run.report
    text = _BREAKABLE.sub(r"\1<wbr>", escape(name))
    link = f'<a href="{quote(os.fsencode(os.path.relpath(report, folder)))}">{text}</a>' if report.is_file() else text
    cells = entry.cells
    texts = {title: cells.get(title, "") for title in (*_TEXTS, *_FIGURES)}
    texts |= {"run": name, "state": entry.state}
    shown = {title: escape(text) for title, text in texts.items()} | {"run": link}
    if entry.problem and entry.result:
        shown["state"] += ",<br>lost metrics"  # below it: a wider column would break the names of all runs
    if entry.result:
        shown["data"] = f'<bdi data-content="{escape(entry.result.facts.fingerprint)}">{shown["data"]}</bdi>'
    mark = f' data-files="{entry.version}"' if entry.version else ""
    row = {title: f"<td{_class(title, texts[title])}>{cell}</td>" for title, cell in shown.items()}
    parts = {title: _IN_LINE.get(title, "{}").format(shown[title]) for title in _WIDE if texts[title]}
    line = ", ".join(parts.values())
    if not entry.result:  # what is wrong takes the place of its results, of which a phone shows two
        row = {title: cell for title, cell in row.items() if title not in _RESULTS}
        problem = f'<td class="text wide problem" colspan="{len(_RESULTS)}">{escape(entry.problem)}</td>'
        row["state"] += problem + '<td class="narrow"></td>' * len({*_RESULTS} - {*_WIDE})
        line = f"{escape(entry.problem)}<br>{parts['written (UTC)']}"
    columns = len({*_TEXTS, *_FIGURES} - {*_WIDE})
    below = f'<tr class="narrow"><td class="text soft" colspan="{columns}">{line}</td></tr>'
    return f"<tr{mark}>{''.join(row.values())}</tr>{below}\n"


def _tell_data_apart(rows: str) -> str:
    """Put the beginning of its fingerprint beside the name of data where other data has the same name."""
    contents = {(found[3], found[2]) for found in _DATA.finditer(rows)}
    shared = Counter(name for name, _ in contents)

    def named(found: re.Match[str]) -> str:
        return found[1] + (f"<span> ({found[2]})</span>" if shared[found[3]] > 1 else "")

    return _DATA.sub(named, rows)


def _class(column: str, text: str = "") -> str:
    chosen = {"text": column in _TEXTS, "short": column in _TEXTS and len(text) <= _SHORT, "wide": column in _WIDE}
    names = " ".join(name for name, is_chosen in chosen.items() if is_chosen)
    return f' class="{names}"' if names else ""
