from __future__ import annotations

from pathlib import Path

import pytest

from cifar_dist.data.manifest import Manifest


@pytest.fixture(scope="session")
def manifest(digits: Path) -> Manifest:
    return Manifest.load(digits)
