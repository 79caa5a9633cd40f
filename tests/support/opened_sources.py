"""Sources as pack opens them, without a progress bar."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from cifar_dist.data.raw import RawDataset
from cifar_dist.data.sources import open_source
from cifar_dist.errors import UserError

open_quietly = functools.partial(open_source, show=False)


def one_line(source: str | Path, size: int | None = None) -> str:
    """Return the message with which a source is refused; assert that it is one line."""
    with pytest.raises(UserError) as error:
        open_quietly(str(source), size)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(a: RawDataset, b: RawDataset) -> bool:
    """Whether two datasets have the same kind, classes, splits, images, labels and ids."""
    return (a.kind, a.classes, list(a.splits)) == (b.kind, b.classes, list(b.splits)) and all(
        np.array_equal(x.images, y.images) and np.array_equal(x.labels, y.labels) and np.array_equal(x.ids, y.ids)
        for x, y in zip(a.splits.values(), b.splits.values(), strict=True)
    )
