"""How weights follow gradients: the optimizer, and the learning rate as a function of the step."""

from cifar_dist.optim.optimizers import build_optimizer
from cifar_dist.optim.schedules import learning_rate

__all__ = ["build_optimizer", "learning_rate"]
