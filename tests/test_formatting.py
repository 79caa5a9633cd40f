"""Figures for people: durations, sizes, percentages."""

from __future__ import annotations

import math

import pytest

from cifar_dist.formatting import clock, duration, loss_figure, percent, percent_cell, size


def test_numbers_are_formatted_for_readers() -> None:
    losses = [0.47849, 999.99994, 999.99996, 9998.9, 99_999.9, 99_999.96, 9614646837248.0]
    assert [loss_figure(loss) for loss in losses] == [
        *("0.4785", "999.9999", "1000.0", "9998.9", "99999.9", "1e+05", "9.61e+12")
    ]
    assert (percent_cell(0.91084), percent_cell(None)) == ("91.08", "")
    assert (percent(0.91084), percent(0.91084, 0)) == ("91.08 %", "91 %")
    assert [size(n) for n in (0, 999, 1000, 99_499, 99_500, 999_499, 999_500, 1.2e9, 5e12)] == [
        *("0 B", "999 B", "1 kB", "99.5 kB", "100 kB", "999 kB", "1 MB", "1.2 GB", "5 TB")
    ]
    assert [duration(seconds) for seconds in (0.34, 9.96, 41, 59.4, 59.7, 738, 3596.9, 3597.1, 9000)] == [
        "0.3 s",
        "10 s",
        "41 s",
        "59 s",
        "1.0 min",
        "12.3 min",
        "59.9 min",
        "1.0 h",
        "2.5 h",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (90061, "1d 1:01:01"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_a_clock_shows_hours_and_days_once_there_are_any(seconds: float, text: str) -> None:
    assert clock(seconds) == text
