"""How long a network takes to answer as it is, traced, scripted, and compiled; against torch's eager mode.

    python benchmarks/inference.py [MODEL]

MODEL is a registered name or ``torchvision:NAME``, by default resnet34. Batches of 1 and 64 random 32x32 images in
float32, on the GPU where there is one. ``cifar-dist speed RUN`` does the same for a trained run.
"""

from __future__ import annotations

import sys

import torch

from cifar_dist.evaluation.speed import make_forms, time_forms
from cifar_dist.models import build

BATCHES = (1, 64)
PASSES = 10


def main(name: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build(name, classes=10, options={}).to(device).eval()
    print(f"{name} on {device}, {torch.get_num_threads()} threads")
    for batch in BATCHES:
        images = torch.randn(batch, 3, 32, 32, device=device)
        forms, _ = make_forms(model, images)
        timings = time_forms({**forms, "compiled": torch.compile(model)}, images, PASSES)
        for form, timing in timings.items():
            ratio = timings["base"].p50 / timing.p50
            print(f"batch {batch:3}  {form:9} {1000 * timing.p50:8.2f} ms  {ratio:5.2f} times eager")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["resnet34"]))
