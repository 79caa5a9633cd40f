"""Draw a recomputed step: its samples of the highest loss, and the gradient of each layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cifar_dist.report.sheet import HEAD, Grid, Sheet
from cifar_dist.report.style import BLUE, GREEN, RED, figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_SAMPLES = 24
_GRID = Grid(columns=6, width=1.42, height=1.76)  # of the samples; the next are inches
_CAPTION, _IMAGE = 0.34, 1.28
_NORMS, _NAMES = 4.9, 1.9  # the part with the norms, and the names of its layers
_MOST_LAYERS = 40  # more rows would be illegible


def draw_replay(
    path: Path,
    *,
    title: str,
    images: NDArray[np.float32],
    captions: list[str],
    right: list[bool],
    norms: dict[str, float],
) -> Path:
    """Write the picture to ``path`` and return it.

    Args:
        title: of the picture.
        images: float32 [n, h, w, c] in [0, 1], highest loss first; the first 24 are shown.
        captions: of each image.
        right: whether each was predicted right, a mixed one as the class of its larger share.
        norms: L2 norm of the gradient by parameter, in the network's order; may be empty.
    """
    shown = min(_MOST_SAMPLES, len(images))
    layers = _by_layer(norms)
    width, height = _GRID.size(shown)
    height = max(height, 0.2 * len(layers) + 1.4)
    full = width + (_NORMS if layers else 0.0)
    with figure(path, full, height, layout=None) as drawing:
        samples = Sheet(drawing.add_axes((0, 0, width / full, 1)), width, height)
        samples.title(title)
        for place, (left, cell_top) in enumerate(_GRID.corners(shown)):
            middle, top = left + _GRID.width / 2, cell_top + _CAPTION
            samples.text(middle, top - 0.04, captions[place], 8, align="center", above=True, room=_IMAGE)
            samples.image(middle - _IMAGE / 2, top, _IMAGE, images[place], GREEN if right[place] else RED)
        if layers:
            margin = (width + _NAMES, HEAD + 0.3, 0.2, 0.4)  # left, top, right and bottom, in inches
            room = (full - margin[0] - margin[2], height - margin[1] - margin[3])
            place_of_norms = (margin[0] / full, margin[3] / height, room[0] / full, room[1] / height)
            _draw_norms(drawing.add_axes(place_of_norms), layers)
    return path


def _draw_norms(axes: Axes, layers: dict[str, float]) -> None:
    axes.set_title("Gradient norm of each layer", fontsize=10)
    axes.barh(range(len(layers)), list(layers.values()), color=BLUE, height=0.62)
    axes.set_yticks(range(len(layers)), [short(name, 26) for name in layers], fontsize=7.5)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    if min(layers.values()) > 0:
        from matplotlib.ticker import LogLocator

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))  # norms often lie within one decade
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")


def _by_layer(norms: dict[str, float]) -> dict[str, float]:
    """Norms of the layers whose parameters these are; of more layers than fit, those of the largest."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        layer = name.rpartition(".")[0] or name
        squares[layer] = squares.get(layer, 0.0) + norm**2
    largest = sorted(squares, key=lambda layer: -squares[layer])[:_MOST_LAYERS]
    return {layer: squares[layer] ** 0.5 for layer in squares if layer in largest}
