"""Compare rows of runs: the accuracy of each run, and the mean and spread of each row."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.report.style import BLUE, DPI, FAINT, ORANGE, figure, short_names

_SPLITS = (("val", BLUE, -0.14), ("test", ORANGE, 0.14))  # colour, and offset from the middle of the row
_NAME = 44  # characters
_HEAD, _ROW = 1.3, 0.42  # inches
_MOST_PIXELS = 2**16 - 1  # of a side, for the renderer


@dataclass(frozen=True)
class Compared:
    """One row.

    Attributes:
        name: label of the row.
        val, test: accuracy of each of its runs, fractions; empty if unknown.
        beside: text at its right.
    """

    name: str
    val: Sequence[float]
    test: Sequence[float]
    beside: str = ""


def draw_comparison(title: str, rows: Sequence[Compared], path: Path, test: str = "test") -> Path:
    """Write the picture to ``path`` and return it.

    Dots are runs, rings the means of rows, and bars their sample standard deviations; ``test`` names the final
    evaluations in the legend.

    Raises:
        UserError: there are more rows than a picture has room for.
    """
    names = short_names([row.name for row in rows], _NAME)
    side = _HEAD + _ROW * len(rows)
    if side * DPI > _MOST_PIXELS:
        most = int((_MOST_PIXELS / DPI - _HEAD) / _ROW)
        raise UserError(f"{path} has room for {most:,} rows, and the table has {len(rows):,}; use --csv instead")
    about = f"{title}: {', '.join(row.name for row in rows)}"
    with figure(path, 5.5 + 0.075 * max(map(len, names), default=0), side, title=about) as drawing:
        axes = drawing.subplots()
        axes.set_title(title)
        for split, colour, shift in _SPLITS:
            label: str | None = test if split == "test" else split
            for place, row in enumerate(rows):
                values = [100 * value for value in (row.val if split == "val" else row.test)]
                if not values:
                    continue
                mean, height = statistics.fmean(values), [place + shift]
                if len(values) > 1:
                    deviation = statistics.stdev(values)
                    axes.plot([mean - deviation, mean + deviation], height * 2, color=colour, alpha=0.45, linewidth=5)
                axes.plot(values, height * len(values), ".", color=colour, markersize=6, alpha=0.8)
                axes.plot([mean], height, "o", color=colour, fillstyle="none", markersize=9, label=label)
                label = None
        for place, row in enumerate(rows):
            known = bool(row.val or row.test)
            text = row.beside if known else "not measured"
            axes.text(1.01, place, text, transform=axes.get_yaxis_transform(), va="center", color=FAINT, fontsize=8.5)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("accuracy, %")
        axes.grid(True, axis="x")
        if any(row.val or row.test for row in rows):
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
        else:
            axes.set_xlim(0, 100)
    return path
