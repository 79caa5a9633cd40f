"""Optimizer state as full tensors by parameter name: ``momentum_buffer/conv1.weight``, on the CPU.

Nothing in it depends on how the state was sharded, so a run may resume on another number of processes or with another
engine. With FSDP every rank holds a shard of each tensor, with DeepSpeed's ZeRO-1 and 2 a flat shard of each parameter
group. Collecting the full tensors from these shards, and splitting them again, is collective.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cifar_dist.distributed.host_copies import Deal, copy_to_host
from cifar_dist.distributed.sharded_tensor import fill_partition, full_shape, shard_like
from cifar_dist.errors import UserError

Parameters = Mapping[str, nn.Parameter]
"""The trainable parameters, by name."""

_NO_STATE = frozenset({"params", "lr", "lr_scale", "fused"})
"""Keys of a parameter group that this program sets while it trains, from the config, the step and the device."""


def by_parameter(state: Mapping[str, Tensor], parameters: Parameters) -> dict[str, dict[str, Tensor]]:
    """``KEY/PARAMETER`` entries as parameter -> key -> tensor.

    Raises:
        UserError: an entry belongs to another model.
    """
    found: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for entry, value in state.items():
        key, _, name = entry.partition("/")
        if name not in found or (value.ndim and value.shape != full_shape(parameters[name])):
            raise UserError(f"the checkpoint's optimizer state '{entry}' fits no parameter of this model")
        found[name][key] = value
    return found


# ---- torch's own optimizers: full tensors, or shards where the parameters are sharded -----------------------------


def collect(optimizer: torch.optim.Optimizer, parameters: Parameters, deal: Deal | None = None) -> dict[str, Tensor]:
    """Collect the full state, or what ``deal`` leaves to this process. Collective where the parameters are sharded."""
    tensors = (
        (f"{key}/{name}", value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    )
    return copy_to_host(tensors, deal)


def group_values(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return what an optimizer holds by parameter group, as text: what :func:`require_savable` compares.

    A value that is a tensor on a GPU makes this wait for it.
    """
    return [
        {
            key: repr(value.tolist() if isinstance(value, Tensor) else value)
            for key, value in group.items()
            if key not in _NO_STATE
        }
        for group in groups
    ]


def require_savable(
    optimizer: torch.optim.Optimizer, updated: Mapping[str, Tensor], before: Sequence[Mapping[str, str]]
) -> None:
    """Refuse an optimizer, which may be a plug-in, whose state a checkpoint could not hold.

    Args:
        optimizer: after a step.
        updated: the tensors that it updates, by a name for the reader.
        before: the :func:`group_values` of its groups before that step.

    Raises:
        UserError: it keeps something else than tensors of no dimensions, or of the shape of what they belong to, or
            has changed a parameter group.
    """
    for old, new in zip(before, group_values(optimizer.param_groups), strict=True):
        if changed := next((key for key in new if new[key] != old.get(key)), None):
            raise UserError(
                f"{type(optimizer).__name__} keeps '{changed}' in a parameter group, after a step {new[changed]:.40}: "
                "such a run could not be resumed; keep it as a tensor of no dimensions in the state of each parameter, "
                "or use another optimizer"
            )
    for name, tensor in updated.items():
        for key, value in optimizer.state.get(tensor, {}).items():
            if not isinstance(value, Tensor):
                what = f"{value!r:.40}, which is not a tensor,"
            elif value.ndim and value.shape != tensor.shape:
                what = f"a tensor of {list(value.shape)}"
            else:
                continue
            raise UserError(
                f"{type(optimizer).__name__} keeps {what} as '{key}' of {name}: such a run could not be resumed; keep "
                f"tensors of no dimensions, or of that shape: {list(tensor.shape)}"
            )


def restore(
    optimizer: torch.optim.Optimizer, parameters: Parameters, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Load ``state``, as :func:`by_parameter` returns it."""
    # Adam counts its steps on the CPU, unless its group says otherwise; everything else lives with the parameter.
    counts = [group for group in optimizer.param_groups if group.get("fused") or group.get("capturable")]
    on_device = {id(parameter) for group in counts for parameter in group["params"]}
    for name, parameter in parameters.items():
        place = parameter.device if id(parameter) in on_device else torch.device("cpu")
        optimizer.state[parameter] = {
            key: value.to(place, copy=True) if value.ndim == 0 else shard_like(value, parameter)
            for key, value in state[name].items()
        }


# ---- DeepSpeed's: each rank has a flat shard of each group --------------------------------------------------------
# ``zero`` is its optimizer, which has no types: of ZeRO-1 and 2, or of ZeRO-3, where weights are partitioned too.


def collect_zero(zero: Any, parameters: Parameters, deal: Deal | None = None) -> dict[str, Tensor]:
    """Collect the full state from the shards of all ranks, or what ``deal`` leaves to this process. Collective."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if not _partitions_weights(zero):
        _link(zero)
    tensors = (
        (f"{key}/{name}", shard if shard.ndim == 0 else safe_get_full_optimizer_state(parameters[name], key))
        for group, flat in _groups(zero)
        for name in _names(group, parameters)
        for key, shard in zero.optimizer.state[flat].items()
        if isinstance(shard, Tensor)
    )
    return copy_to_host(tensors, deal)


def require_savable_zero(zero: Any, before: Sequence[Mapping[str, str]]) -> None:
    """:func:`require_savable` for what it shards."""
    require_savable(zero.optimizer, {f"group {number}": flat for number, (_, flat) in enumerate(_groups(zero))}, before)


def restore_zero(zero: Any, parameters: Parameters, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load on each rank its shard of ``state``, as :func:`by_parameter` returns it."""
    for group, flat in _groups(zero):
        example = state[_names(group, parameters)[0]]
        zero.optimizer.state[flat] = {
            key: value.clone() if value.ndim == 0 else torch.zeros_like(flat) for key, value in example.items()
        }
    if not _partitions_weights(zero):
        _link(zero)
    set_state = _set_partition if _partitions_weights(zero) else _set_fragment
    for name, parameter in parameters.items():
        for key, value in state[name].items():
            if value.ndim:
                set_state(zero, parameter, value, key)


def _partitions_weights(zero: Any) -> bool:
    """Whether it is the optimizer of ZeRO-3."""
    return hasattr(zero, "fp32_partitioned_groups_flat")


def _set_fragment(_zero: Any, parameter: nn.Parameter, value: Tensor, key: str) -> None:
    """Copy this rank's part of a parameter's state, of ZeRO-1 and 2."""
    from deepspeed.utils import safe_set_full_optimizer_state

    safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)


def _set_partition(zero: Any, parameter: nn.Parameter, value: Tensor, key: str) -> None:
    """Copy this rank's part of a parameter's state, of ZeRO-3.

    DeepSpeed's own function fails where the ranks do not divide a parameter: it forgets the padding of the last one.
    """
    partition, _ = zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
    fill_partition(partition, value, like=parameter)


def _groups(zero: Any) -> list[tuple[list[nn.Parameter], Tensor]]:
    """The members of each parameter group, and this rank's flat shard of them."""
    if _partitions_weights(zero):
        return list(zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True))
    return list(zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True))


def _names(group: list[nn.Parameter], parameters: Parameters) -> list[str]:
    members = {id(parameter) for parameter in group}
    return [name for name, parameter in parameters.items() if id(parameter) in members]


def _link(zero: Any) -> None:
    """Point every parameter at its slice of the flat state.

    DeepSpeed does it once, after the first update of the first group: too late for a resume, and too early for the
    other groups, which have no state yet.
    """
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()
