"""What learns: training batches, network, optimizer, average of weights. One step, its state, and nothing around it.

A step is a function of (config, seed, step): the order says which samples, counter-based randomness what is done
to them, and the global generator that dropout draws from is seeded anew each time. So a resume needs weights,
optimizer state and a step number, and nothing is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_dist import models
from cifar_dist.checkpoint import Averaged, Checkpoint, Tensors, load_weights
from cifar_dist.config import Config
from cifar_dist.data.augment import Augment
from cifar_dist.data.batches import Batch, TrainBatches
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.mix import Mix
from cifar_dist.data.normalize import Normalize, normalization_statistics
from cifar_dist.data.randomness import permutation, step_seed
from cifar_dist.distributed.engine import Engine
from cifar_dist.errors import UserError
from cifar_dist.models import transfer
from cifar_dist.models.pretrained import load_pretrained
from cifar_dist.models.registry import DataInitialized
from cifar_dist.optim.averaging import recalibrate
from cifar_dist.optim.lookahead import build_average
from cifar_dist.optim.optimizers import build_optimizer, thaw
from cifar_dist.training.measurements import StepMeter

_INITIALIZE_IMAGES = 5000  # how many a network is shown that looks at the data before it trains


class Learner:
    """One process's part of it. Making one, and all of its methods, are collective.

    Attributes:
        manifest: the packed dataset.
        batches: its training split.
        module: the bare network.
        parameters: how many numbers the network has.

    Args:
        config: the run.
        engine: this process's place in the job.

    Raises:
        UserError: input that cannot be.
    """

    def __init__(self, config: Config, engine: Engine) -> None:
        self._config, self._engine = config, engine
        check_batch_size(config, engine.processes)
        check_sharding(config, engine.kind, engine.wrapper)
        self.manifest = engine.decide(lambda: Manifest.load(config.data.path))
        mean, std = normalization_statistics(config.augment, self.manifest)
        self._normalize = Normalize(mean, std, engine.device, config.train.channels_last)
        augment = Augment(config.augment, config.run.seed, mean, self._normalize)
        augment.check(self.manifest.shape)
        self._mix = Mix(config.augment, config.run.seed, augment, len(self.manifest.classes))
        self.batches = engine.together(self._open)
        torch.manual_seed(config.run.seed)
        self.module = models.build_for(config.model, shape=self.manifest.shape, classes=len(self.manifest.classes))
        if config.model.freeze:
            transfer.freeze_backbone(self.module)
        cut = [stage.parameters for stage in transfer.stages(self.module)]
        self._optimizer = build_optimizer(config.optim, self.module, cut, gradual=config.model.unfreeze > 0)
        self.parameters = sum(parameter.numel() for parameter in self.module.parameters())

    def _open(self) -> TrainBatches:
        config, engine = self._config, self._engine
        return TrainBatches(
            self.manifest,
            config.data,
            seed=config.run.seed,
            batch_size=config.train.batch_size,
            accumulate=config.train.accumulate,
            rank=engine.rank,
            processes=engine.processes,
            device=engine.device,
            mixed=self._mix.mixes,
        )

    def start(self, loaded: Checkpoint | None) -> None:
        """Load or initialise the weights, wrap the network, load the optimizer's state.

        Raises:
            UserError: a checkpoint or pretrained weights of another network.
        """
        config = self._config
        if loaded is not None:
            load_weights(self.module, loaded.tensors.weights, loaded.path)
        elif config.model.pretrained:
            self._engine.one_of_each_node_first(self._load_pretrained)
        elif isinstance(self.module, DataInitialized):
            self.module.initialize(next(self._plain_images("initialize", _INITIALIZE_IMAGES, _INITIALIZE_IMAGES)).cpu())
        if config.train.channels_last:
            self.module.to(memory_format=torch.channels_last)
        self._model = self._engine.prepare(self.module, self._optimizer)
        if loaded is not None:
            self._engine.load_optimizer_state(loaded.tensors.optimizer)
            self._engine.load_scaler_state(loaded.state.loss_scaler)
        self._average = build_average(
            config.average, self.module, steps_per_epoch=self.batches.steps_per_epoch, epochs=config.train.epochs
        )
        if self._average is not None and loaded is not None:
            averaged = loaded.tensors.averaged
            self._average.load(averaged.running() if averaged else {}, loaded.state.step)
        self._statistics: dict[str, Tensor] | None = None  # recalibrated ones of the average as it now is

    def _load_pretrained(self) -> None:
        load_pretrained(self.module, self._config.model.pretrained, self._config.model.name)

    def begin_epoch(self, epoch: int) -> None:
        """Training mode, and learning rates, for the stages that learn in ``epoch``."""
        thaw(self._optimizer.param_groups, transfer.set_mode(self.module, self._config.model, epoch))

    def step(self, step: int, batches: Sequence[Batch], lr: float, meter: StepMeter) -> Tensor:
        """One optimizer step on this process's part of a global batch.

        Args:
            step: optimizer steps done before.
            batches: one of each accumulation step.
            lr: learning rate.
            meter: is told what was measured.

        Returns:
            bool [n]: whether the loss of each sample was finite.
        """
        epoch, place = divmod(step, self.batches.steps_per_epoch)
        samples = self.batches.size(place)
        smoothing = self._config.train.label_smoothing
        finite: list[Tensor] = []
        meter.start()

        def share_of_loss(index: int) -> Tensor:
            batch = batches[index]
            if index == 0:
                torch.manual_seed(step_seed(self._config.run.seed, step, self._engine.rank))
            images, targets = self._mix(batch, epoch)
            logits = self._model(images).float()
            losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
            if len(finite) == index:  # not in SAM's second pass
                meter.add(losses, logits.argmax(dim=1) == batch.labels, batch.weight)
                finite.append(losses.detach().isfinite())
            return (losses * batch.weight).sum() / samples

        self._engine.step(share_of_loss, lr)
        self._statistics = None
        if self._average is not None:
            self._average.update(step + 1)
        return torch.cat(finite)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network as it is evaluated and kept: with averaged weights inside, where the run has an average."""
        if self._average is None or not self._average.begun:
            yield
            return
        with self._average.applied():
            # Frozen batch statistics belong to the weights that they came with.
            if self._config.average.recalibrate and not self._config.model.freeze:
                self._recalibrate()
            yield

    def _recalibrate(self) -> None:
        """Give the averaged weights batch statistics of their own; computed once, however often they are applied."""
        if self._statistics is None:
            count = min(self._config.average.recalibrate, len(self.batches.images))
            recalibrate(self.module, self._plain_images("recalibrate", count, self._config.eval.batch_size))
            self._statistics = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        else:
            self.module.load_state_dict(self._statistics, strict=False)

    def state(self) -> Tensors:
        """The tensors of a checkpoint. Collective."""
        weights, averaged = self._engine.model_state(), None
        if self._average is not None and self._average.begun:
            with self.averaged():  # copied, because on a CPU these are the tensors that get their own values back
                evaluated = {name: value.clone() for name, value in self._engine.model_state().items()}
            parameters = {name for name, _ in self.module.named_parameters()}
            running = self._average.state().items()
            averaged = Averaged(evaluated, {name: value for name, value in running if name not in parameters})
        return Tensors(weights, averaged, self._engine.optimizer_state())

    def _plain_images(self, purpose: str, count: int, at_once: int) -> Iterator[Tensor]:
        """``count`` training images as evaluation shows them: float32 [at most at_once, c, h, w] on the device."""
        images = self.batches.images
        ids = permutation(self._config.run.seed, 0, len(images), purpose)[:count]
        return (self._normalize(images.get(part)) for part in ids.tensor_split(-(-len(ids) // at_once)))


def check_sharding(config: Config, kind: str, wrapper: str) -> None:
    """Refuse what needs whole weights with an engine that shards them, or that keeps its own.

    Raises:
        UserError: with what to use instead.
    """
    if kind in ("single", "ddp"):
        return
    wanted = {
        "optim.name muon": config.optim.name == "muon",
        "optim.sam_rho": config.optim.sam_rho > 0,
        f"average.name {config.average.name}": config.average.name == "lookahead"
        or (config.average.name != "none" and kind == "fsdp"),
    }
    for setting, asked in wanted.items():
        if asked:
            raise UserError(f"{setting} needs whole weights on each process, not {wrapper}; use launch/ddp.yaml")


def check_batch_size(config: Config, processes: int) -> None:
    """Refuse a global batch that does not divide among processes and accumulation steps.

    Raises:
        UserError: with the nearest sizes that do.
    """
    parts, size = processes * config.train.accumulate, config.train.batch_size
    if size % parts:
        lower = max(parts, size // parts * parts)
        raise UserError(
            f"train.batch_size {size} is not divisible by {processes} processes x {config.train.accumulate} "
            f"accumulation steps; use --train.batch_size {lower} or {lower + parts}"
        )
