"""Numbers that a setting cannot have are refused, and those at its bounds are accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from cifar_dist.config.build import build_config
from cifar_dist.errors import UserError

Bounds = tuple[Sequence[object], Sequence[object]]

BETWEEN_0_AND_1 = ([-0.1, 1.1], [0.0, 1.0])
BELOW_1 = ([-0.1, 1.0], [0.0, 0.99])
POSITIVE = ([0.0, -0.1], [1e-9])
ABOVE_0_TO_1 = ([0.0, 1.1], [0.01, 1.0])
AT_LEAST_0 = ([-1], [0])
AT_LEAST_1 = ([0], [1])

# Of a section with some settings: what each setting refuses, and what it accepts.
BOUNDS: list[tuple[str, dict[str, object], Mapping[str, Bounds]]] = [
    ("average", {"name": "ema"}, {"start": AT_LEAST_0, "every": AT_LEAST_1, "recalibrate": AT_LEAST_0}),
    ("average", {"name": "ema"}, {"decay": BELOW_1}),
    ("average", {"name": "lookahead"}, {"ramp": AT_LEAST_0, "decay": BELOW_1}),
    ("checkpoint", {}, {"every": AT_LEAST_1, "every_steps": AT_LEAST_0, "keep": AT_LEAST_1}),
    ("data", {}, {"shuffle_block": AT_LEAST_1, "resident_mb": AT_LEAST_0, "read_ahead": AT_LEAST_1}),
    (
        "eval",
        {"tta": "mirror"},
        {"every": AT_LEAST_1, "batch_size": AT_LEAST_1, "tta_below": ABOVE_0_TO_1},
    ),
    ("eval", {}, {"tta": (["-1", "1025", "flip"], ["0", "1024", "mirror", "translate"])}),
    ("model", {}, {"image_size": ([-1, 1025], [0, 1024]), "unfreeze": AT_LEAST_0}),
    ("optim", {"name": "sgd"}, {"lr": POSITIVE, "weight_decay": AT_LEAST_0, "clip_norm": AT_LEAST_0}),
    (
        "optim",
        {"name": "sgd"},
        {"sam_rho": AT_LEAST_0, "backbone_lr": POSITIVE, "layer_decay": ABOVE_0_TO_1},
    ),
    ("optim", {"name": "sgd", "nesterov": False}, {"momentum": BELOW_1}),
    ("optim", {"name": "sgd"}, {"nesterov": ([], [True])}),
    ("optim", {"name": "adam"}, {"betas": ([[-0.1, 0.9], [0.9, 1.0]], [[0.0, 0.99]]), "eps": AT_LEAST_0}),
    ("optim", {"name": "muon"}, {"momentum": BELOW_1, "iterations": ([0, 21], [1, 20]), "rest_lr": POSITIVE}),
    ("run", {}, {"seed": ([-1, 2**31], [0, 2**31 - 1]), "processes": AT_LEAST_0, "stall_timeout": AT_LEAST_0}),
    ("run", {}, {key: ([0.9], [1]) for key in ("join_timeout", "collective_timeout", "stall_factor")}),
    ("run", {}, {"max_time": (["0s", "soon"], ["", "auto", "1s", "1h30m"])}),
    ("schedule", {"warmup": 1.0}, {"start": BETWEEN_0_AND_1}),
    ("schedule", {"name": "linear"}, {"warmup": AT_LEAST_0, "final": BETWEEN_0_AND_1}),
    ("schedule", {"name": "step"}, {"milestones": ([[0.0], [2.0, 1.0], [1.0, 1.0]], [[0.5], [1.0, 2.0]])}),
    ("schedule", {"name": "step", "milestones": [1.0]}, {"gamma": ABOVE_0_TO_1}),
    ("schedule", {"name": "polynomial"}, {"power": POSITIVE}),
    ("schedule", {"name": "restarts"}, {"cycle": AT_LEAST_0}),
    ("schedule", {"name": "restarts", "cycle": 1.0}, {"growth": ([0.9, 10.1], [1, 10])}),
    ("schedule", {"name": "triangular"}, {"cycle": AT_LEAST_0}),
    ("schedule", {"name": "triangular", "cycle": 1.0}, {"warmup": ([1.1, -1], [0, 1.0])}),
    ("schedule", {"name": "wsd"}, {"decay": AT_LEAST_0}),
    ("tracking", {}, {"every": AT_LEAST_1}),
    ("train", {}, {"epochs": AT_LEAST_1, "max_steps": AT_LEAST_0, "patience": AT_LEAST_0, "profile": AT_LEAST_0}),
    ("train", {"patience": 1}, {"min_delta": AT_LEAST_0}),
    ("train", {}, {"batch_size": AT_LEAST_1, "accumulate": AT_LEAST_1, "label_smoothing": BELOW_1}),
    ("train", {"batch_size": 65536}, {"parts": ([-1, 65537], [0, 65536]), "threads": ([-1, 1025], [0, 1024])}),
]
CASES = [(section, given, key, *values) for section, given, keys in BOUNDS for key, values in keys.items()]


@pytest.mark.parametrize(
    ("section", "given", "key", "refused", "accepted"),
    [pytest.param(*case, id="-".join([f"{case[0]}.{case[2]}", *map(str, case[1].values())])) for case in CASES],
)
def test_a_number_out_of_bounds_is_refused_and_one_at_a_bound_is_not(
    section: str, given: dict[str, object], key: str, refused: Sequence[object], accepted: Sequence[object]
) -> None:
    for value in refused:
        with pytest.raises(UserError, match=rf"^the test: {section}\.{key} .*( must |, is longer)") as caught:
            build_config({section: {**given, key: value}}, where="the test")
        assert "\n" not in str(caught.value)
    for value in accepted:
        assert key in vars(getattr(build_config({section: {**given, key: value}}, where="the test"), section))
