"""Networks by name: ``build(name, classes=..., channels=..., options=...)``. They know nothing of training."""

from cifar_dist.models.registry import DataInitialized, build, build_for, check_builds, check_fits, names, register

__all__ = ["DataInitialized", "build", "build_for", "check_builds", "check_fits", "names", "register"]
