"""Settings of a run that the launcher or DeepSpeed's file names, and that only the recipe decides."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cifar_dist.config import Config
from cifar_dist.errors import UserError
from cifar_dist.launch.launched import was_asked_for

_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
_NO_REQUEST = ("", "no", "none", "auto", "0", "0.0", "1")  # of precision, compilation, clipping and accumulation
_WITHOUT_EFFECT = {
    "FSDP_OFFLOAD_PARAMS": ("true", "fsdp_offload_params", "launch/zero2-offload.yaml offloads the optimizer"),
    "FSDP_RESHARD_AFTER_FORWARD": ("false", "fsdp_reshard_after_forward", "launch/zero2.yaml keeps full weights"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("true", "fsdp_activation_checkpointing", "--train.accumulate saves memory"),
}
"""What FSDP is not asked here: the variable of Accelerate, the refused value, its name in a config, a remedy."""


@dataclass(frozen=True)
class _Request:
    """A setting that was asked for outside the recipe.

    Attributes:
        name: as its source calls it.
        value: what was asked for.
        setting: ours, as one types it.
        is_met: whether the run does it anyway.
    """

    name: str
    value: str
    setting: str
    is_met: bool = False


def check_launcher_settings(config: Config, precision: str) -> None:
    """Refuse what was asked of the launcher and would have no effect, because the recipe asks for something else.

    Args:
        config: the run.
        precision: what it computes in: ``no`` for fp32, ``bf16`` or ``fp16``.

    Raises:
        UserError: with the setting to use.
    """
    for request in (*_of_launcher(config, precision), *_of_file(config)):
        if request.value.lower() not in _NO_REQUEST and not request.is_met:
            raise UserError(
                f"{request.name} = {request.value} has no effect, because the recipe decides; remove it and use "
                f"{request.setting}"
            )
    for variable, (value, name, remedy) in _WITHOUT_EFFECT.items():
        if was_asked_for("FSDP") and os.environ.get(variable, "").lower() == value:
            raise UserError(f"{name} = {value} has no effect with FSDP here; remove it ({remedy})")


def _of_launcher(config: Config, precision: str) -> Iterator[_Request]:
    def asked(variable: str) -> str:
        return os.environ.get(f"ACCELERATE_{variable}", "")

    mixed = asked("MIXED_PRECISION")
    yield _Request("mixed_precision", mixed, f"--train.precision {mixed}", mixed == precision)
    backend = asked("DYNAMO_BACKEND").lower()
    compiles = backend == "inductor" and config.train.compile != "no"
    yield _Request("dynamo_backend", backend, "--train.compile", compiles)
    yield _accumulation(config, asked("GRADIENT_ACCUMULATION_STEPS"))
    yield _clipping(config, asked("GRADIENT_CLIPPING"))


def _of_file(config: Config) -> Iterator[_Request]:
    path, found = os.environ.get(_FILE, ""), read_deepspeed_file()
    yield _within(path, _accumulation(config, _value(found, "gradient_accumulation_steps")))
    yield _within(path, _clipping(config, _value(found, "gradient_clipping")))
    size = str(config.train.batch_size)
    for name, setting, same in (
        ("train_batch_size", "--train.batch_size", size),
        ("train_micro_batch_size_per_gpu", "--train.batch_size and --train.accumulate", ""),
        ("optimizer", "--optim.name and --optim.lr", ""),
        ("scheduler", "--schedule.name", ""),
        *((part, "--train.precision", "") for part in ("fp16", "bf16", "amp", "torch_autocast")),
    ):
        value = _value(found, name)
        yield _within(path, _Request(name, value, setting, value == same))


def _accumulation(config: Config, value: str) -> _Request:
    name, setting = "gradient_accumulation_steps", f"--train.accumulate {value}"
    return _Request(name, value, setting, value == str(config.train.accumulate))


def _clipping(config: Config, value: str) -> _Request:
    same = value.replace(".", "", 1).isdecimal() and float(value) == config.optim.clip_norm
    return _Request("gradient_clipping", value, f"--optim.clip_norm {value}", same)


def _within(path: str, request: _Request) -> _Request:
    return _Request(f"{path}: {request.name}", request.value, request.setting, request.is_met)


def _value(found: Mapping[str, object], name: str) -> str:
    """Return what DeepSpeed's file asks for; empty for nothing: no such key, or one that is not enabled."""
    value = found.get(name, "")
    if isinstance(value, dict):
        return "" if value.get("enabled", True) in (False, "auto") else json.dumps(value)
    return str(value)


def read_deepspeed_file() -> Mapping[str, object]:
    """Return the content of the file that ``deepspeed_config_file`` names; empty without one.

    Raises:
        UserError: it is not a configuration of DeepSpeed.
    """
    path = os.environ.get(_FILE, "none")
    if path in ("none", ""):
        return {}
    remedy = "correct it, or use launch/zero2.yaml, which needs none"
    try:
        with open(path, encoding="utf-8") as file:
            found: object = json.load(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"deepspeed_config_file {path} cannot be read: {reason}; {remedy}") from None
    if not isinstance(found, dict) or not isinstance(found.get("zero_optimization"), dict):
        raise UserError(f"deepspeed_config_file {path} has no object zero_optimization; {remedy}")
    return found
