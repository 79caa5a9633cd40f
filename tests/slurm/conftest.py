"""Fixtures of the tests on a real cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.slurm_cluster import Cluster, slurm_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster() as cluster:
        yield cluster
