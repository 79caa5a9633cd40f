"""How long a network takes to answer as it is, traced, scripted, and compiled; against torch's eager mode.

    python benchmarks/inference.py [MODEL]

MODEL is a registered name or ``torchvision:NAME``, by default resnet34. Batches of 1 and 64 random 32x32 images in
float32, on the GPU where there is one. The forms take turns, so that a machine that slows down does so for all; the
best of ten counts. First their answers are compared.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from cifar_dist.models import build

BATCHES = (1, 64)
TURNS = 10

Answer = Callable[[Tensor], Tensor]


def seconds(answer: Answer, images: Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    answer(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


@torch.no_grad()
def main(name: str) -> None:
    warnings.simplefilter("ignore")  # TorchScript is out of fashion, and that is what is measured
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build(name, classes=10, options={}).to(device).eval()
    example = torch.randn(2, 3, 32, 32, device=device)
    forms: dict[str, Answer] = {
        "eager": model,
        "traced": torch.jit.freeze(torch.jit.trace(model, example)),
        "scripted": torch.jit.freeze(torch.jit.script(model)),
        "compiled": torch.compile(model),
    }
    print(f"{name} on {device}, {torch.get_num_threads()} threads")
    for batch in BATCHES:
        images = torch.randn(batch, 3, 32, 32, device=device)
        for answer in forms.values():
            for _ in range(3):  # TorchScript looks at two calls before it optimises; compiling takes one
                torch.testing.assert_close(answer(images), model(images), rtol=1e-3, atol=1e-3)
        best = dict.fromkeys(forms, float("inf"))
        for _ in range(TURNS):
            for form, answer in forms.items():
                best[form] = min(best[form], seconds(answer, images))
        for form, value in best.items():
            print(f"batch {batch:3}  {form:9} {1000 * value:8.2f} ms  {best['eager'] / value:5.2f} times eager")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["resnet34"]))
