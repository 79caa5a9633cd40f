"""Two processes that shard every network, and one that shards one: ``python fsdp_on_ranks.py OUT``.

test_fsdp.py reads OUT, and ``alone.json`` beside it.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist import models
from cifar_dist.config import OptionValue
from cifar_dist.config.average import LookaheadConfig
from cifar_dist.distributed.engine import Engine
from cifar_dist.models import registry
from cifar_dist.models.transfer import freeze_backbone
from cifar_dist.optim.averaging import WeightAverage
from cifar_dist.optim.held_weights import HeldWeights
from support import forked_ranks
from support.engines import engine

LARGER = {"resnet34", "resnet50", "speed-net-96", "wrn-28-10"}  # than another of their family
NETWORKS = [*sorted({*registry.names()} - LARGER), "timm:resnet10t"]
SMALLER: dict[str, dict[str, OptionValue]] = {  # of the same modules
    "custom-resnet": {"pairs": [1, 0, 0]},
    "resnet18": {"blocks": [1, 1, 1, 1]},
    "se-resnet": {"widths": [32, 32, 32, 32]},
    "small-resnet": {"widths": [16, 32, 64]},
    "speed-net": {"widths": [16, 32, 32]},
    "wrn-16-8": {"width": 1},
}
FROZEN = "tiny-resnet"
SIDE = 16  # what the deepest of them still takes
LR, DECAY = 0.01, 0.1


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = models.build(name, classes=10, options=SMALLER.get(name, {}))
    if name == FROZEN:
        freeze_backbone(module)
    return module


def samples() -> tuple[Tensor, Tensor]:
    """Return samples that are the same on every process, so that batch statistics are those of one process."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, SIDE, SIDE, generator=generator), torch.arange(4)


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    learn = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.SGD(learn, lr=LR, momentum=0.9, weight_decay=DECAY)


def loss_of(model: Callable[[Tensor], Tensor]) -> Tensor:
    torch.manual_seed(2)  # of dropout
    images, labels = samples()
    return F.cross_entropy(model(images).float(), labels)


def lookahead(weights: HeldWeights) -> WeightAverage:
    """One that goes half way."""
    return WeightAverage(weights, LookaheadConfig(every=1, decay=0.5), steps_per_epoch=10, epochs=1)


def by_torch(module: nn.Module) -> Tensor:
    """Compute one update in torch alone and keep half of it; return the logits of the network after it."""
    updater, average = optimizer(module), lookahead(HeldWeights(module))
    loss_of(module).backward()
    updater.step()
    average.update(1)
    module.eval()
    with torch.no_grad():
        logits: Tensor = module(samples()[0])
    return logits


def compare(place: Engine, name: str) -> str:
    """Return the differences from plain torch after one update; empty if none."""
    sharded = network(name)
    alone = copy.deepcopy(sharded)
    wanted = by_torch(alone)
    model = place.prepare(sharded, optimizer(sharded))
    held = sum(parameter.to_local().numel() for parameter in sharded.parameters())  # type: ignore[attr-defined]
    average = lookahead(model.weights)
    model.begin_step(LR)
    with model.accumulate():
        model.backward(loss_of(model) / model.ranks.world_size)
    model.update()
    average.update(1)
    model.assert_synchronised()
    with model.evaluating():
        logits = model.infer(samples()[0])
    everything = sum(parameter.numel() for parameter in alone.parameters())
    try:
        torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)
        for key, value in model.state().items():
            torch.testing.assert_close(value, alone.state_dict()[key], rtol=1e-3, atol=1e-4)
    except AssertionError as error:
        return str(error)
    share = held / everything * place.ranks.world_size
    return "" if 0.8 < share < 1.2 else f"a process holds {held} of {everything} numbers"


def main(out: Path) -> None:
    import timm  # noqa: F401 - once rather than in each process

    os.environ["ACCELERATE_USE_FSDP"] = "true"

    def work(networks: list[str], path: Path) -> None:
        place = engine()
        assert place.kind == "fsdp"
        found = {name: compare(place, name) for name in networks}
        if place.ranks.is_main:
            path.write_text(json.dumps(found))
        place.close()

    forked_ranks.run(2, lambda: work(NETWORKS, out))
    forked_ranks.run(1, lambda: work([FROZEN], out.with_name("alone.json")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
