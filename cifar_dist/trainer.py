"""The loop, on one screen: :meth:`Trainer.fit` and :meth:`Trainer.train_step`. The rest puts their parts together.

A step is a function of (config, seed, step): the order says which samples, counter-based randomness what is done
to them, the schedule the learning rate, and the global generator that dropout draws from is seeded anew each time.
So a resume needs weights, optimizer state and a step number, and nothing is replayed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from cifar_dist import checkpoint, models
from cifar_dist.agreement import Agreement, StopRequested
from cifar_dist.checkpoint import Checkpoint
from cifar_dist.config import Config
from cifar_dist.data.augment import Augment, Normalize
from cifar_dist.data.batches import Batch, TrainBatches
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.randomness import permutation, step_seed
from cifar_dist.engine import Engine
from cifar_dist.errors import EXIT_DONE, EXIT_REQUEUE, UserError
from cifar_dist.evaluation.evaluate import Weights, evaluate
from cifar_dist.evaluation.split import Split, statistics
from cifar_dist.files import folder_atomic
from cifar_dist.meter import StepMeter
from cifar_dist.models.registry import DataInitialized
from cifar_dist.optim.averaging import recalibrate
from cifar_dist.optim.lookahead import build_average
from cifar_dist.optim.optimizers import build_optimizer
from cifar_dist.optim.schedules import learning_rate
from cifar_dist.preemption import StopSignals
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.tracker import AnyTracker, SilentTracker, Status, Tracker

_INITIALIZE_IMAGES = 5000  # how many a network is shown that looks at the data before it trains


class Trainer:
    """One start of a run, on one process. Making one and running it are collective.

    Args:
        config: the run.
        engine: this process's place in the job.
        signals: asked at every step whether to stop.

    Raises:
        UserError: input that cannot be.
        TrainingFailedError: a non-finite loss, or processes that do not synchronise.
    """

    def __init__(self, config: Config, engine: Engine, signals: StopSignals) -> None:
        self.config, self.engine, self.signals = config, engine, signals
        check_batch_size(config, engine.processes)
        check_sharding(config, engine.kind)
        self.manifest = engine.decide(lambda: Manifest.load(config.data.path))
        mean, std = statistics(config, self.manifest)
        self.normalize = Normalize(mean, std, engine.device, config.train.channels_last)
        self.augment = Augment(config.augment, config.run.seed, mean, self.normalize)
        self.augment.check(self.manifest.shape)
        self.batches, self.val = engine.together(self._open_data)
        torch.manual_seed(config.run.seed)
        module = models.build_for(config.model, shape=self.manifest.shape, classes=len(self.manifest.classes))
        optimizer = build_optimizer(config.optim, module)

        # Only now, with nothing left that the config could have wrong, does the run get its folder.
        self.folder = RunFolder(Path(config.run.dir) / config.run.name)
        engine.decide(lambda: self.folder.open(config, self.manifest))
        found, notes = engine.decide(lambda: checkpoint.choose(self.folder.checkpoints))
        loaded = engine.together(lambda: checkpoint.load(found) if found else None)
        state = loaded.state if loaded else {}
        self.step: int = state.get("step", 0)  # optimizer steps done
        self.evaluated: int = state.get("evaluated", 0)  # epochs whose end was evaluated
        self.accuracy: float | None = state.get("val_accuracy")  # at the last evaluation
        self.best: float = state.get("best", -1.0)
        self.meter = StepMeter(engine.device)
        self.parameters = sum(parameter.numel() for parameter in module.parameters())
        self.model = self._prepare_model(module, optimizer, loaded)
        self.average = build_average(
            config.average, module, steps_per_epoch=self.batches.steps_per_epoch, epochs=config.train.epochs
        )
        if self.average is not None and loaded is not None:
            self.average.load(_part(loaded.optimizer, "average"), self.step)
        self._synchronised = False  # whether that was looked at since this start
        self.agreement = Agreement(engine, signals)
        self.tracker = self._start_tracker(notes)

    # ---- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the end, or until asked to stop; returns the exit code."""
        try:
            self.fit()
            self.finish()
        except StopRequested:
            self.stop()
            return EXIT_REQUEUE
        except BaseException as error:
            self.tracker.finish("failed", str(error))
            raise
        self.close("finished")
        return EXIT_DONE

    def fit(self) -> None:
        """Every epoch, every step of it; at the end of each epoch, evaluate and save."""
        per_epoch, every = self.batches.steps_per_epoch, self.config.checkpoint.every_steps
        if self.step == (self.evaluated + 1) * per_epoch:  # stopped between an epoch and its evaluation
            self.end_epoch(self.evaluated)
        for epoch in range(self.step // per_epoch, self.config.train.epochs):
            for batches in self.batches.epoch(epoch, first_step=self.step % per_epoch):
                self.train_step(epoch, batches)
                if self.step % self.config.tracking.every == 0:
                    self.flush()
                if every and self.step % every == 0:
                    self.agreement.settle()
                    self.flush()
                    self.save()
            self.agreement.settle()
            self.end_epoch(epoch)

    def train_step(self, epoch: int, batches: list[Batch]) -> None:
        """One optimizer step on this process's part of a global batch."""
        config, step = self.config, self.step
        lr = self.learning_rate(step)
        samples = self.batches.size(step % self.batches.steps_per_epoch)
        self.meter.start()
        finite: list[Tensor] = []

        def share_of_loss(index: int) -> Tensor:
            batch = batches[index]
            if index == 0:
                torch.manual_seed(step_seed(config.run.seed, step, self.engine.rank))
            logits = self.model(self.augment(batch.images, batch.ids, epoch)).float()
            losses = F.cross_entropy(
                logits, batch.labels, reduction="none", label_smoothing=config.train.label_smoothing
            )
            if len(finite) == index:  # not in SAM's second pass
                self.meter.add(losses, logits.argmax(dim=1) == batch.labels, batch.weight)
                finite.append(losses.detach().isfinite())
            return (losses * batch.weight).sum() / samples

        self.engine.step(share_of_loss, lr)
        self.step = step + 1
        if self.average is not None:
            self.average.update(self.step)
        self.meter.end(step=self.step, epoch=epoch, lr=lr)
        self.agreement.after_step(self.step, torch.cat([batch.ids for batch in batches]), torch.cat(finite))
        if not self._synchronised:
            self.engine.assert_synchronised()
            self._synchronised = True

    def end_epoch(self, epoch: int) -> None:
        """Evaluate when it is due, then save when it is due or the best so far."""
        last = epoch + 1 == self.config.train.epochs
        best = False
        self.flush()
        if self.val is not None and (last or (epoch + 1) % self.config.eval.every == 0):
            begin = time.perf_counter()
            with self.averaged():
                predictions = self.val.predict("0", poll=self.agreement.poll)
            self.accuracy = predictions.accuracy
            best = self.accuracy > self.best
            self.best = max(self.best, self.accuracy)
            seconds = round(time.perf_counter() - begin, 6)
            count = len(predictions.logits)
            record = Record(self.step, epoch, "val", predictions.loss, predictions.accuracy, count, seconds)
            self.tracker.evaluation(record, best)
        self.evaluated = epoch + 1
        if best or last or (epoch + 1) % self.config.checkpoint.every == 0:
            self.save(best)
        self.meter.restart_clock()

    def finish(self) -> None:
        """Keep the final weights and evaluate them with test-time augmentation."""
        if self.folder.finished():
            self.tracker.say(f"{self.folder.path} is finished already; another --run.name starts a new run")
            return
        with self.averaged():
            self._finish()

    def _finish(self) -> None:
        model = self.engine.model_state()
        self.engine.decide(lambda: self._write_final(model))
        split, tta = self.config.eval.split, self.config.eval.tta
        if split not in self.manifest.splits:
            self.tracker.warn(f"the dataset has no split '{split}' to end with; see eval.split")
            return
        weights = Weights(self.folder.final, "final", self.step, self.accuracy)
        folder, summary = evaluate(
            self.engine,
            self.config,
            self.folder.path,
            weights,
            self.manifest,
            split,
            tta,
            trained_on=self.manifest,
            poll=self.agreement.poll,
        )
        self.tracker.say(f"{split} accuracy {summary.accuracy:.2%} of {summary.samples} with TTA {tta}: {folder}")

    def stop(self) -> None:
        """Save at the agreed step and say how to go on."""
        self.agreement.settle(stopping=True)
        self.flush()
        self.save()
        self.close("interrupted", f"{self.signals.received or 'asked to stop'}; the same command goes on from here")

    def close(self, status: Status, reason: str = "") -> None:
        """End the tracking. Ranks leave together: a launcher kills those that stay longer than the first to fail."""
        self.engine.decide(lambda: self.tracker.finish(status, reason))

    # ---- parts ------------------------------------------------------------------------------------------------

    def learning_rate(self, step: int) -> float:
        return learning_rate(
            self.config.schedule,
            self.config.optim.lr,
            step,
            steps_per_epoch=self.batches.steps_per_epoch,
            epochs=self.config.train.epochs,
        )

    def flush(self) -> None:
        """Hand the metrics of the steps since the last look to the tracker. Collective."""
        self.tracker.train_steps(self.meter.take(self.engine.sum))

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of this step. Collective."""
        with self.averaged():
            model = self.engine.model_state()
        optimizer = self.engine.optimizer_state()
        if self.average is not None:  # the checkpoint's model is what was evaluated; what trains goes here
            optimizer |= {f"weights/{name}": value for name, value in self.engine.model_state().items()}
            optimizer |= {f"average/{name}": value for name, value in self.average.state().items()}
        state = {
            "step": self.step,
            "evaluated": self.evaluated,
            "val_accuracy": self.accuracy,
            "best": self.best,
            "processes": self.engine.processes,
            "engine": self.engine.kind,
            "scaler": self.engine.scaler_state(),
        }

        def write() -> Path:
            self.tracker.sync()
            path = checkpoint.save(self.folder.checkpoints, model, optimizer, state, best=best)
            checkpoint.prune(self.folder.checkpoints, self.config.checkpoint.keep)
            return path

        path = self.engine.decide(write)
        self.tracker.checkpoint(self.step, path)
        self.meter.restart_clock()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model as it is evaluated and kept: with averaged weights inside, where the run has an average."""
        if self.average is None:
            yield
            return
        with self.average.applied() as begun:
            if begun and (count := min(self.config.average.recalibrate, len(self.batches.images))):
                ids = permutation(self.config.run.seed, 0, len(self.batches.images), "recalibrate")[:count]
                parts = ids.tensor_split(-(-count // self.config.eval.batch_size))
                recalibrate(self.average.model, (self.normalize(self.batches.images.get(part)) for part in parts))
            yield

    def _open_data(self) -> tuple[TrainBatches, Split | None]:
        config, engine = self.config, self.engine
        batches = TrainBatches(
            self.manifest,
            config.data,
            seed=config.run.seed,
            batch_size=config.train.batch_size,
            accumulate=config.train.accumulate,
            rank=engine.rank,
            processes=engine.processes,
            device=engine.device,
        )
        if "val" not in self.manifest.splits:
            return batches, None
        return batches, Split(engine, config, self.manifest, "val", self.manifest)

    def _prepare_model(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, loaded: Checkpoint | None
    ) -> nn.Module:
        """Load or initialise the weights, wrap the model, load the optimizer's state."""
        config = self.config
        if loaded is not None:
            checkpoint.load_weights(module, _part(loaded.optimizer, "weights") or loaded.model, loaded.path)
        elif isinstance(module, DataInitialized):
            count = len(self.batches.images)
            ids = permutation(config.run.seed, 0, count, "initialize")[:_INITIALIZE_IMAGES]
            module.initialize(self.normalize(self.batches.images.get(ids)).cpu())
        if config.train.channels_last:
            module = module.to(memory_format=torch.channels_last)
        model = self.engine.prepare(module, optimizer)
        if loaded is not None:
            own = ("weights/", "average/")
            self.engine.load_optimizer_state({k: v for k, v in loaded.optimizer.items() if not k.startswith(own)})
            self.engine.load_scaler_state(loaded.state["scaler"])
        return model

    def _start_tracker(self, notes: list[str]) -> AnyTracker:
        if not self.engine.is_main:
            return SilentTracker()
        manifest, engine = self.manifest, self.engine
        facts = RunFacts(
            model=self.config.model.name,
            parameters=self.parameters,
            dataset=manifest.name,
            fingerprint=manifest.fingerprint,
            classes=len(manifest.classes),
            image_shape=manifest.shape,
            train_samples=manifest.samples("train"),
            val_samples=len(self.val.images) if self.val else 0,
            processes=engine.processes,
            wrapper=engine.wrapper,
            device=engine.device_name,
            precision=engine.precision,
            steps_per_epoch=self.batches.steps_per_epoch,
            epochs=self.config.train.epochs,
        )
        tracker = Tracker(
            self.folder.path, self.config, facts=facts, resume_step=self.step, resume_epoch=self.evaluated
        )
        for note in notes:
            tracker.warn(note)
        return tracker

    def _write_final(self, model: dict[str, Tensor]) -> None:
        with folder_atomic(self.folder.final.parent, replace=True) as folder:
            save_file(model, folder / self.folder.final.name)

    @property
    def total_steps(self) -> int:
        return self.batches.steps_per_epoch * self.config.train.epochs


def _part(state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """Entries ``KEY/NAME`` of a checkpoint's tensors, by name."""
    return {name.removeprefix(f"{key}/"): value for name, value in state.items() if name.startswith(f"{key}/")}


def check_sharding(config: Config, kind: str) -> None:
    """Refuse what needs whole weights with an engine that keeps its own, sharded ones.

    Raises:
        UserError: with what to use instead.
    """
    wanted = {
        "optim.name muon": config.optim.name == "muon",
        "optim.sam_rho": config.optim.sam_rho > 0,
        "average.name lookahead": config.average.name == "lookahead",
    }
    for setting, asked in wanted.items():
        if asked and kind.startswith("zero"):
            raise UserError(f"{setting} needs whole weights on each process, not DeepSpeed; use launch/ddp.yaml")


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
