"""The weights of a network as one process holds them: all of them, or its shards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class HeldWeights:
    """The floating-point weights and buffers of a network by name, in a fixed order, all held by this process.

    The integer batch counters are left out.

    Args:
        module: the unwrapped network, on its device.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def tensors(self) -> dict[str, Tensor]:
        """What this process holds of each, without gradients; a change in place changes the network."""
        return {name: value.detach() for name, value in self._state().items()}

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each full tensor."""
        return {name: value.shape for name, value in self._state().items()}

    def take(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy what this process holds of ``full`` tensors, which have these names and shapes, to its device."""
        return {name: torch.empty_like(value).copy_(full[name]) for name, value in self.tensors().items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Give the network ``values``, as :meth:`tensors` has them."""
        held = self.tensors()
        torch._foreach_copy_([held[name] for name in values], list(values.values()))

    def _state(self) -> dict[str, Tensor]:
        state = self._module.state_dict(keep_vars=True)
        return {name: value for name, value in state.items() if value.is_floating_point()}
