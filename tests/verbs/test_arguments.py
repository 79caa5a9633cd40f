"""Types of arguments."""

from __future__ import annotations

import pytest

from cifar_dist import cli
from cifar_dist.errors import UserError

HUGE = "99999999999999999999999"


@pytest.mark.parametrize(
    "words",
    [
        ["pack", "digits", "out", "--seed", HUGE],
        ["pack", "digits", "out", "--seed", "9" * 5000],
        ["sweep", "table", "mine.toml", "--seeds", HUGE],
        ["sweep", "run", "mine.toml", "--jobs", HUGE],
        ["model", "tiny-cnn", "--batch", HUGE],
    ],
    ids=["seed", "thousands of digits", "seeds", "jobs", "batch"],
)
def test_a_number_that_no_library_takes_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match=f"argument {words[-2]}: '9+' is more than 2147483647; see: cifar-dist "):
        cli.run(words)


def test_a_number_of_views_with_thousands_of_digits_is_refused() -> None:
    with pytest.raises(UserError, match="must be 0, mirror, translate, or a number of random views up to 1024"):
        cli.run(["train", "demo", "--eval.tta", "9" * 5000])
