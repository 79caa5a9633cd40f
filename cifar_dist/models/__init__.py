"""Build networks by name: ``build(name, classes=..., channels=..., options=...)``. Nothing here depends on training."""

from cifar_dist.models.registry import DataInitialized, build, build_for, check_builds, check_fits, names, register

__all__ = ["DataInitialized", "build", "build_for", "check_builds", "check_fits", "names", "register"]
