"""Draw a recomputed step: its samples of the highest loss, and the gradient of each layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cifar_dist.report.style import BLUE, GREEN, INK, RED, figure, short, show_image

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

_COLUMNS, _ROWS = 6, 4
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
        right: whether each was predicted right.
        norms: L2 norm of the gradient by parameter, in the network's order; may be empty.
    """
    shown = min(_COLUMNS * _ROWS, len(images))
    rows = -(-shown // _COLUMNS)
    layers = _by_layer(norms)
    height = max(1.7 * rows + 0.6, 0.2 * len(layers) + 1.4)
    with figure(path, 8.2 + (4.6 if layers else 0.0), height) as drawing:
        drawing.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        columns = 2 if layers else 1
        parts = drawing.subfigures(1, columns, squeeze=False, width_ratios=[8.2, 4.6][:columns])
        _draw_samples(parts[0, 0], images[:shown], captions, right, rows)
        if layers:
            _draw_norms(parts[0, 1], layers)
    return path


def _draw_samples(
    drawing: SubFigure, images: NDArray[np.float32], captions: list[str], right: list[bool], rows: int
) -> None:
    grid = drawing.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat[len(images) :]:
        axes.axis("off")
    for axes, image, caption, is_right in zip(grid.flat, images, captions, right, strict=False):
        show_image(axes, image, frame=GREEN if is_right else RED)
        axes.set_title(caption, fontsize=8, fontweight="normal", color=INK, loc="center", pad=4)


def _draw_norms(drawing: SubFigure, layers: dict[str, float]) -> None:
    axes = drawing.subplots()
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
