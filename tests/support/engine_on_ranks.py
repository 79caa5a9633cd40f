"""A job of two processes that tries the engine: ``python engine_on_ranks.py OUT``; test_engine.py reads the result."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.config import TrainConfig
from cifar_dist.data.order import shares
from cifar_dist.distributed.engine import Engine
from cifar_dist.errors import TrainingFailedError, UserError
from support import forked_ranks

BATCHES = [16, 13, 1]
"""Samples of each step: what divides by two processes and two accumulation steps, and what does not."""


def network() -> nn.Module:
    """Without batch statistics: its gradient of a batch is the mean of those of the samples."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def optimizer(name: str, module: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=1e-3)
    return torch.optim.AdamW(module.parameters(), lr=1.0, weight_decay=1e-2)


def train(engine: Engine, accumulate: int, steps: list[int]) -> None:
    """Steps on the first samples; the learning rate falls from 0.1."""
    images, labels = samples()
    assert engine.model is not None
    for number, size in enumerate(steps):
        mine = shares(torch.arange(size), engine.rank, engine.processes, accumulate)

        def loss(index: int, mine: list = mine, size: int = size) -> Tensor:
            share = mine[index]
            losses = F.cross_entropy(engine.model(images[share.ids]), labels[share.ids], reduction="none")
            return (losses * share.weight).sum() / size

        engine.step(loss, 0.1 / (number + 1))


def trained(name: str, accumulate: int = 1, clip_norm: float = 0.0) -> dict[str, Tensor]:
    """Weights and optimizer state after BATCHES."""
    engine = Engine(TrainConfig(accumulate=accumulate), clip_norm=clip_norm)
    module = network()
    engine.prepare(module, optimizer(name, module))
    train(engine, accumulate, BATCHES)
    engine.assert_synchronised()
    return engine.model_state() | engine.optimizer_state()


CASES = [("sgd", 1, 0.0), ("sgd", 2, 0.0), ("sgd", 2, 0.05), ("adamw", 1, 0.0)]


def agreement(engine: Engine) -> dict[str, object]:
    """What one rank is told by the others."""
    rank = engine.rank

    def told(work: Callable[[], object]) -> str:
        try:
            return f"nothing, it gave {work()}"
        except (UserError, TrainingFailedError) as error:
            return f"{type(error).__name__}: {error}"

    def fail(error: Exception) -> None:
        raise error

    def fail_on_rank_1() -> str:
        if rank == 1:
            raise UserError("the disk of rank 1")
        return "fine"

    return {
        "place": (rank, engine.processes, engine.kind, engine.is_main, engine.wrapper),
        "gather unequal": engine.gather(torch.arange(rank * 10, rank * 10 + 1 + 2 * rank)[:, None].repeat(1, 2)),
        "gather none of one": engine.gather(torch.full((rank * 2, 3), 7.0)),
        "gather none at all": engine.gather(torch.empty(0, 3)),
        "objects": engine.gather_objects({"rank": rank}),
        "sum": engine.sum(torch.tensor([1.0, rank])).tolist(),
        "exchange": engine.exchange(torch.tensor([0.0, rank, 1 - rank])).wait(),
        "decide": engine.decide(lambda: f"chosen by {rank}"),
        "decide fails": told(lambda: engine.decide(lambda: fail(UserError(f"no such thing, says {rank}")))),
        "decide broken": told(lambda: engine.decide(lambda: fail(TrainingFailedError(f"broken, says {rank}")))),
        "decide no file": told(lambda: engine.decide(lambda: open("/nowhere/it"))),
        "together": engine.together(lambda: f"own of {rank}"),
        "together fails": told(lambda: engine.together(fail_on_rank_1)),
        "after failures": engine.gather_objects(rank),
    }


def differing(engine: Engine) -> str:
    """What is said when the ranks' gradients differ."""
    module = network()
    engine.prepare(module, optimizer("sgd", module))
    train(engine, 1, [16])
    next(module.parameters()).grad[0, 0] += 0.001 * engine.rank
    try:
        engine.assert_synchronised()
    except TrainingFailedError as error:
        return str(error)
    return "nothing"


def drifted_buffers(engine: Engine) -> tuple[float, bool, bool]:
    """A batch statistic during evaluation, and whether the mode was evaluation then, and after it training."""
    module = nn.BatchNorm1d(2)
    nn.init.constant_(module.running_mean, float(engine.rank + 5))
    engine.prepare(module)
    with engine.evaluating():
        inside = float(module.running_mean[0]), not module.training
    return (*inside, module.training)


def rank() -> None:
    engine = Engine()
    found: dict[str, object] = agreement(engine)
    found["differing"] = differing(engine)
    found["drifted"] = drifted_buffers(engine)
    found["trained"] = [trained(*case) for case in CASES]
    with open(f"{sys.argv[1]}-{engine.rank}.pickle", "wb") as file:
        pickle.dump(found, file)
    engine.close()


if __name__ == "__main__":
    optimizer("sgd", network())  # torch imports its compiler here, in seconds: once, before the ranks part
    forked_ranks.run(2, rank)
