"""A job of two processes that tries the engine: ``python engine_on_ranks.py OUT``; test_engine.py reads the result.

With ``alone`` behind it, a job of one process; with ``skipping``, jobs of which one rank fails.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.config import Config, OptimConfig, TrainConfig
from cifar_dist.data.order import micro_batches, own_parts
from cifar_dist.distributed.collective_timeout import waits_explained
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.sync_batchnorm import synchronise_batch_norms
from cifar_dist.distributed.wrapped_model import WrappedModel
from cifar_dist.errors import TrainingFailedError, UserError
from support import forked_ranks
from support.engines import engine

BATCHES = [16, 13, 1]
"""Samples of each step: what divides by two processes and two accumulation steps, and what does not."""


class Agreed(TypedDict):
    """What one rank receives from the others; in words what each failure said."""

    place: tuple[int, int, bool]
    gather_unequal: Tensor
    gather_none_of_one: Tensor
    gather_none_at_all: Tensor
    objects: list[dict[str, int]]
    sum: list[float]
    exchange: list[float]
    decide: str
    decide_fails: str
    decide_broken: str
    decide_no_file: str
    together: str
    together_fails: str
    after_failures: list[int]


class Found(Agreed):
    """What one rank found, by the function below that returns it."""

    engine: tuple[str, str]
    differing: str
    lacking: list[str]
    lacking_in_parts: list[list[str]]
    drifted: tuple[float, bool, bool]
    own_buffers: tuple[list[int], float]
    drawn: list[Tensor]
    former: tuple[bool, list[str]]
    normalised: list[dict[str, Tensor]]
    gradients: dict[str, dict[str, Tensor]]
    trained: list[dict[str, Tensor]]


class Alone(TypedDict):
    """How one process trains that a launcher started on a CPU."""

    type: object
    is_bare: bool
    sends: bool


def network() -> nn.Sequential:
    """Build a network without batch statistics, whose gradient of a batch is the mean over its samples."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def optimizer(name: str, module: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=1e-3)
    return torch.optim.AdamW(module.parameters(), lr=1.0, weight_decay=1e-2)


def train(model: WrappedModel, accumulate: int, steps: list[int]) -> None:
    """Train steps on the first samples; the learning rate falls from 0.1."""
    images, labels = samples()
    parts = model.ranks.world_size * accumulate
    own = own_parts(parts, model.ranks.rank, model.ranks.world_size)
    for number, size in enumerate(steps):
        model.begin_step(0.1 / (number + 1))
        for part in micro_batches(torch.arange(size), own, parts):
            with model.accumulate():
                losses = F.cross_entropy(model(images[part.ids]), labels[part.ids], reduction="none")
                model.backward((losses * part.weight).sum() / size)
        model.update()


def prepared(name: str, accumulate: int = 1, clip_norm: float = 0.0) -> WrappedModel:
    """Return a new, wrapped network."""
    config = Config(train=TrainConfig(accumulate=accumulate), optim=OptimConfig(clip_norm=clip_norm))
    module = network()
    return engine(config).prepare(module, optimizer(name, module))


def trained(name: str, accumulate: int = 1, clip_norm: float = 0.0) -> dict[str, Tensor]:
    """Return weights and optimizer state after BATCHES."""
    model = prepared(name, accumulate, clip_norm)
    train(model, accumulate, BATCHES)
    model.assert_synchronised()
    return model.state() | model.optimizer_state()


CASES = [("sgd", 1, 0.0), ("sgd", 2, 0.0), ("sgd", 2, 0.05), ("adamw", 1, 0.0)]


def normalised(synchronised: bool) -> dict[str, Tensor]:
    """Return gradients, weights and batch statistics of a network with batch norms, before and after sharing them.

    Each process has its part of eight samples.
    """
    place = engine()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    module.append(nn.BatchNorm1d(3, affine=False))
    if synchronised:
        synchronise_batch_norms(module)
    images, labels = samples()
    ids = torch.arange(8).tensor_split(place.ranks.world_size)[place.ranks.rank]
    model = place.prepare(module, optimizer("sgd", module))
    model.begin_step(0.1)
    with model.accumulate():
        logits = model(images.repeat_interleave(2, 1).view(16, 2, 6)[ids])
        model.backward(F.cross_entropy(logits, labels[ids], reduction="sum") / 8)
    own = {f"own/{name}": buffer.clone() for name, buffer in module.named_buffers()}
    return {**{f"gradient/{n}": gradient(p).clone() for n, p in module.named_parameters()}, **own, **model.state()}


def gradients(compressed: Literal["no", "fp16", "bf16"]) -> dict[str, Tensor]:
    """Return the gradients of a batch as the ranks receive them."""
    config = Config(train=TrainConfig(compress_gradients=compressed))
    module = network()
    model = engine(config).prepare(module, optimizer("sgd", module))
    train(model, 1, [16])
    return {name: gradient(parameter).clone() for name, parameter in module.named_parameters()}


def agreement(ranks: Ranks) -> Agreed:
    rank = ranks.rank

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
        "place": (rank, ranks.world_size, ranks.is_main),
        "gather_unequal": ranks.gather(torch.arange(rank * 10, rank * 10 + 1 + 2 * rank)[:, None].repeat(1, 2)),
        "gather_none_of_one": ranks.gather(torch.full((rank * 2, 3), 7.0)),
        "gather_none_at_all": ranks.gather(torch.empty(0, 3)),
        "objects": ranks.gather_objects({"rank": rank}),
        "sum": ranks.sum(torch.tensor([1.0, rank])).tolist(),
        "exchange": ranks.start_maximum(torch.tensor([0.0, rank, 1 - rank])).wait().tolist(),
        "decide": ranks.run_on_main(lambda: f"chosen by {rank}"),
        "decide_fails": told(lambda: ranks.run_on_main(lambda: fail(UserError(f"no such thing, says {rank}")))),
        "decide_broken": told(lambda: ranks.run_on_main(lambda: fail(TrainingFailedError(f"broken, says {rank}")))),
        "decide_no_file": told(lambda: ranks.run_on_main(lambda: open("/nowhere/it"))),
        "together": ranks.run_on_all(lambda: f"own of {rank}"),
        "together_fails": told(lambda: ranks.run_on_all(fail_on_rank_1)),
        "after_failures": ranks.gather_objects(rank),
    }


def differing() -> str:
    """Return the error that is raised when the ranks' gradients differ."""
    model = prepared("sgd")
    train(model, 1, [16])
    buckets = {gradient(parameter).untyped_storage().data_ptr() for parameter in model.module.parameters()}
    assert len(buckets) == 1, "what is sent is the gradients themselves, not a copy of them"
    gradient(next(model.module.parameters()))[0, 0] += 0.001 * model.ranks.rank
    try:
        model.assert_synchronised()
    except TrainingFailedError as error:
        return str(error)
    return "nothing"


class Unused(nn.Module):
    """A network with a layer that only the first ``used`` forward passes use."""

    def __init__(self, used: int) -> None:
        super().__init__()
        self.body, self.extra, self.used = network(), nn.Linear(3, 3), used

    def forward(self, images: Tensor) -> Tensor:
        self.used -= 1
        logits: Tensor = self.body(images)
        return self.extra(logits) if self.used >= 0 else logits


class Remembering(nn.Linear):
    """Keeps the last batch in a buffer that begins as None."""

    bank: Tensor | None
    count: Tensor

    def __init__(self, persistent: bool) -> None:
        super().__init__(6, 3)
        self.register_buffer("bank", None, persistent=persistent)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.bank, self.count = images.detach(), self.count + 1
        return super().forward(images)


def own_buffers() -> tuple[list[int], float]:
    """Return the shape of a buffer that no checkpoint has, and a number in another, after an evaluation began."""
    place = engine()
    module = Remembering(persistent=False)
    model = place.prepare(module, optimizer("sgd", module))
    for _ in range(1 + place.ranks.rank):
        module(torch.zeros(4 + place.ranks.rank, 6))
    with model.evaluating():
        assert module.bank is not None
        return list(module.bank.shape), float(module.count)


def lacking(used: int, steps: list[int]) -> str:
    """Return the error that is raised when a layer gets no gradient from a step on."""
    module = Unused(used)
    model = engine().prepare(module, optimizer("sgd", module))
    try:
        train(model, 1, steps)
        model.assert_synchronised()
    except UserError as error:
        return str(error)
    return "nothing"


def skipping(accumulate: int) -> None:
    """Write the error of each rank where the second skips a layer in the pass that ends its second step."""
    place = engine(Config(train=TrainConfig(accumulate=accumulate)))
    module = Unused(2 * accumulate - 1 if place.ranks.rank else 99)
    model = place.prepare(module, optimizer("sgd", module))
    try:
        with waits_explained(1800):
            for _ in range(2):
                train(model, accumulate, [16])
                place.ranks.sum(torch.zeros(1))  # as ranks agree after each step
    except (UserError, TrainingFailedError) as error:
        Path(f"{sys.argv[1]}-{place.ranks.rank}-{accumulate}.txt").write_text(str(error))


def lacking_in_parts(used: int) -> list[str]:
    """Return the parameters without a gradient of a network in fixed parts, on this rank."""
    module = Unused(used)
    model = engine(Config(train=TrainConfig(parts=2))).prepare(module, optimizer("sgd", module))
    train(model, 1, [16])
    return model.parameters_without_gradient()


def drifted_buffers() -> tuple[float, bool, bool]:
    """Return a batch statistic during evaluation, and whether evaluation mode was on then and training mode after."""
    place = engine()
    module = nn.BatchNorm1d(2)
    assert module.running_mean is not None
    nn.init.constant_(module.running_mean, float(place.ranks.rank + 5))
    with place.prepare_for_inference(module).evaluating():
        inside = float(module.running_mean[0]), not module.training
    return (*inside, module.training)


def drawn_by_each() -> list[Tensor]:
    """Return weights and buffers of a network in fixed parts, which each rank drew for itself, once it is prepared."""
    place = engine(Config(train=TrainConfig(parts=2)))
    torch.manual_seed(place.ranks.rank)
    norm = nn.BatchNorm2d(4)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), norm).to(memory_format=torch.channels_last)
    assert norm.running_mean is not None
    nn.init.constant_(norm.running_mean, float(place.ranks.rank + 5))
    place.prepare(module, optimizer("sgd", module))
    return [tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())]


def former() -> tuple[bool, list[str]]:
    """Return whether a network is freed once another was trained on its engine, and the exchanges that both showed."""
    place, seen = engine(), list[str]()
    networks: list[weakref.ref[nn.Module]] = []

    def see_exchange() -> str:
        seen.append("exchange")
        return "any result"

    for _ in range(2):
        module = network()
        networks.append(weakref.ref(module))
        model = place.prepare(module, optimizer("sgd", module))
        model.watch_exchange(see_exchange)
        train(model, 1, [16, 16])
    del module, model
    gc.collect()
    return networks[0]() is None, seen


def launched_alone() -> Alone:
    """Train on one process, as a launcher starts it on a CPU, with gradients to be compressed."""
    os.environ["ACCELERATE_USE_CPU"] = "true"  # as launch/cpu.yaml
    place = engine(Config(train=TrainConfig(compress_gradients="fp16")))
    module = network()
    model = place.prepare(module, optimizer("sgd", module))
    train(model, 1, [16])
    sends = any(torch.equal(gradient(one), gradient(one).half().float()) for one in module.parameters())
    return {"type": place.accelerator.distributed_type, "is_bare": model.wrapper is module, "sends": sends}


def rank() -> None:
    place = engine()
    found: Found = {
        **agreement(place.ranks),
        "engine": (place.kind, place.description),
        "differing": differing(),
        "lacking": [lacking(0, [16]), lacking(0, [16, 16]), lacking(1, [16, 16, 16])],
        "lacking_in_parts": [lacking_in_parts(0), lacking_in_parts(place.ranks.rank)],
        "drifted": drifted_buffers(),
        "own_buffers": own_buffers(),
        "drawn": drawn_by_each(),
        "former": former(),
        "normalised": [normalised(synchronised) for synchronised in (False, True)],
        "gradients": {"no": gradients("no"), "fp16": gradients("fp16"), "bf16": gradients("bf16")},
        "trained": [trained(*case) for case in CASES],
    }
    write(found)
    place.close()


def write(found: Found | Alone) -> None:
    with open(f"{sys.argv[1]}-{os.environ['RANK']}.pickle", "wb") as file:
        pickle.dump(found, file)


if __name__ == "__main__":
    if sys.argv[2:] == ["alone"]:
        forked_ranks.run(1, lambda: write(launched_alone()))
    elif sys.argv[2:] == ["skipping"]:
        for accumulate in (1, 2):
            forked_ranks.run(2, partial(skipping, accumulate))
    else:
        forked_ranks.run(2, rank)
