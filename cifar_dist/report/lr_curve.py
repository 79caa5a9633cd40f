"""Draw a learning-rate range test: loss over rate, and the suggested rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cifar_dist.errors import UserError
from cifar_dist.optim.lr_curve import Curve
from cifar_dist.report.style import BLUE, DOTS, GREEN, GREY, ORANGE, Picture, figure


def draw_lr_curve(curve: Curve, path: Path) -> Picture:
    """Write the picture to ``path`` and return it."""
    smooth, suggested = curve.smoothed(), list[str]()
    with figure(path, 8, 4.6) as drawing:
        axes = drawing.subplots()
        axes.set_title("Learning-rate range test")
        axes.plot(curve.lrs, curve.losses, color=BLUE, alpha=0.28, linewidth=0.8, label="each step")
        axes.plot(curve.lrs, smooth, color=BLUE, label="smoothed")
        axes.axhline(curve.guessing, color=GREY, linewidth=1, zorder=1, label="guessing")
        for name, suggest, colour, marker in (
            ("valley", curve.valley, GREEN, "D"),
            ("steepest", curve.steepest, ORANGE, "o"),
        ):
            try:
                lr = suggest()
            except UserError:  # draw a curve that never falls, without suggestions
                continue
            axes.axvline(lr, color=colour, linewidth=1, linestyle=DOTS, zorder=1)
            loss = smooth[curve.lrs.index(lr)]
            label = f"{name} {lr:.3g}"
            suggested.append(label)
            axes.plot([lr], [loss], color=colour, marker=marker, markersize=8, linestyle="none", label=label, zorder=5)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_formatter("{x:g}")
        low = min(curve.guessing, *curve.losses)  # which a network that learns nothing may not reach
        high = max(curve.guessing, float(np.median(curve.losses[: max(1, len(smooth) // 4)])))
        margin = 0.1 * max(high - low, 0.05)
        axes.set_ylim(low - margin, high + 3 * margin)  # the rise at the end would flatten the rest
        axes.legend(loc="lower left")
    rates = f"rates from {curve.lrs[0]:.3g} to {curve.lrs[-1]:.3g}"
    return Picture(path, f"Learning-rate range test, {rates}: {', '.join(suggested) or 'the loss does not fall'}")
