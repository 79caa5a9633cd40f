"""Networks by name: ``build(name, classes=..., channels=..., options=...)``. They know nothing of training."""

from cifar_dist.models.registry import DataInitialized, build, check_fits, names, register

__all__ = ["DataInitialized", "build", "check_fits", "names", "register"]
