"""Draw where the time of each epoch went."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from cifar_dist.formatting import rounded_percent
from cifar_dist.report.style import Picture, figure
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.usage import Phase, Usage, total

# Waiting is warm, computing is blue and green: Paul Tol's "bright" and "vibrant" schemes, and shades of them.
_COLOURS: Final[dict[Phase, str]] = {
    "data": "#CC3311",
    "copy": "#EE7733",
    "communication": "#CCBB44",
    "augmentation": "#66CCEE",
    "forward": "#7FA9CF",
    "backward": "#2F5D8A",
    "optimizer": "#228833",
    "evaluation": "#AA3377",
    "checkpoint": "#D6A5C4",
    "rest": "#B4B9C0",
}
_MOST_BARS: Final = 60


def draw_usage(records: Sequence[Record], path: Path) -> tuple[Usage, Picture] | None:
    """Draw a bar for each epoch, split into the phases of training; the legend has the shares of the run.

    Args:
        records: of ``metrics.jsonl``.
        path: of the picture.

    Returns:
        The usage of all epochs, and the picture; None where none was recorded.
    """
    found = [(record.epoch, record.usage) for record in records if record.usage is not None]
    run = total(usage for _, usage in found)
    if run is None:
        return None
    group = -(-len({epoch for epoch, _ in found}) // _MOST_BARS)  # epochs to a bar
    in_bars: defaultdict[int, list[Usage]] = defaultdict(list)
    for epoch, used in found:
        in_bars[epoch // group].append(used)
    bars = {number: total(usages) for number, usages in in_bars.items()}
    x = np.array([(number + 0.5) * group + 0.5 for number in bars])
    epochs = Counter(epoch // group for epoch in {epoch for epoch, _ in found})  # the last bar may have fewer
    seconds = np.array([usage.seconds / epochs[bar] if usage else 0.0 for bar, usage in bars.items()])
    below = np.zeros(len(bars))
    with figure(path, 8, 4.2) as drawing:
        axes = drawing.subplots()
        axes.set_title("Time")
        for phase, colour in _COLOURS.items():
            if not (share := run.shares.get(phase)):
                continue
            height = seconds * [usage.shares.get(phase, 0.0) if usage else 0.0 for usage in bars.values()]
            axes.bar(x, height, 0.8 * group, below, color=colour, label=f"{phase} {rounded_percent(share)}")
            below += height
        axes.set_xlabel("epoch")
        axes.set_ylabel("seconds per epoch")
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)  # there are no halves of a single bar
        axes.grid(axis="x", visible=False)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.02))
    return run, Picture(path, f"Time of each epoch, in all: {run.shares_in_words()}")
