"""A sheet of images with captions, placed in inches on one axes: an axes for each image takes most of the time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cifar_dist.errors import printable
from cifar_dist.report.style import DPI, INK, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = 1.25 / 72  # inches that a line of text takes, for each point of its size
HEAD = 0.42  # inches that a title takes
_TITLE_SIZE = 12
_FRAME = 2  # points


@dataclass(frozen=True)
class Grid:
    """Cells of one size, row by row below the title of a sheet.

    Attributes:
        columns: number of cells in a row.
        width, height: of a cell, in inches.
    """

    columns: int
    width: float
    height: float

    def size(self, count: int) -> tuple[float, float]:
        """Return the width and the height of a sheet of ``count`` cells, in inches."""
        return self.width * self.columns, HEAD + self.height * -(-count // self.columns)

    def corners(self, count: int) -> Iterator[tuple[float, float]]:
        """Yield the left and the top edge of each of ``count`` cells, in inches."""
        for place in range(count):
            row, column = divmod(place, self.columns)
            yield self.width * column, HEAD + self.height * row


class Sheet:
    """Places what it draws by inches from the left and the top edge.

    Args:
        axes: which it fills.
        width, height: in inches.
    """

    def __init__(self, axes: Axes, width: float, height: float) -> None:
        axes.axis("off")
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_autoscale_on(False)
        self._axes = axes

    def image(
        self, left: float, top: float, side: float, pixels: NDArray[np.uint8] | NDArray[np.float32], frame: str = ""
    ) -> None:
        """Draw an image, each pixel as a square, in the middle of a square.

        Args:
            left, top, side: of the square.
            pixels: [height, width, channels], uint8 or float32 in [0, 1]. With 3 or 4 channels it is in colour,
                otherwise its first channel is in gray.
            frame: the colour of a frame around the image; empty for no frame.
        """
        from matplotlib.patches import Rectangle

        rows, columns = pixels.shape[:2]
        width, height = (side * extent / max(rows, columns) for extent in (columns, rows))
        left, top = left + (side - width) / 2, top + (side - height) / 2
        shown = pixels if pixels.shape[2] in (3, 4) else pixels[:, :, 0]
        self._axes.imshow(
            shown,
            cmap="gray",
            vmin=0,
            vmax=1 if pixels.dtype.kind == "f" else 255,
            interpolation="nearest",
            extent=(left, left + width, top + height, top),
            aspect="auto",
        )
        if frame:
            box = Rectangle((left, top), width, height, fill=False, edgecolor=frame, linewidth=_FRAME)
            self._axes.add_patch(box)

    def bar(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        """Draw a filled rectangle."""
        from matplotlib.patches import Rectangle

        self._axes.add_patch(Rectangle((left, top), width, height, facecolor=colour, linewidth=0))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        *,
        colour: str = INK,
        bold: bool = False,
        align: Literal["left", "center", "right"] = "left",
        above: bool = False,
        room: float = math.inf,
    ) -> None:
        """Write lines of text below ``y``, or above it.

        Args:
            x, y: where ``align`` says what x is of each line.
            size: in points; a line takes :data:`LINE` for each.
            room: inches that the longest line may take; it is written smaller if it would take more.
        """
        written = self._axes.text(
            x,
            y,
            text,
            fontsize=size,
            color=colour,
            fontweight="bold" if bold else "normal",
            ha=align,
            va="bottom" if above else "top",
        )
        taken = written.get_window_extent().width / DPI if room < math.inf else 0
        if taken > room:
            written.set_fontsize(size * room / taken)

    def title(self, text: str) -> None:
        """Write the title, at the top left."""
        self.text(0.12, 0.1, printable(text), _TITLE_SIZE, bold=True)


@contextmanager
def sheet(path: Path, width: float, height: float) -> Iterator[Sheet]:
    """Yield an empty sheet, sized in inches; write it to ``path``, see :func:`figure`."""
    with figure(path, width, height, layout=None) as drawing:
        yield Sheet(drawing.add_axes((0, 0, 1, 1)), width, height)
