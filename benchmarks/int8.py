"""What ``train.precision int8`` saves: a network's forward and backward pass, against bfloat16 or float32.

    python benchmarks/int8.py [bf16|fp32]

Random 32x32 images, on one core; the two take turns, one pass each. What is compared is CPU time, which a neighbour
disturbs less than the clock on the wall. Both compute everything but the wide convolutions in the same precision.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from comparison import record, take_turns
from torch import Tensor, nn

from cifar_dist import recipe
from cifar_dist.cpu.conv2d import convolutions_in_int8, replace_convolutions
from cifar_dist.cpu.instructions import has_int8_products
from cifar_dist.cpu.malloc import keep_freed_memory
from cifar_dist.models import build_for

TURNS = 7
IMAGES = {"cpu-quick": 500, "custom-resnet": 128, "se-resnet": 64}
"""Of a pass of each recipe's network."""


def network(name: str) -> nn.Module:
    """Build the network of a recipe as an engine prepares it for a CPU."""
    config = recipe.load(name)
    module = build_for(config.model, shape=(32, 32, 3), classes=10)
    if config.train.channels_last:
        module.to(memory_format=torch.channels_last)
    replace_convolutions(module)
    return module


def seconds(module: nn.Module, images: Tensor, *, bf16: bool, int8: bool) -> float:
    """CPU seconds of a forward and a backward pass."""
    begin = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), convolutions_in_int8(int8):
        loss = F.cross_entropy(module(images).float(), torch.arange(len(images)) % 10)
    loss.backward()
    module.zero_grad()
    return time.process_time() - begin


def main(precision: str) -> None:
    if not has_int8_products():
        print("int8: left out, this CPU has no dot products of 8-bit integers (VNNI, AMX)")
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    bf16, comparisons = precision == "bf16", []
    for name, count in IMAGES.items():
        module, images = network(name), torch.randn(count, 3, 32, 32)
        for int8 in (True, False):
            seconds(module, images, bf16=bf16, int8=int8)
        comparison = take_turns(
            f"a pass of {name} in int8, {count} images, CPU time",
            precision,
            "s",
            partial(seconds, module, images, bf16=bf16, int8=True),
            partial(seconds, module, images, bf16=bf16, int8=False),
            TURNS,
        )
        comparisons.append(comparison)
    record(__file__, comparisons, name="int8" if bf16 else "int8_fp32")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["bf16"]))
