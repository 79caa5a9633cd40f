"""Write docs/performance.md, its picture and the table of README.md: python docs/make_performance.py.

The figures are those that the benchmarks wrote into benchmarks/results/, see ``benchmarks/comparison.py``.
Everything below the heading "Notes" is kept.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.report.style import BLUE, GREY, INK, ORANGE, figure, short
from cifar_dist.tables import markdown

HERE = Path(__file__).parent
DOCUMENT = HERE / "performance.md"
PICTURE = "performance.png"
README = HERE.parent / "README.md"
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "benchmarks")]

from comparison import RESULTS, Comparison  # noqa: E402  (a script's folder, not a package)

from docs.make_pictures import keep  # noqa: E402

_NOTES = "## Notes"
_HEAD = ("ours", "", "peer", "", "times as fast")
_IN_README = ("a training of cpu-quick", "a later epoch", "a training step of speedrun-94, 2000 images, bf16")
_INTRODUCTION = """# Performance

Each figure is a ratio to a named peer, measured in the same call on the same machine: the two take turns, and the one
that begins changes each time. "Times as fast" is the median of the turns' ratios, with the smallest and the largest;
values above 1 are in favour of cifar-dist. The times and rates are the medians of their own turns. Each heading is the
command that measures its table; those of CIFAR-10 require it packed in `shards/cifar10`, or where `--data` says;
`cifar10-jpeg` is CIFAR-10 stored as quality-75 JPEG, as in [results.md](results.md). `make bench` runs all but
`benchmarks/peers.py`, which requires the peers' own scripts, with their default turns, in twenty minutes to an hour on
two idle cores, and `docs/make_performance.py` writes this page from `benchmarks/results/`.

<!-- drawn by docs/make_performance.py -->
![How many times as fast as its peer each part is](images/performance.png)
"""


@dataclass(frozen=True)
class Measured:
    """One call of a benchmark.

    Attributes:
        command, date, commit, machine, note: as it recorded them.
        comparisons: what it measured.
    """

    command: str
    date: str
    commit: str
    machine: str
    note: str
    comparisons: list[Comparison]


def read(folder: Path = RESULTS) -> list[Measured]:
    """Read the recorded benchmarks, by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        comparisons = [Comparison(**one) for one in content["comparisons"]]
        found.append(Measured(**{**content, "comparisons": comparisons}))
    return found


def up_to_date(document: str) -> str:
    """Return the page as it should be, with the notes of ``document``."""
    parts = [_INTRODUCTION]
    for measured in read():
        note = f"; {measured.note}" if measured.note else ""
        parts.append(
            f"\n## `{measured.command}`\n\n"
            f"{measured.machine}, {measured.date}, commit {_commit(measured.commit)}{note}.\n\n"
            + _table(measured.comparisons)
        )
    _, heading, notes = document.partition(_NOTES)
    return "".join(parts) + (f"\n{heading}{notes}" if heading else "")


def readme_up_to_date(document: str) -> str:
    """Return the README with its table as it should be.

    Raises:
        ValueError: it lacks the marks of the table, or nothing of a kind that it shows was measured.
    """
    pattern = re.compile(r"(<!-- written by docs/make_performance.py -->\n).*?(<!-- end -->)", re.S)
    if not pattern.search(document):
        raise ValueError("README.md: put <!-- written by docs/make_performance.py --> and <!-- end --> into it")
    found = read()
    chosen, notes = list[Comparison](), list[str]()
    for what in _IN_README:
        of_kind = [
            (one, measured.note) for measured in found for one in measured.comparisons if one.what.startswith(what)
        ]
        if not of_kind:
            raise ValueError(f"nothing in benchmarks/results is {what!r}; correct _IN_README")
        chosen += [one for one, _ in of_kind]
        notes += [f"{what.capitalize()}: {note}.\n" for note in dict.fromkeys(note for _, note in of_kind) if note]
    below = "\n" + "".join(notes) if notes else ""
    return pattern.sub(lambda match: f"{match[1]}{_table(chosen)}{below}{match[2]}", document)


def _table(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for one in comparisons:
        ours, theirs = (_number(statistics.median(turns), one.unit) for turns in (one.ours, one.theirs))
        spread = f" ({min(one.ratios):.2f} to {max(one.ratios):.2f})" if len(one.ratios) > 1 else ""
        rows.append([one.what, ours, one.peer, theirs, f"{one.ratio:.2f}{spread}"])
    return markdown(_HEAD, rows, ["times as fast"])


def _commit(recorded: str) -> str:
    number, _, dirty = recorded.partition("-")
    return f"`{number[:7]}`{' with uncommitted changes' if dirty else ''}"


def _number(value: float, unit: str) -> str:
    if unit == "s":
        return f"{1000 * value:,.1f} ms" if value < 1 else f"{value:,.2f} s"
    return f"{value:,.0f} {unit}"


def draw(path: Path) -> None:
    """Draw a dot for each comparison on a logarithmic axis, with the range of its turns."""
    rows = [one for measured in read() for one in measured.comparisons]
    with figure(path, 10.5, 1.2 + 0.3 * len(rows)) as drawing:
        axes = drawing.subplots()
        axes.set_title("Times as fast as the peer")
        axes.axvline(1, color=GREY, linewidth=1)
        for place, one in enumerate(rows):
            low, high = min(one.ratios), max(one.ratios)
            colour = BLUE if low > 1 else ORANGE if high < 1 else GREY
            axes.plot([low, high], [place, place], color=colour, linewidth=4, alpha=0.4)
            axes.plot([one.ratio], [place], "o", color=colour, markersize=6)
            for text, points, side in ((f"{one.ratio:.2f}", 34, "right"), (short(one.peer, 48), 40, "left")):
                axes.annotate(
                    text,
                    (1, place),
                    (points, 0),
                    xycoords=axes.get_yaxis_transform(),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    color=INK,
                    fontsize=8.5,
                )
        for place in itertools.accumulate(len(measured.comparisons) for measured in read()):
            axes.axhline(place - 0.5, color=GREY, linewidth=0.5, alpha=0.4)
        axes.set_yticks(range(len(rows)), [short(one.what, 64) for one in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xscale("log")
        ticks = [0.5, 1, 2, 5, 10, 20, 50]
        low, high = min(min(one.ratios) for one in rows), max(max(one.ratios) for one in rows)
        shown = [tick for tick in ticks if low / 2 <= tick <= 2 * high]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.minorticks_off()
        axes.grid(axis="y", visible=False)
        axes.plot([], [], "o", color=BLUE, markersize=6, label="ours is faster in every turn")
        axes.plot([], [], "o", color=ORANGE, markersize=6, label="the peer is faster in every turn")
        axes.plot([], [], "o", color=GREY, markersize=6, label="neither in every turn")
        axes.plot([], [], color=GREY, linewidth=4, alpha=0.4, label="the range of the turns")
        axes.legend(loc="lower right", fontsize=8.5)


def main() -> None:
    document = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.is_file() else ""
    DOCUMENT.write_text(up_to_date(document), encoding="utf-8")
    README.write_text(readme_up_to_date(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {', '.join(str(path.relative_to(HERE.parent)) for path in (DOCUMENT, README))}")
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder, PICTURE))
        keep(Path(folder, PICTURE), PICTURE)


if __name__ == "__main__":
    main()
