"""Fixtures of the tests of charts and reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cifar_dist.report import curves, lr_curve, overlay, run_page, sweep_rows, usage
from cifar_dist.report.style import figure


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test draws."""
    figures: list[Figure] = []

    @contextmanager
    def kept(path: Path, width: float, height: float, *, title: str = "") -> Iterator[Figure]:
        with figure(path, width, height, title=title) as drawing:
            yield drawing
        figures.append(drawing)

    for module in (curves, lr_curve, overlay, sweep_rows, usage):
        monkeypatch.setattr(module, "figure", kept)
    return figures


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without pictures."""
    for name, nothing in (
        ("draw_curves", []),
        ("draw_usage", None),
        ("draw_evaluation", []),
        ("explore_confusions", ""),
    ):
        monkeypatch.setattr(run_page, name, lambda *_, nothing=nothing: nothing)
