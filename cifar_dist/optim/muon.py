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
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from cifar_dist.optim.newton_schulz import EPS, PaddedBatches, orthogonalize


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
        batched: orthogonalize the matrices together, in few launches; None: on a GPU. A CPU has no launches to save,
            and would compute the padding.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        rest: Optimizer,
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        normalize: bool,
        iterations: int,
        batched: bool | None = None,
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
        self._rest, self._batched = rest, batched
        self._layouts: dict[tuple[tuple[int, int], ...], PaddedBatches] = {}

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
                self._step_matrices(group)
        # Both optimizers share our state and groups, reassigned at every step because loading a state replaces them.
        self._rest.state = self.state
        self._rest.param_groups = [group for group in self.param_groups if not group["muon"]]
        if isinstance(self._rest, SGD):  # not AdamW, whose step counts must be on the device
            for group in self._rest.param_groups:
                group["fused"] = group["params"][0].device.type != "cpu"
        self._rest.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        weights = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not weights:
            return
        momentum, lr = group["momentum"], group["lr"]
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        gradients = [weight.grad for weight in weights]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
        on_gpu = weights[0].device.type != "cpu"
        if on_gpu if self._batched is None else self._batched:
            self._move_together(weights, updates, group)
            return
        if group["normalize"]:
            for weight in weights:
                weight.mul_(math.sqrt(len(weight)) / weight.norm().clamp(min=EPS))
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        for weight, update in zip(weights, updates, strict=True):
            matrix = update.reshape(len(update), -1)
            scale = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
            weight.add_(orthogonalize(matrix, group["iterations"]).view(weight.shape), alpha=-lr * scale)

    def _move_together(self, weights: list[Tensor], updates: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Change the weights in launches that hardly depend on their number: the matrices are one vector, and batched.

        The columns of a matrix are in the order of memory, for NS(X P) = NS(X) P where P permutes columns.
        """
        shapes = tuple((len(weight), weight[0].numel()) for weight in weights)
        if shapes not in self._layouts:
            self._layouts[shapes] = PaddedBatches(shapes, weights[0].device)
        layout = self._layouts[shapes]
        if group["normalize"]:
            factors = layout.root_of_rows / torch.stack(torch._foreach_norm(weights)).clamp_(min=EPS)
            torch._foreach_mul_(weights, _shaped(factors.index_select(0, layout.owner), weights))
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        vector = torch.cat([*map(_in_memory_order, updates, weights), layout.zero])
        result = layout.orthogonalize(vector, group["iterations"])
        torch._foreach_add_(weights, _shaped(result, weights), alpha=-group["lr"])


def _shaped(vector: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return views of ``vector`` in the shapes and memory formats of ``weights``."""
    parts = vector.split_with_sizes([weight.numel() for weight in weights])
    return [part.as_strided(w.shape, w.stride(), part.storage_offset()) for part, w in zip(parts, weights, strict=True)]


def _in_memory_order(update: Tensor, weight: Tensor) -> Tensor:
    """Return the numbers of ``update`` in the order in which those of ``weight`` are in memory: a view, usually."""
    order = sorted(range(weight.ndim), key=weight.stride, reverse=True)
    assert order[0] == 0 or weight.shape[order[0]] == 1, "a matrix's rows are the outermost dimension"
    return update.permute(order).reshape(-1)


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """Return the trainable weights of all convolutions and linear layers except the first and the last.

    First and last refer to the order in which the model registers them.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)]
    return [layer.weight for layer in layers[1:-1] if layer.weight.requires_grad]
