"""What can be observed of a config: the weights, rates, pixels, threads and files that follow from it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cifar_dist import checkpoint, models
from cifar_dist.checkpoint import Tensors
from cifar_dist.config import Config, DataConfig, ModelConfig, TrainConfig
from cifar_dist.data.batches import Images
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.normalize import normalization_statistics
from cifar_dist.data.pack import pack
from cifar_dist.distributed import watchdog
from cifar_dist.distributed.arithmetic import set_arithmetic
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.start import start_engine
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.errors import JoinTimeoutError, StorageError, UserError
from cifar_dist.exit_codes import EXIT_DONE, EXIT_STALLED
from cifar_dist.launch import joining
from cifar_dist.launch.joining import join_ranks, open_store
from cifar_dist.models import transfer
from cifar_dist.optim.averaging import build_average
from cifar_dist.optim.held_weights import HeldWeights
from cifar_dist.optim.learning_rate import learning_rate
from cifar_dist.optim.optimizers import build_optimizer
from cifar_dist.report.preview import augmented
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.tracker import SilentTracker
from cifar_dist.tracking.wandb_mirror import WandbMirror
from cifar_dist.training.early_stopping import EarlyStopping
from cifar_dist.training.requirements import check_batch_size
from cifar_dist.training.saving import CheckpointSaver
from cifar_dist.training.trainer import Trainer
from support import forked_ranks
from support.clock import WatchdogClock
from support.dataset_builders import write_npz
from support.failing_network import write_network
from support.running import free_port, without_times
from support.small_model import loss_of, small_model


def trained_weights(config: Config) -> list[list[float]]:
    """Return the weights after three optimizer steps, at the learning rates that the engine would set."""
    model = small_model()
    optimizer = build_optimizer(config.optim, model, [stage.parameters for stage in transfer.stages(model)])
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = config.optim.lr * group.get("lr_scale", 1.0)
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    return [parameter.flatten().tolist() for parameter in model.parameters()]


def rates(config: Config) -> list[float]:
    """Return the learning rates of a run."""
    epochs = config.train.epochs
    steps = range(epochs * 5 + 1)
    return [learning_rate(config.schedule, 1.0, step, steps_per_epoch=5, epochs=epochs) for step in steps]


def averages(config: Config) -> list[float]:
    """Return a weight that grows by 1 a step, its average, and which of the two the model has."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = build_average(config.average, HeldWeights(model), steps_per_epoch=4, epochs=3)
    assert average is not None
    seen = []
    for step in range(1, 13):
        model.weight.data += 1
        average.update(step)
        seen += [model.weight.item(), *(value.item() for value in average.tensors.values())]
    return seen


def network(config: Config) -> object:
    """Return the layers, the size of the images that they get, and the stages that learn in each epoch."""
    model = models.build_for(config.model, shape=(16, 16, 3), classes=10)
    modules = [stage.modules for stage in transfer.stages(model)]
    learning = [transfer.set_mode(model, modules, config.model, epoch) for epoch in range(4)]
    return [type(layer).__name__ for layer in model.modules()], len(model._forward_pre_hooks), learning


@functools.cache
def pack_colours(folder: Path, seed: int = 0) -> Manifest:
    random = np.random.default_rng(seed)
    arrays: dict[str, ArrayLike] = {}
    for split, count in (("train", 30), ("val", 10), ("test", 10)):
        arrays[f"x_{split}"] = random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 10
    return pack(write_npz(folder / "colours.npz", arrays), folder / "colours", samples_per_shard=5, show=False)


def pixels(config: Config) -> object:
    """Return a few images as training gets them in two epochs."""
    manifest = Manifest.load(config.data.path)
    images = torch.randint(0, 256, (12, 16, 16, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    shown = augmented(config, manifest, images, torch.arange(12) % 10, torch.arange(12), versions=2)
    return [[tensor.tolist() for tensor in tensors] for tensors in shown]


def normalization(config: Config) -> object:
    return normalization_statistics(config.augment, Manifest.load(config.data.path))


class Requests(Sequence[Tensor]):
    """Ten requests for one image each; it counts how many were read."""

    def __init__(self) -> None:
        self.furthest = 0

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        self.furthest = max(self.furthest, index)
        return torch.tensor([index])


def read_ahead(config: Config) -> object:
    """Return whether the images are resident; if not, how many are read before the first is requested."""
    images = Images(Manifest.load(config.data.path), "train", config.data, torch.device("cpu"))
    requests = Requests()
    stream = images.stream(requests)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    return images.resident, requests.furthest


def threads(config: Config) -> int:
    """Return the number of CPU threads of this process while it trains."""
    before, variable = torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]
    try:
        with start_engine(config):
            return torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
        os.environ["OMP_NUM_THREADS"] = variable


def flags(config: Config) -> list[bool]:
    """Return torch's flags while a run computes."""
    try:
        threads(config)
        cudnn = [getattr(torch.backends.cudnn, name) for name in ("allow_tf32", "benchmark", "deterministic")]
        return [torch.backends.cuda.matmul.allow_tf32, *cudnn, torch.are_deterministic_algorithms_enabled()]
    finally:
        set_arithmetic(TrainConfig())


def compilations(config: Config) -> int:
    """Count how often an engine asks torch to compile when it starts; to compile would take a minute."""
    asked = []

    def compile_nothing(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        asked.append(function)
        return function

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compile_nothing)
        threads(config)
    return len(asked)


def run(config: Config) -> object:
    """Return the outcome of a complete run: exit code or refusal, files, metrics, weights."""
    return _run(config)


def final_weights(config: Config) -> list[str]:
    """Return the checksums of the final weights of a run; none if it did not end."""
    return _run(config).weights


def run_again(config: Config) -> object:
    """Return the outcome of a run that is started twice."""
    return _run(config, again=_run(config) is not None)


def refused_on_three_processes(config: Config) -> bool:
    """Return whether three processes refuse the batch size."""
    try:
        check_batch_size(config, world_size=3)
    except UserError:
        return True
    return False


def joined(config: Config) -> str:
    """Return whether this rank waits for another one that joins after three seconds."""
    port, now = str(free_port()), 0
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def sleep(_: float) -> None:  # a second passes
        nonlocal now
        now += 1
        if now == 3:
            open_store("rank", "127.0.0.1", int(port)).add("count", 1)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.items():
            patch.setenv(name, value)
        patch.setattr(joining, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
        try:
            join_ranks(config.run.join_timeout)
        except JoinTimeoutError:
            return "gave up"
    return "joined"


def longest_wait(config: Config) -> str:
    """For how long torch's process group lets a process wait for the others."""
    found = Path("timeout.txt").resolve()

    def work() -> None:
        os.environ["ACCELERATE_USE_FSDP"] = "true"  # which has a group of one process, too
        with start_engine(config):
            group = torch.distributed.distributed_c10d._get_default_group()
            found.write_text(str(group._get_backend(torch.device("cpu")).options._timeout))

    forked_ranks.run(1, work)
    return found.read_text()


def hang(config: Config) -> object:
    """Return the files of a run whose sixth step takes eight seconds, far more than 20 times the usual."""
    act = "from cifar_dist.distributed import watchdog; watchdog.time.let_pass(8)"
    network = write_network(Path("hanging.py").resolve(), act, step=6, inputs="16 * 16 * channels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watchdog, "time", WatchdogClock(config.run.stall_timeout))
        return _run(replace(config, model=ModelConfig(network)))


def die(config: Config) -> object:
    """Return the files of a run that is killed in its third step."""
    network = write_network(Path("dying.py").resolve(), "os._exit(0)", step=3, inputs="16 * 16 * channels")
    return _run(replace(config, model=ModelConfig(network)))


def stops_early(config: Config) -> list[bool]:
    """Return whether the run stops after each of a few evaluations."""
    stopping, seen = EarlyStopping(config.train), []
    for epoch, (loss, accuracy) in enumerate([(1.0, 0.5), (1.1, 0.55), (1.2, 0.5)]):
        stopping.add(Record(epoch + 1, epoch, "val", loss, accuracy, 10, 1.0))
        seen.append(stopping.is_exhausted())
    return seen


def branch(config: Config) -> object:
    """Return the outcome of a run that branches from ``run.from``, which was trained on other data."""
    here, run = Path("other").resolve(), replace(config.run, from_="", from_other_data=False)
    here.mkdir(exist_ok=True)
    other = replace(config, run=replace(run, name=config.run.from_), data=DataConfig(str(pack_colours(here, 1).root)))
    _run(other, where=here)
    origin = here / other.run.dir / other.run.name
    return _run(replace(config, run=replace(config.run, from_=f"{origin}@3")))


class Outcome(NamedTuple):
    """What a run has left: how it ended, its files, checksums of its final weights, its records and its summaries."""

    end: str
    files: list[str]
    weights: list[str]
    records: list[dict[str, object]]
    summaries: list[dict[str, object]]


_SEEN: dict[str, Outcome] = {}


def _run(config: Config, again: bool = False, where: Path | None = None) -> Outcome:
    """Return the outcome of a run, in its own folder or in ``where``; each config is trained once."""
    name = hashlib.sha256(repr(config).encode()).hexdigest()[:16]
    if name not in _SEEN or again:
        _SEEN[name] = _left_by(config, where or Path(f"run-{name}"))
    return _SEEN[name]


def _left_by(config: Config, here: Path) -> Outcome:
    here.mkdir(exist_ok=True)
    forked_ranks.run(1, lambda: _train(config, here), codes=(EXIT_DONE, EXIT_STALLED))
    files = [str(path.relative_to(here)) for path in sorted(here.rglob("*")) if path.suffix != ".json"]
    weights = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(here.rglob("final/*.safetensors"))]
    records = [json.loads(line) for path in here.rglob("metrics.jsonl") for line in path.read_text().splitlines()]
    summaries = [json.loads(path.read_text()) for path in here.rglob("evaluations/*/summary.json")]
    told = [{key: summary[key] for key in ("tta", "tta_images", "split", "samples")} for summary in summaries]
    end = (here / "end.txt").read_text() if (here / "end.txt").is_file() else "killed"
    files = [re.sub(r"acc_[\d.]+_\d{8}-\d{6}", "#", name) for name in files]
    return Outcome(end, files, weights, [without_times(record) for record in records], told)


def _train(config: Config, here: Path) -> None:
    os.chdir(here)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            with StopSignals() as signals, start_engine(config, signals) as engine:
                end = f"{Trainer(config, engine).run()}, {torch.get_num_threads()} threads"
        except UserError as error:
            end = str(error)
    Path("end.txt").write_text(end)


def unwritable(config: Config) -> object:
    """Return what happens to a checkpoint that cannot be written, and when."""
    ranks = Ranks(0, 1, torch.device("cpu"), first_of_node=True)
    folder = Path("/dev/full/checkpoints")
    saver = CheckpointSaver(
        folder, config.checkpoint, ranks, SilentTracker(), checkpoint.NEW_RUN, retry=1, longest_retry=1, last_step=9
    )
    at = "save"
    try:
        saver.save(lambda _: Tensors({}, None, {}), replace(checkpoint.NEW_RUN, step=1), must=False)
        at = "wait"
        saver.wait(1)
    except StorageError as error:
        return at, str(error)
    return at, saver.is_due(2)


def mirror(config: Config) -> object:
    """Return the W&B project and entity of a run."""
    mirrored = WandbMirror(Path(tempfile.mkdtemp(dir=".")), config, RunFacts())
    mirrored.start([])
    assert mirrored._run is not None
    where = mirrored._run.project, mirrored._run.entity  # type: ignore[attr-defined]
    mirrored.close("finished")
    return where
