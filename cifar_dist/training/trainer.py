"""The loop, on one screen: :meth:`Trainer.fit`.

What learns is the :class:`~cifar_dist.training.learner.Learner`; the trainer puts evaluation, checkpoints, tracking
and the run folder around it.
"""

from __future__ import annotations

import time
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from cifar_dist import checkpoint
from cifar_dist.config import Config
from cifar_dist.distributed.agreement import Agreement, StopRequested
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.evaluation.evaluate import Weights, evaluate
from cifar_dist.evaluation.split import Split
from cifar_dist.exit_codes import EXIT_DONE, EXIT_REQUEUE
from cifar_dist.files import folder_atomic
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.tracker import AnyTracker, SilentTracker, Status, Tracker
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepLog, StepMeasurements
from cifar_dist.training.setup import build_setup


class Trainer:
    """A run on this process, from its start or its last checkpoint. Construction and all methods are collective.

    Args:
        config: the run.
        engine: this process in the job.
        signals: polled at every step.

    Raises:
        UserError: input that cannot be trained.
        TrainingFailedError: a non-finite loss, or processes that do not synchronise.
    """

    def __init__(self, config: Config, engine: Engine, signals: StopSignals) -> None:
        self.config, self.engine, self.ranks, self.signals = config, engine, engine.ranks, signals
        self.setup = build_setup(config, self.ranks)
        self.manifest, self.steps_per_epoch = self.setup.manifest, self.setup.steps_per_epoch
        self.val = self.ranks.run_on_all(self._open_val)

        # The run gets its folder only now, when nothing in the config can be wrong any more.
        self.folder = RunFolder(Path(config.run.dir) / config.run.name)
        self.ranks.run_on_main(lambda: self.folder.open(config, self.manifest))
        found, notes = self.ranks.run_on_main(lambda: checkpoint.choose(self.folder.checkpoints))
        loaded = self.ranks.run_on_all(lambda: checkpoint.load(found) if found else None)
        state = loaded.state if loaded else {}
        self.step: int = state.get("step", 0)  # optimizer steps done
        self.evaluated: int = state.get("evaluated", 0)  # epochs whose end was evaluated
        self.accuracy: float | None = state.get("val_accuracy")  # at the last evaluation
        self.best: float = state.get("best", -1.0)
        self.learner = Learner(self.setup, engine, loaded)
        self.step_log = StepLog(self.ranks)
        self.agreement = Agreement(self.ranks, signals)
        self.tracker = self._start_tracker(notes)
        self._is_first_step = True

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
        """Train every step of every epoch; at the end of each epoch, evaluate and save."""
        if self.step == (self.evaluated + 1) * self.steps_per_epoch:  # stopped between an epoch and its evaluation
            self.end_epoch(self.evaluated)
        last = self.config.train.epochs * self.steps_per_epoch
        for measured in self.learner.steps(self.step, last, self.setup.learning_rate):
            self.after_step(measured)
            if self.step % self.config.tracking.every == 0:
                self.flush()
            if self.config.checkpoint.every_steps and self.step % self.config.checkpoint.every_steps == 0:
                self.agreement.settle()
                self.flush()
                self.save()
            if self.step % self.steps_per_epoch == 0:
                self.agreement.settle()
                self.end_epoch(measured.epoch)

    def after_step(self, measured: StepMeasurements) -> None:
        """Count a step, and agree with all ranks that the one before it was in order."""
        self.step = measured.step
        self.step_log.add(measured)
        self.agreement.after_step(measured.step, measured.ids, measured.finite)
        if self._is_first_step:
            self.learner.model.assert_synchronised()
            self._is_first_step = False

    def end_epoch(self, epoch: int) -> None:
        """Evaluate when it is due, then save when it is due or the best so far."""
        last = epoch + 1 == self.config.train.epochs
        best = False
        self.flush()
        if self.val is not None and (last or (epoch + 1) % self.config.eval.every == 0):
            begin = time.perf_counter()
            with self.learner.averaged():
                predictions = self.val.predict(self.learner.model, "0", poll=self.agreement.poll)
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
        self.step_log.restart_clock()

    def finish(self) -> None:
        """Keep the final weights and evaluate them with test-time augmentation."""
        if self.folder.finished():
            self.tracker.say(f"{self.folder.path} is finished already; another --run.name starts a new run")
            return
        with self.learner.averaged():
            self._finish()

    def _finish(self) -> None:
        model = self.learner.model.state()
        self.ranks.run_on_main(lambda: self._write_final(model))
        split, tta = self.config.eval.split, self.config.eval.tta
        if split not in self.manifest.splits:
            self.tracker.warn(f"the dataset has no split '{split}' to end with; see eval.split")
            return
        weights = Weights(self.folder.final, "final", self.step, self.accuracy)
        folder, summary = evaluate(
            self.learner.model,
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
        """Save at the agreed step and say how to resume."""
        self.agreement.settle(stopping=True)
        self.flush()
        self.save()
        self.close("interrupted", f"{self.signals.received or 'asked to stop'}; the same command resumes from here")

    def close(self, status: Status, reason: str = "") -> None:
        """End the tracking. Ranks leave together: a launcher kills those that stay longer than the first to fail."""
        self.ranks.run_on_main(lambda: self.tracker.finish(status, reason))

    # ---- parts ------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Pass the metrics of the steps since the last call to the tracker."""
        self.tracker.train_steps(self.step_log.take())

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of this step."""
        model, optimizer = self.learner.state()
        state = {
            "step": self.step,
            "evaluated": self.evaluated,
            "val_accuracy": self.accuracy,
            "best": self.best,
            "processes": self.ranks.world_size,
            "engine": self.engine.kind,
            "scaler": self.learner.model.scaler_state(),
        }

        def write() -> Path:
            self.tracker.sync()
            path = checkpoint.save(self.folder.checkpoints, model, optimizer, state, best=best)
            checkpoint.prune(self.folder.checkpoints, self.config.checkpoint.keep)
            return path

        path = self.ranks.run_on_main(write)
        self.tracker.checkpoint(self.step, path)
        self.step_log.restart_clock()

    def _open_val(self) -> Split | None:
        if "val" not in self.manifest.splits:
            return None
        return Split(self.ranks.device, self.config, self.manifest, "val", self.manifest)

    def _start_tracker(self, notes: list[str]) -> AnyTracker:
        if not self.ranks.is_main:
            return SilentTracker()
        manifest, engine = self.manifest, self.engine
        facts = RunFacts(
            model=self.config.model.name,
            parameters=self.setup.parameters,
            dataset=manifest.name,
            fingerprint=manifest.fingerprint,
            classes=len(manifest.classes),
            image_shape=manifest.shape,
            train_samples=manifest.samples("train"),
            val_samples=len(self.val.images) if self.val else 0,
            processes=self.ranks.world_size,
            wrapper=engine.description,
            device=engine.device_name,
            precision=engine.precision.label,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.config.train.epochs,
        )
        tracker = Tracker(
            self.folder.path, self.config, facts=facts, resume_step=self.step, resume_epoch=self.evaluated
        )
        for note in (*notes, engine.precision.advice):
            if note:
                tracker.warn(note)
        return tracker

    def _write_final(self, model: dict[str, Tensor]) -> None:
        with folder_atomic(self.folder.final.parent, replace=True) as folder:
            save_file(model, folder / self.folder.final.name)
