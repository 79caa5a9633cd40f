"""A job of two processes that tries the engine: ``python engine_on_ranks.py OUT``; test_engine.py reads the result.

With ``alone`` behind it, a job of one process.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_dist.config import Config, OptimConfig, TrainConfig
from cifar_dist.data.order import micro_batches, own_parts
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.sync_batchnorm import synchronise_batch_norms
from cifar_dist.distributed.wrapped_model import WrappedModel
from cifar_dist.errors import TrainingFailedError, UserError
from support import forked_ranks
from support.engines import engine

BATCHES = [16, 13, 1]
"""Samples of each step: what divides by two processes and two accumulation steps, and what does not."""


def network() -> nn.Module:
    """Build a network without batch statistics, whose gradient of a batch is the mean over its samples."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


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
    return {**{f"gradient/{n}": p.grad.clone() for n, p in module.named_parameters()}, **own, **model.state()}


def gradients(compressed: str) -> dict[str, Tensor]:
    """Return the gradients of a batch as the ranks receive them."""
    config = Config(train=TrainConfig(compress_gradients=compressed))
    module = network()
    model = engine(config).prepare(module, optimizer("sgd", module))
    train(model, 1, [16])
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def agreement(ranks: Ranks) -> dict[str, object]:
    """Return what one rank receives from the others."""
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
        "gather unequal": ranks.gather(torch.arange(rank * 10, rank * 10 + 1 + 2 * rank)[:, None].repeat(1, 2)),
        "gather none of one": ranks.gather(torch.full((rank * 2, 3), 7.0)),
        "gather none at all": ranks.gather(torch.empty(0, 3)),
        "objects": ranks.gather_objects({"rank": rank}),
        "sum": ranks.sum(torch.tensor([1.0, rank])).tolist(),
        "exchange": ranks.start_maximum(torch.tensor([0.0, rank, 1 - rank])).wait().tolist(),
        "decide": ranks.run_on_main(lambda: f"chosen by {rank}"),
        "decide fails": told(lambda: ranks.run_on_main(lambda: fail(UserError(f"no such thing, says {rank}")))),
        "decide broken": told(lambda: ranks.run_on_main(lambda: fail(TrainingFailedError(f"broken, says {rank}")))),
        "decide no file": told(lambda: ranks.run_on_main(lambda: open("/nowhere/it"))),
        "together": ranks.run_on_all(lambda: f"own of {rank}"),
        "together fails": told(lambda: ranks.run_on_all(fail_on_rank_1)),
        "after failures": ranks.gather_objects(rank),
    }


def differing() -> str:
    """Return the error that is raised when the ranks' gradients differ."""
    model = prepared("sgd")
    train(model, 1, [16])
    buckets = {parameter.grad.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    assert len(buckets) == 1, "what is sent is the gradients themselves, not a copy of them"
    next(model.module.parameters()).grad[0, 0] += 0.001 * model.ranks.rank
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


def drifted_buffers() -> tuple[float, bool, bool]:
    """Return a batch statistic during evaluation, and whether evaluation mode was on then and training mode after."""
    place = engine()
    module = nn.BatchNorm1d(2)
    nn.init.constant_(module.running_mean, float(place.ranks.rank + 5))
    with place.prepare_for_inference(module).evaluating():
        inside = float(module.running_mean[0]), not module.training
    return (*inside, module.training)


def drawn_by_each() -> list[Tensor]:
    """Return weights and buffers of a network in fixed parts, which each rank drew for itself, once it is prepared."""
    place = engine(Config(train=TrainConfig(parts=2)))
    torch.manual_seed(place.ranks.rank)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    nn.init.constant_(module[1].running_mean, float(place.ranks.rank + 5))
    place.prepare(module, optimizer("sgd", module))
    return [tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())]


def former() -> tuple[bool, list[str]]:
    """Return whether a network is freed once another was trained on its engine, and the exchanges that both showed."""
    place, seen, networks = engine(), [], []
    for _ in range(2):
        module = network()
        networks.append(weakref.ref(module))
        model = place.prepare(module, optimizer("sgd", module))
        model.watch_exchange(lambda: seen.append("exchange") or "any result")
        train(model, 1, [16, 16])
    del module, model
    gc.collect()
    return networks[0]() is None, seen


def launched_alone() -> dict[str, object]:
    """Return how one process that a launcher started on a CPU trains, and whether its gradients are compressed."""
    os.environ["ACCELERATE_USE_CPU"] = "true"  # as launch/cpu.yaml
    place = engine(Config(train=TrainConfig(compress_gradients="fp16")))
    module = network()
    model = place.prepare(module, optimizer("sgd", module))
    train(model, 1, [16])
    sends = any(torch.equal(weight.grad, weight.grad.half().float()) for weight in module.parameters())
    return {"type": place.accelerator.distributed_type, "is bare": model.wrapper is module, "sends": sends}


def rank() -> None:
    place = engine()
    found: dict[str, object] = {"engine": (place.kind, place.description), **agreement(place.ranks)}
    found["differing"] = differing()
    found["lacking"] = [lacking(0, [16]), lacking(0, [16, 16]), lacking(1, [16, 16, 16])]
    found["drifted"] = drifted_buffers()
    found["own buffers"] = own_buffers()
    found["drawn"] = drawn_by_each()
    found["former"] = former()
    found["normalised"] = [normalised(synchronised) for synchronised in (False, True)]
    found["gradients"] = {compressed: gradients(compressed) for compressed in ("no", "fp16", "bf16")}
    found["trained"] = [trained(*case) for case in CASES]
    write(found)
    place.close()


def write(found: dict[str, object]) -> None:
    with open(f"{sys.argv[1]}-{os.environ['RANK']}.pickle", "wb") as file:
        pickle.dump(found, file)


if __name__ == "__main__":
    if sys.argv[2:] == ["alone"]:
        forked_ranks.run(1, lambda: write(launched_alone()))
    else:
        forked_ranks.run(2, rank)
