"""How long a network takes to answer as it is, traced, scripted, and compiled; against torch's eager mode.

    python benchmarks/inference.py [MODEL]

MODEL is a registered name or ``torchvision:NAME``, by default resnet34. Batches of 1 and 64 random 32x32 images in
float32, on the GPU where there is one. ``cifar-dist speed RUN`` does the same for a trained run.
"""

from __future__ import annotations

import sys

import torch
from comparison import Comparison, record

from cifar_dist.config import TrainConfig
from cifar_dist.distributed.arithmetic import set_arithmetic
from cifar_dist.evaluation.speed import make_forms, time_forms
from cifar_dist.models import build

BATCHES = (1, 64)
PASSES = 10


def main(name: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_arithmetic(TrainConfig())  # by default torch computes fp32 convolutions in TF32
    torch.manual_seed(0)
    model = build(name, classes=10, options={}).to(device).eval()
    comparisons = []
    for batch in BATCHES:
        images = torch.randn(batch, 3, 32, 32, device=device)
        forms, _ = make_forms(model, images)
        timings = time_forms({**forms, "compiled": torch.compile(model)}, images, PASSES)
        for form, timing in timings.items():
            if form != "base":
                what = f"{name}, {form}, {batch} images"
                comparisons.append(Comparison(what, "torch's eager mode", "s", [timing.p50], [timings["base"].p50]))
    record(__file__, comparisons, "medians of ten passes that took turns")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["resnet34"]))
