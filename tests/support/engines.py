"""Engines for tests of one process, or of a rank that ends with its process."""

from __future__ import annotations

from contextlib import AbstractContextManager

from cifar_dist.config import Config
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.start import start_engine

_started: list[AbstractContextManager[Engine]] = []  # kept, because one that is collected closes its engine


def engine(config: Config | None = None) -> Engine:
    """Start an engine; the end of the process closes it."""
    _started.append(start_engine(config or Config()))
    return _started[-1].__enter__()
