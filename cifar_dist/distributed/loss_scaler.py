"""The loss scaler of fp16, with which no step waits for the device.

Torch's reads on the host in each step whether a gradient overflowed, before it updates the weights, unless the
optimizer is a fused one; and its fused SGD keeps an infinite or uninitialised momentum of an overflow in its first
step. Here every optimizer makes its update, and the device takes it back where a gradient overflowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cifar_dist.distributed.checksum import INTEGERS


class LossScaler(torch.amp.GradScaler):
    """A GradScaler with the same updates as torch's, to the bit."""

    @classmethod
    def like(cls, scaler: torch.amp.GradScaler, device: torch.device) -> LossScaler:
        """Return one with the state and options of another."""
        created = cls(device.type)
        created.load_state_dict(scaler.state_dict())
        return created

    def _maybe_opt_step(
        self, optimizer: Optimizer, optimizer_state: dict[str, Any], *args: object, **kwargs: object
    ) -> None:
        (overflows,) = optimizer_state["found_inf_per_device"].values()  # float32, 0 or 1
        before = _Update(optimizer)
        optimizer.step(*args, **kwargs)  # type: ignore[call-overload]
        before.take_back_if(overflows)


def count_steps_on_device(optimizer: Optimizer) -> None:
    """Have torch's optimizers that count their steps on the host, as Adam does, count them on the device.

    A count on the host cannot be taken back by the device. It is the fused form, where there is one.
    """
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["fused" if "fused" in group else "capturable"] = True


class _Update:
    """An update that is going to be made, and may be taken back.

    Args:
        optimizer: whose state is tensors by parameter.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._state = {p: dict(optimizer.state[p]) for p in self._parameters if p in optimizer.state}
        self._changing = self._held()
        self._copies = [torch.empty_like(tensor) for tensor in self._changing.values()]
        torch._foreach_copy_(self._copies, list(self._changing.values()))

    @torch.no_grad()
    def take_back_if(self, overflows: Tensor) -> None:
        """Restore parameters and state where ``overflows`` is 1. The host waits only where it has to.

        It has to for an optimizer that has just created its state, as in a first step, or keeps it on the host.
        """
        held = self._held()
        if held.keys() == self._changing.keys() and all(t.device == overflows.device for t in held.values()):
            keep([*held.values()], self._copies, 1 - overflows)
        elif overflows.item():
            torch._foreach_copy_(list(self._changing.values()), self._copies)
            for parameter in self._parameters:
                self._optimizer.state.pop(parameter, None)
            self._optimizer.state.update(self._state)

    def _held(self) -> Mapping[tuple[Tensor, str], Tensor]:
        """What an update changes, by parameter and key of its state; the key of a parameter itself is empty."""
        found: dict[tuple[Tensor, str], Tensor] = {(p, ""): p.detach() for p in self._parameters}
        for parameter in self._parameters:
            values = self._optimizer.state.get(parameter, {})
            found |= {(parameter, key): value for key, value in values.items() if isinstance(value, Tensor)}
        return found


def keep(tensors: list[Tensor], before: list[Tensor], is_kept: Tensor) -> None:
    """Leave ``tensors`` as they are where ``is_kept`` is 1, and give them the bits of ``before`` where it is 0.

    As integers, which wrap around: 0 times nan is nan. In few launches: torch has no ``where`` of many tensors.

    Args:
        tensors: of any shapes and types, on one device; changed in place.
        before: as many, of the same shapes, types and memory formats.
        is_kept: float32 [], 0 or 1, on the same device.
    """
    bits, bits_before = ([t.view(INTEGERS[t.element_size()]) for t in several] for several in (tensors, before))
    torch._foreach_sub_(bits, bits_before)
    torch._foreach_mul_(bits, is_kept.to(bits[0].dtype))  # of another type, it would be a launch for each tensor
    torch._foreach_add_(bits, bits_before)
