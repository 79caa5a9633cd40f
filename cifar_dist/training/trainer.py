"""The loop, on one screen: :meth:`Trainer.fit` and :meth:`Trainer.train_step`.

What learns is the :class:`~cifar_dist.training.learner.Learner`; the rest puts evaluation, checkpoints, tracking and
the run folder around it.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cifar_dist import checkpoint
from cifar_dist.config import Config
from cifar_dist.data.batches import Batch
from cifar_dist.distributed.agreement import Agreement, StopRequested
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.errors import EXIT_DONE, EXIT_REQUEUE
from cifar_dist.evaluation.evaluate import CheckpointRef, evaluate
from cifar_dist.evaluation.split import Split
from cifar_dist.files import folder_atomic
from cifar_dist.optim.schedules import learning_rate
from cifar_dist.run_folder import FINAL, RunFolder
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.mirrors import wanted_mirrors
from cifar_dist.tracking.timeline import Status
from cifar_dist.tracking.tracker import AnyTracker, SilentTracker, Tracker
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepMeter


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
        self.learner = Learner(config, engine)
        self.batches, self.manifest = self.learner.batches, self.learner.manifest
        self.val = engine.together(self._open_val)

        # Rank 0 alone imports mirrors; what is wrong with one ends all.
        self._mirrors = engine.together(lambda: wanted_mirrors(config.tracking) if engine.is_main else {})

        # Only now, with nothing left that the config could have wrong, does the run get its folder.
        self.folder = RunFolder(Path(config.run.dir) / config.run.name)
        engine.decide(lambda: self.folder.open(config, self.manifest))
        found, notes = engine.decide(lambda: checkpoint.choose(self.folder.checkpoints))
        loaded = engine.together(lambda: checkpoint.load(found) if found else None)
        state = loaded.state if loaded else checkpoint.NEW_RUN
        self.step, self.evaluated = state.step, state.epochs_evaluated
        self.accuracy, self.best = state.val_accuracy, state.best_val_accuracy
        self.meter = StepMeter(engine.device)
        self.learner.start(loaded)
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
            self.learner.begin_epoch(epoch)
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
        lr = self.learning_rate(self.step)
        finite = self.learner.step(self.step, batches, lr, self.meter)
        self.step += 1
        self.meter.end(step=self.step, epoch=epoch, lr=lr)
        self.agreement.after_step(self.step, torch.cat([batch.ids for batch in batches]), finite)
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
            with self.learner.averaged():
                predictions = self.val.predict("0", poll=self.agreement.poll)
            self.accuracy = predictions.accuracy
            best = self.best is None or self.accuracy > self.best
            self.best = self.accuracy if best else self.best
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
        if self.engine.decide(self.folder.finished):
            self.tracker.say(f"{self.folder.path} is finished already; another --run.name starts a new run")
            return
        with self.learner.averaged():
            self._finish()

    def _finish(self) -> None:
        model = self.engine.model_state()
        self.engine.decide(lambda: self._write_final(model))
        split, tta = self.config.eval.split, self.config.eval.tta
        if split not in self.manifest.splits:
            self.tracker.warn(f"the dataset has no split '{split}' to end with; see eval.split")
            return
        weights = CheckpointRef(self.folder.final, FINAL, self.step, self.accuracy)
        folder, summary = evaluate(
            self.engine,
            self.config,
            self.folder,
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
        tensors = self.learner.state()
        state = checkpoint.TrainState(
            step=self.step,
            epochs_evaluated=self.evaluated,
            val_accuracy=self.accuracy,
            best_val_accuracy=self.best,
            is_best=best,
            loss_scaler=self.engine.scaler_state(),
        )

        def write() -> Path:
            self.tracker.sync()
            path = checkpoint.save(self.folder.checkpoints, tensors, state)
            checkpoint.prune(self.folder.checkpoints, self.config.checkpoint.keep)
            return path

        path = self.engine.decide(write)
        self.tracker.checkpoint(self.step, path)
        self.meter.restart_clock()

    def _open_val(self) -> Split | None:
        if "val" not in self.manifest.splits:
            return None
        return Split(self.engine, self.config, self.manifest, "val", self.manifest)

    def _start_tracker(self, notes: list[str]) -> AnyTracker:
        if not self.engine.is_main:
            return SilentTracker()
        manifest, engine = self.manifest, self.engine
        facts = RunFacts(
            model=self.config.model.name,
            parameters=self.learner.parameters,
            dataset=manifest.name,
            fingerprint=manifest.fingerprint,
            classes=len(manifest.classes),
            image_shape=manifest.shape,
            train_samples=manifest.samples("train"),
            val_samples=len(self.val.images) if self.val else 0,
            processes=engine.processes,
            wrapper=engine.wrapper,
            device=engine.device_name,
            precision=engine.precision.shown,
            steps_per_epoch=self.batches.steps_per_epoch,
            epochs=self.config.train.epochs,
        )
        tracker = Tracker(
            self.folder,
            self.config,
            facts=facts,
            resume_step=self.step,
            resume_epoch=self.evaluated,
            mirrors=self._mirrors,
        )
        for note in (*notes, engine.precision.advice):
            if note:
                tracker.warn(note)
        return tracker

    def _write_final(self, model: dict[str, Tensor]) -> None:
        with folder_atomic(self.folder.final.parent, replace=True) as folder:
            save_file(model, folder / self.folder.final.name)
