"""Time a network's forward pass in several forms that take turns, so that a slower moment is one for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cifar_dist.distributed.device_time import time_on
from cifar_dist.errors import first_line
from cifar_dist.terminal.progress import Advance

Answer = Callable[[Tensor], Tensor]

_WARM_UP = 5
"""Untimed calls of each form: TorchScript optimises in its second call, and caches fill."""


@dataclass(frozen=True)
class Timing:
    """The times of one form's forward passes, in seconds.

    Attributes:
        mean, p50, p95: over all timed passes.
        difference: largest absolute difference of its outputs from those of the base form.
    """

    mean: float
    p50: float
    p95: float
    difference: float


def make_forms(model: nn.Module, images: Tensor) -> tuple[dict[str, Answer], dict[str, str]]:
    """Build the network as it is (``base``), traced and scripted.

    Args:
        model: in evaluation mode.
        images: an example, on the model's device.

    Returns:
        The forms by name, and for each that this network cannot take the reason.
    """
    forms: dict[str, Answer] = {"base": model}
    failures: dict[str, str] = {}
    makers: dict[str, Callable[[], nn.Module]] = {
        "traced": lambda: torch.jit.trace(model, images),
        "scripted": lambda: torch.jit.script(nn.Sequential(model)),  # freeze drops hooks of the outermost module
    }
    for name, make in makers.items():
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, but it is what is measured
            try:
                forms[name] = torch.jit.freeze(make().eval())
            except Exception as error:  # a compiler raises many kinds
                failures[name] = _reason(error)
                if name == "scripted" and (part := _find_unscriptable(model)):
                    failures[name] = f"TorchScript cannot compile {part}: {failures[name]}"
    return forms, failures


def _find_unscriptable(module: nn.Module, name: str = "") -> str:
    """Return the class of the innermost module that TorchScript cannot compile, with its name; empty if there is none.

    TorchScript compiles inner modules first, so this is the one of which its first error speaks. Later ones may not.

    Args:
        name: of ``module`` in the network.
    """
    try:
        torch.jit.script(module)
    except Exception:
        for child_name, child in module.named_children():
            if inside := _find_unscriptable(child, f"{name}.{child_name}" if name else child_name):
                return inside
        kind = type(module).__name__
        return f"its {name} ({kind})" if name else kind
    return ""


def _reason(error: Exception) -> str:
    """Return the first line that is not a place, which TorchScript's messages may begin with, or introduce."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if line and not line.startswith("File ")), first_line(error))
    return reason.removesuffix(" at").rstrip(":")


@torch.no_grad()
def time_forms(
    forms: Mapping[str, Answer], images: Tensor, passes: int, advance: Advance = lambda count: None
) -> dict[str, Timing]:
    """Time ``passes`` forward passes of each form after a warm-up, one of each in turn.

    Args:
        forms: by name; the first is the base of the comparison.
        images: float32 [n, c, h, w], on the device of the networks.
        passes: of each form, at least 1.
        advance: called after each of these rounds, outside the timing.
    """
    base, *_ = forms.values()
    expected = base(images.clone())  # each pass gets a copy: a network may change its images in place
    differences = {}
    for name, answer in forms.items():
        for _ in range(_WARM_UP):
            output = answer(images.clone())
        differences[name] = float((output - expected).abs().max())
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(passes):
        for name, answer in forms.items():
            times[name].append(time_on(images.device, partial(answer, images.clone())))
        advance(1)
    return {name: _summarize(times[name], differences[name]) for name in forms}


def _summarize(times: list[float], difference: float) -> Timing:
    seconds = torch.tensor(times, dtype=torch.float64)
    p50, p95 = seconds.quantile(torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
    return Timing(float(seconds.mean()), p50, p95, difference)
