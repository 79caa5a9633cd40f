"""The style of all pictures: light axes, a palette that colour-blind readers can distinguish, titles at the left.

Pictures are drawn on ``matplotlib.figure.Figure`` objects, which render with Agg: no pyplot, no display, no global
state. Text is never parsed as mathematics, because class and run names may contain anything.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cifar_dist.errors import printable
from cifar_dist.files.outputs import write_output
from cifar_dist.tables import beginning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

# Paul Tol's "bright" and "vibrant" schemes (https://sronpersonalpages.nl/~pault/).
BLUE = "#4477AA"
ORANGE = "#EE7733"
ORANGE_TEXT = "#B8520E"
"""Of letters beside what is :data:`ORANGE`, whose contrast with paper is 2.9; text requires 4.5."""
GREEN = "#228833"
RED = "#CC3311"
PURPLE = "#AA3377"
GREY = "#8A8F98"
INK = "#24292F"
FAINT = "#57606A"
PAPER = "#FFFFFF"
GRID = "#E4E7EB"

DPI = 150
PERCENT: Final = "{x:g} %"
"""Format of ticks in percent: an axis may span less than a point, where ticks without decimals would be wrong."""

DOTS: Final = (0, (2, 2))
"""Line style of a mark that is not a curve, as an interruption or the mean."""
MARKABLE: Final = 60
"""Points of a line up to which each has a marker: with more, the markers would hide it."""

# For names in scripts that matplotlib's own font lacks, in the order in which they are tried.
_OTHER_SCRIPTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "Malgun Gothic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali"),
)

_STYLE: dict[RcKeyType, object] = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.facecolor": PAPER,
    "axes.edgecolor": "#C3C8CF",
    "axes.labelcolor": FAINT,
    "axes.labelsize": 9.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": True,  # on paper, so that it can be read above lines
    "legend.framealpha": 0.75,
    "legend.edgecolor": "none",
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "cifar-dist",  # else the names in the file are random
}

FORMATS: Final[Mapping[str, dict[str, str | None]]] = {
    ".png": {"Software": "cifar-dist"},
    ".svg": {"Creator": "cifar-dist", "Date": None},
    ".pdf": {"Creator": "cifar-dist", "CreationDate": None},
}
"""Formats of pictures by suffix, and what each file says of its origin: not the time, for the same bytes each time."""


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn.

    Attributes:
        path: of its file.
        text: what it shows, with its main numbers, for readers who cannot see it.
    """

    path: Path
    text: str


@contextmanager
def figure(
    path: Path, width: float, height: float, layout: Literal["constrained"] | None = "constrained", title: str = ""
) -> Iterator[Figure]:
    """Yield a figure, sized in inches; write it to ``path``, atomically, if the block does not raise.

    Args:
        path: its suffix decides the format, see :data:`FORMATS`; without one it is PNG.
        width, height: in inches.
        layout: how axes and texts get their room; None: who draws them places them.
        title: what the file says that it shows, for programs that search or read aloud: its letters are lines.
    """
    import logging
    import warnings

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A name in a script that no installed font has shows as boxes; do not fill the console with warnings about it.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    style = {**_STYLE, "font.family": _font_families()}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawing = Figure(figsize=(width, height), dpi=DPI, layout=layout)
        FigureCanvasAgg(drawing)  # with it one renderer measures all texts; otherwise each text creates its own
        yield drawing
        content, suffix = io.BytesIO(), path.suffix.lower() or ".png"
        about = {"Title": printable(title)} if title else {}
        drawing.savefig(content, format=suffix[1:], metadata={**FORMATS[suffix], **about})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_output(path, content.getvalue())


@functools.cache
def _font_families() -> list[str]:
    """matplotlib's own font, and those for other scripts that are installed: a missing one costs a search per text."""
    from matplotlib.font_manager import get_font_names

    return ["DejaVu Sans", *sorted({*_OTHER_SCRIPTS} & {*get_font_names()}, key=_OTHER_SCRIPTS.index)]


def bare(axes: Axes) -> None:
    """Remove ticks and grid from axes, for an image."""
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])


def short_names(names: Sequence[str], length: int) -> list[str]:
    """Shorten names so that they remain different.

    Those that begin alike are shortened in the middle; those that end alike too get their number as their end.
    """
    lines = [_line(name) for name in names]
    tail = (length - 1) // 2
    ends = [beginning(line[::-1], tail)[::-1] for line in lines]
    found = [short(line, length) for line in lines]
    for beside in (ends, list(map(str, range(len(lines))))):
        count = Counter(found)
        found = [
            f"{beginning(line, length - 1 - max(tail, len(end)))}…{end}" if one != line and count[one] > 1 else one
            for line, one, end in zip(lines, found, beside, strict=True)
        ]
    return found


def short(text: str, length: int) -> str:
    """Shorten a name to one line of at most ``length`` columns; a letter of Chinese, Japanese or Korean takes two."""
    line = _line(text)
    return line if beginning(line, length) == line else beginning(line, length - 1) + "…"


def _line(text: str) -> str:
    """Return a text as one line, without the joiners of letters and emoji: no font of a picture joins them."""
    return " ".join(printable(text.replace("\u200c", "").replace("\u200d", "")).split())
