"""Optimizers, learning-rate schedules and weight averaging."""

from cifar_dist.optim.optimizers import build_optimizer
from cifar_dist.optim.schedules import learning_rate

__all__ = ["build_optimizer", "learning_rate"]
