"""Build networks by name: ``build(name, classes=..., channels=..., options=...)``. Nothing here depends on training."""

from cifar_dist.models.registry import build, build_for, check_fits, try_build

__all__ = ["build", "build_for", "check_fits", "try_build"]
