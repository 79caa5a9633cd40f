"""What learns: a network, its optimizer and its averaged weights. One training step, and its state.

A step is a function of (config, seed, step): the order says which samples, counter-based randomness how they are
augmented, and the global generators, from which dropout draws, are seeded in each step. So a resume needs weights,
optimizer state and a step number, and replays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_dist.checkpoint import Averaged, Checkpoint, Tensors, load_weights
from cifar_dist.data.batches import Batch
from cifar_dist.data.randomness import permutation, seed_generators, step_seed
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.host_copies import Deal, copy_to_host
from cifar_dist.distributed.out_of_memory import describe_training, explained
from cifar_dist.distributed.sharded_tensor import own_shard
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.errors import UserError
from cifar_dist.formatting import list_renamed
from cifar_dist.models import transfer
from cifar_dist.models.image_size import enlarged
from cifar_dist.models.pretrained import load_pretrained
from cifar_dist.models.registry import DataInitialized
from cifar_dist.optim.averaging import WeightAverage, build_average, recalibrate
from cifar_dist.optim.optimizers import thaw
from cifar_dist.optim.sam import ascended
from cifar_dist.run_folder import RunFolder
from cifar_dist.training.measurements import StepMeasurements
from cifar_dist.training.phases import PhaseClock
from cifar_dist.training.requirements import require_gradient
from cifar_dist.training.setup import TrainingSetup

# A number that no resume changes, because the statistics of a batch depend on its size.
_RECALIBRATE_AT_ONCE = 500
_INITIALIZE_IMAGES = 5000  # shown to a network that computes some of its first weights from images
_INITIALIZE_NUMBERS = 2**27  # in these images at most, if the run enlarges them: 512 MiB


class Learner:
    """The network, optimizer and average of one process. Construction and all methods are collective.

    Args:
        setup: the parts of a run; the network gets its weights here and is wrapped.
        engine: this process in the job.
        loaded: the checkpoint to resume from; None for a new run.

    Attributes:
        model: the wrapped network, with its optimizer.
        clock: what of a run's time goes into which phase.
        notes: lines to report, of the weights that it begins with.

    Raises:
        UserError: a checkpoint or pretrained weights of another network.
    """

    def __init__(self, setup: TrainingSetup, engine: Engine, loaded: Checkpoint | None = None) -> None:
        self._config, self._setup, self._ranks = setup.config, setup, engine.ranks
        self.clock = PhaseClock(engine.ranks.device)
        self.notes: list[str] = []
        config = setup.config
        self._load_first_weights(loaded, engine.signals)
        if config.train.channels_last:
            setup.module.to(memory_format=torch.channels_last)
        self.model = engine.prepare(setup.module, setup.optimizer)
        # DDP keeps what it is given: that must not be this learner, which would keep the model.
        self.model.watch_exchange(partial(self.clock.begin, "communication"))
        self._engine_name = engine.description
        if loaded is not None:
            self.model.load_optimizer_state(loaded.tensors.optimizer)
            self.model.load_scaler_state(loaded.state.loss_scaler)
        self._average = build_average(
            config.average, self.model.weights, steps_per_epoch=setup.steps_per_epoch, epochs=config.train.epochs
        )
        if self._average is not None and loaded is not None:
            averaged = loaded.tensors.averaged
            self._average.load(averaged.running() if averaged else {}, loaded.state.step)
        if loaded is not None:  # an evaluation may precede its next step
            self._begin_epoch(max(0, loaded.state.step - 1) // setup.steps_per_epoch)
        self._needs_rehearsal = self.model.needs_rehearsal
        self._is_first_step = True
        self._recalibrated: dict[str, Tensor] | None = None  # batch statistics of the average after the last step

    def _load_first_weights(self, loaded: Checkpoint | None, signals: StopSignals) -> None:
        module, model = self._setup.module, self._config.model
        if loaded is not None:
            load_weights(module, loaded.tensors.weights, loaded.path)
            return
        if model.pretrained:
            new: list[str] = []
            with signals.ending_waits(at_once=True):  # a download may take long, and no step is done
                self._ranks.run_once_per_node_first(
                    lambda: new.extend(load_pretrained(module, model.pretrained, model.name))
                )
            if new:
                self.notes.append(f"{model.pretrained} has other classes: {', '.join(new)} keep new weights")
            elif renamed := list_renamed(_classes_behind(Path(model.pretrained)), self._setup.manifest.classes):
                self.notes.append(f"{model.pretrained} has classes of other names, and keeps its last layer: {renamed}")
            return
        if model.freeze:
            self.notes.append("model.freeze without model.pretrained: all layers but the last keep random weights")
        if isinstance(module, DataInitialized):
            module.initialize(self._ranks.run_on_all(self._first_images))

    def _first_images(self) -> Tensor:
        """Training images as the network receives them, from which it computes its first weights: on the CPU."""
        side, count = self._config.model.image_size, _INITIALIZE_IMAGES
        if side:
            count = min(count, max(1, _INITIALIZE_NUMBERS // (self._setup.manifest.shape[2] * side**2)))
        images = next(self._plain_images("initialize", count, count)).cpu()
        return enlarged(images, side) if side else images

    def steps(self, first: int, last: int, learning_rate: Callable[[int], float]) -> Iterator[StepMeasurements]:
        """Train from ``first`` to ``last`` optimizer steps done, yielding after each step.

        Args:
            first, last: steps of the whole run, however many epochs they span.
            learning_rate: of a step, given the steps done before it.
        """
        step, per_epoch = first, self._setup.steps_per_epoch
        copying = partial(self.clock.during, "copy")
        while step < last:
            epoch, position = divmod(step, per_epoch)
            self._begin_epoch(epoch)
            self.clock.begin("data")
            for batches in self._setup.batches.epoch(epoch, position, copying):
                self.clock.begin("rest")
                yield self.train_step(step, batches, learning_rate(step))
                step += 1
                if step == last:
                    return
                self.clock.begin("data")

    def train_step(self, step: int, batches: Sequence[Batch], lr: float) -> StepMeasurements:
        """One optimizer step on this process's share of a global batch.

        Args:
            step: optimizer steps done before.
            batches: one for each micro-batch.
            lr: learning rate.
        """
        with explained(lambda: describe_training(self._config.train, self._engine_name, self._ranks.world_size)):
            self.model.begin_step(lr)
            if self._needs_rehearsal:
                self._rehearse(step, batches, lr)
            measured = self._forward_backward(step, batches, lr)
            if rho := self._config.optim.sam_rho:
                with ascended(self.model.module, rho, self.model.saved_buffers):
                    self._forward_backward(step, batches, lr)
            with self.clock.during("optimizer"):
                grad_norm = self.model.update()
        self._is_first_step = False
        self._recalibrated = None
        if self._average is not None:
            with self.clock.during("optimizer"):
                self._average.update(step + 1)
        return replace(measured, grad_norm=grad_norm)

    def _rehearse(self, step: int, batches: Sequence[Batch], lr: float) -> None:
        """Make the passes of a step once, and discard what they change: see :attr:`WrappedModel.needs_rehearsal`."""
        before = [buffer.clone() for buffer in self.model.saved_buffers()]
        self._forward_backward(step, batches, lr)
        for buffer, value in zip(self.model.saved_buffers(), before, strict=True):
            buffer.copy_(value)
        self.model.begin_step(lr)
        self._needs_rehearsal = False

    def _forward_backward(self, step: int, batches: Sequence[Batch], lr: float) -> StepMeasurements:
        """Forward and backward pass of every micro-batch of a step."""
        epoch, position = divmod(step, self._setup.steps_per_epoch)
        samples = self._setup.batches.size(position)
        is_usual = samples == self._setup.batches.size(0)
        during, smoothing = self.clock.during, self._config.train.label_smoothing
        fixed = self._config.train.parts  # their sums are added up in their order, others in any
        sums = torch.zeros(fixed or 1, 3, dtype=torch.float64, device=self._ranks.device)
        all_losses: list[Tensor] = []
        all_predicted: list[Tensor] = []
        for part, batch in zip(self._setup.own_parts, batches, strict=True):
            seed_generators(step_seed(self._config.run.seed, step, part), self._ranks.device)
            with during("communication"), self.model.accumulate():  # what an engine adds up after the backward pass
                with during("augmentation"):
                    images, targets = self._setup.mix(batch, epoch)
                with during("forward"):
                    logits = self.model(images, compiled=is_usual).float()
                    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
                    loss = (losses * batch.weight).sum() / samples
                if self._is_first_step:
                    require_gradient(self._config, loss)
                with during("backward"):
                    self.model.backward(loss)
                if self._is_first_step:
                    self.model.require_fixed_shapes()  # before a sum, SAM or an average uses the buffers
            losses, predicted = losses.detach(), logits.argmax(dim=1)
            correct = predicted == batch.labels
            counted = [(losses * batch.weight).sum(), (correct * batch.weight).sum(), batch.weight.sum()]
            sums[part if fixed else 0] += torch.stack(counted)
            all_losses.append(losses)
            all_predicted.append(predicted)
        ids = torch.cat([batch.ids for batch in batches])
        return StepMeasurements(step + 1, epoch, lr, ids, torch.cat(all_losses), torch.cat(all_predicted), sums)

    def _begin_epoch(self, epoch: int) -> None:
        """Set training mode, and the learning rates of the stages that learn in ``epoch``."""
        setup = self._setup
        learning = transfer.set_mode(setup.module, setup.stages, self._config.model, epoch)
        thaw(setup.optimizer.param_groups, learning)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network as it is evaluated and kept: with averaged weights inside, where the run has an average."""
        if self._average is None or not self._average.begun:
            yield
            return
        with self._average.applied():
            self._recalibrate(self._average)
            yield

    def _recalibrate(self, average: WeightAverage) -> None:
        """Give the averaged weights batch statistics of their own, where the run's settings ask for it.

        They are computed once, however often the weights are applied.
        """
        if not average.recalibrate:
            return
        module = self._setup.module
        if self._recalibrated is None:
            at_once = min(_RECALIBRATE_AT_ONCE, self._config.train.batch_size)
            batches = self._plain_images("recalibrate", average.recalibrate, at_once)
            recalibrate(module, batches, self.model.infer)
            self._recalibrated = {name: buffer.clone() for name, buffer in module.named_buffers()}
        else:
            module.load_state_dict(self._recalibrated, strict=False)

    def holds_finite_weights(self) -> bool:
        """Whether what this process holds of the weights is finite."""
        norms = torch._foreach_norm([own_shard(parameter) for parameter in self._setup.module.parameters()])
        return bool(torch.stack([norm.float() for norm in norms]).isfinite().all())

    def state(self, deal: Deal | None = None) -> Tensors:
        """The tensors of a checkpoint. Collective.

        Args:
            deal: which of them this process has in the result, to write them; None for all.
        """
        weights, averaged = self.model.state(deal), None
        if self._average is not None and self._average.begun:
            with self._average.applied():
                self.model.broadcast_buffers()  # each process has an average of its own; rank 0's is the run's
                kept, buffers = self._average.tensors, self._setup.module.named_buffers()
                statistics = copy_to_host(((name, value) for name, value in buffers if name in kept), deal)
                self._recalibrate(self._average)
                averaged = Averaged(self.model.state(deal), statistics)
        return Tensors(weights, averaged, self.model.optimizer_state(deal))

    def _plain_images(self, purpose: str, count: int, at_once: int) -> Iterator[Tensor]:
        """At most ``count`` training images as evaluation sees them: float32 [about at_once, c, h, w], on the device.

        A batch has two images at least, where there are two: one image has no batch statistics.
        """
        images = self._setup.batches.images
        ids = permutation(self._config.run.seed, 0, len(images), purpose)[:count]
        batches = max(1, min(-(-len(ids) // at_once), len(ids) // 2))
        return (self._setup.normalize(images.get(part)) for part in ids.tensor_split(batches))


def _classes_behind(weights: Path) -> tuple[str, ...]:
    """Return the names of the classes that a run has, if a file is its final weights or in a checkpoint of it."""
    for folder in map(RunFolder, weights.resolve().parents[1:3]):
        if folder.exists():
            with suppress(UserError):  # the record of its data is damaged
                return folder.read_manifest().classes
    return ()
