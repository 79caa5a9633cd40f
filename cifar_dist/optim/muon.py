"""Muon: orthogonalized momentum for the hidden layers, with SGD or AdamW for all other parameters in one optimizer.

Keller Jordan et al.: *Muon: An optimizer for hidden layers in neural networks*, 2024,
https://kellerjordan.github.io/posts/muon/. For a weight W seen as a matrix [out, in * k * k], gradient G, momentum mu::

    B <- mu B + (1 - mu) G
    U  = mu B + (1 - mu) G  with Nesterov, else B
    W <- (1 - lr * decay) W - lr * sqrt(max(1, rows / columns)) * NS(U)

NS is five (``iterations``) steps of X <- a X + b (X X^T) X + c (X X^T)^2 X from X = U / ||U||. It brings U = P S Q^T
close to P Q^T: the singular values end in about [0.7, 1.2], which is close enough. torch.optim.Muon is the same for
2-D parameters only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_A, _B, _C = 3.4445, -4.7750, 2.0315  # steepest at zero among those that do not diverge
_EPS = 1e-7


class Muon(Optimizer):
    """Muon for ``matrices``, and the optimizer ``rest`` for its own parameters.

    Every group may have its own learning rate. All state is tensors by parameter: ``momentum_buffer`` for a matrix,
    the state of ``rest`` for the others. Each process computes the full update from the full gradient, so parameters
    must not be sharded (one process, DDP).

    Args:
        matrices: float parameters of at least two dimensions, [out, ...]; see :func:`hidden_weights`.
        rest: torch's SGD or AdamW over all other parameters, with at least one group.
        lr: learning rate of the matrices.
        momentum: in [0, 1).
        weight_decay: decoupled, times the learning rate.
        normalize: scale each matrix to the Frobenius norm sqrt(out) before each step, as airbench94_muon does
            (https://github.com/KellerJordan/cifar10-airbench). For weights whose scale a norm layer cancels.
        iterations: of Newton-Schulz; airbench94_muon uses 3.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        rest: Optimizer,
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        normalize: bool = False,
        iterations: int = 5,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "normalize": normalize,
            "iterations": iterations,
            "muon": True,
        }
        super().__init__([{"params": list(matrices)}], defaults)
        assert all(p.ndim >= 2 for p in self.param_groups[0]["params"]), "Muon needs matrices"
        for group in rest.param_groups:
            self.add_param_group({**group, "muon": False})
        self._rest = rest

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_matrix(parameter, parameter.grad, group)
        # Both optimizers share our state and groups, reassigned at every step because loading a state replaces them.
        self._rest.state = self.state
        self._rest.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._rest.step()
        return loss

    def _step_matrix(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum, lr = self.state[weight], group["momentum"], group["lr"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        update = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        matrix = update.reshape(len(update), -1)
        if group["normalize"]:
            weight.mul_(math.sqrt(len(weight)) / weight.norm().clamp(min=_EPS))
        weight.mul_(1 - lr * group["weight_decay"])
        scale = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
        weight.add_(orthogonalize(matrix, group["iterations"]).view(weight.shape), alpha=-lr * scale)


def orthogonalize(matrix: Tensor, iterations: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Replace the singular values of a float [m, n] matrix by values near 1.

    Args:
        dtype: of the computation and the result. By default bfloat16 on a GPU, as published, and float32 on a CPU,
            where it costs a few percent of a step: with bfloat16, gradients that differ in their last bit produce
            updates that differ by 1e-2, and runs on one and on two processes soon diverge.
    """
    x = matrix.to(dtype or (torch.bfloat16 if matrix.is_cuda else torch.float32))
    tall = x.shape[0] > x.shape[1]
    if tall:  # use the smaller of X X^T and X^T X
        x = x.T
    x = x / x.norm().clamp(min=_EPS)  # no singular value above 1, as the iteration requires to converge
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """Return the trainable weights of all convolutions and linear layers except the first and the last.

    First and last refer to the order in which the model registers them.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)]
    return [layer.weight for layer in layers[1:-1] if layer.weight.requires_grad]
