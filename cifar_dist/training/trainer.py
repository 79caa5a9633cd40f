"""The loop, on one screen: :meth:`Trainer.fit`.

What learns is the :class:`~cifar_dist.training.learner.Learner`; the trainer puts evaluation, checkpoints, tracking
and the run folder around it.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial

from torch import Tensor

from cifar_dist import checkpoint
from cifar_dist.config import Config
from cifar_dist.config.plugin_errors import describe_plugin_failure
from cifar_dist.distributed import time_limit
from cifar_dist.distributed.agreement import Agreement
from cifar_dist.distributed.collective_timeout import waits_explained
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.host_copies import Deal
from cifar_dist.distributed.shared_path import check_shared
from cifar_dist.distributed.stop_requests import StopRequests
from cifar_dist.distributed.watchdog import Watchdog
from cifar_dist.errors import StopRequested, StorageError, TrainingFailedError, UserError, may_pass
from cifar_dist.evaluation.checkpoint_ref import CheckpointRef
from cifar_dist.evaluation.evaluate import evaluate
from cifar_dist.evaluation.split import Split
from cifar_dist.exit_codes import EXIT_DONE, EXIT_REQUEUE, EXIT_STALLED
from cifar_dist.files.atomic import folder_atomic
from cifar_dist.files.checksums import write_sums
from cifar_dist.formatting import counted, list_some
from cifar_dist.run_folder import FINAL, EvaluationSummary, RunFolder
from cifar_dist.tracking import metrics, timeline
from cifar_dist.tracking.change_of_job import change_of_numerics, rounding_notes
from cifar_dist.tracking.jobs import job_of_step
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.mirrors import MakeMirror, wanted_mirrors
from cifar_dist.tracking.timeline import Event, Status
from cifar_dist.tracking.tracker import AnyTracker, SilentTracker, Tracker
from cifar_dist.tracking.usage import Usage
from cifar_dist.training.checkpoint_writers import choose_writer
from cifar_dist.training.continuation import discard_unbegun, open_run
from cifar_dist.training.divergence import divergence_error
from cifar_dist.training.early_stopping import EarlyStopping
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepLog, StepMeasurements
from cifar_dist.training.notes import evaluation_note, notes_at_start
from cifar_dist.training.profiling import StepProfiler
from cifar_dist.training.requirements import check_evaluations
from cifar_dist.training.run_facts import facts_of
from cifar_dist.training.saving import ONCE_MORE, CheckpointSaver
from cifar_dist.training.setup import build_setup
from cifar_dist.training.threads import settle_threads
from cifar_dist.training.usage_meter import UsageMeter


class Trainer:
    """A run on this process, from its start or its last checkpoint. Construction and all methods are collective.

    Args:
        config: the run.
        engine: this process in the job.

    Raises:
        UserError: input that cannot be trained.
        TrainingFailedError: a non-finite loss, or processes that do not synchronise.
    """

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config, self.engine, self.ranks = config, engine, engine.ranks
        self.setup = build_setup(config, self.ranks)
        self.manifest, self.steps_per_epoch = self.setup.manifest, self.setup.steps_per_epoch
        self.ranks.run_on_all(lambda: check_evaluations(config, self.manifest))
        self.val = self.ranks.run_on_all(self._open_val)

        # Rank 0 alone imports mirrors, and every rank raises what is wrong with one.
        mirrors = self.ranks.run_on_all(lambda: wanted_mirrors(config.tracking) if self.ranks.is_main else {})

        # The run gets its folder only now, when nothing in the config can be wrong any more.
        self.folder = RunFolder.of(config)
        deadline = self.ranks.run_on_main(lambda: time_limit.deadline(config.run.max_time))
        found, state, notes = self.ranks.run_on_main(lambda: open_run(self.folder, self.setup))
        notes += check_shared(self.folder.config, found, self.ranks)
        before = self.ranks.run_on_main(lambda: job_of_step(self.folder, state.step))
        notes += settle_threads(self.setup, self.ranks, before)
        loaded = self.ranks.run_on_all(lambda: checkpoint.load(found) if found else None)
        self.step, self.last_step = state.step, self.setup.last_step
        self.epochs_evaluated, self.accuracy = state.epochs_evaluated, state.val_accuracy
        try:
            self.learner = Learner(self.setup, engine, loaded)
        except UserError:  # its weights: the command, corrected, would contradict the settings of a run that stays
            self.ranks.run_on_main(lambda: discard_unbegun(self.folder))
            raise
        self.step_log = StepLog(self.ranks)
        self.meter = UsageMeter(self.setup, engine, self.learner.clock)
        self.watchdog = self._build_watchdog()
        self.learner.model.moved = self.watchdog.beat
        notes += self.learner.notes
        self._usage_of_final = self.ranks.run_on_main(self._read_usage_of_final)  # before the tracker cuts the metrics
        self.tracker = self.ranks.run_on_all(lambda: self._start_tracker(mirrors, before, notes))
        self.profiler = self._build_profiler()
        self.saver = self._build_saver(state)
        stop_file = self.folder.stop_file if self.ranks.is_main else None
        # Rank 0 asks for all: the clock of another machine may be wrong, and the file may not be there yet.
        requests = StopRequests(engine.signals, file=stop_file, deadline=deadline if self.ranks.is_main else None)
        self.agreement = Agreement(self.ranks, requests, self.watchdog.beat, self._diverged)
        self._early_stopping = self.ranks.run_on_main(
            lambda: EarlyStopping(config.train, metrics.read(self.folder.metrics) if config.train.patience else ())
        )
        self._is_first_step = True

    # ---- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the end, or until asked to stop; returns the exit code."""
        with self.watchdog:
            try:
                with waits_explained(self.config.run.collective_timeout):
                    reason = self._train()
            except BaseException as error:
                self.watchdog.stop()
                self.saver.close()
                in_plugin = describe_plugin_failure(error)
                is_resumable = not in_plugin and may_pass(error)
                self.tracker.finish("failed", in_plugin or str(error), is_resumable=is_resumable)
                raise
            if reason is None:
                self.close("finished", self._why_complete())
                return EXIT_DONE
            self.close("interrupted", reason)
            return EXIT_REQUEUE

    def _train(self) -> str | None:
        """Train to the end; return why it stopped before, with a checkpoint of that step, or None."""
        try:
            self.fit()
            self.finish()
        except StopRequested as request:
            self.save_where_it_stops()
            return str(request)
        return None

    def fit(self) -> None:
        """Train every step of every epoch; at the end of each epoch, evaluate and save."""
        self.learner.clock.take()  # without the setup
        stopped_before_evaluation = self.epochs_trained > self.epochs_evaluated
        if stopped_before_evaluation:
            self.end_epoch(self.epochs_evaluated)
            self.watchdog.be_patient()  # again: the first step comes now, and may compile
        if self._early_stopping.is_exhausted():
            return
        if self.step < self.last_step:
            self.tracker.at_step(self.step)  # a bar from the first step, which may take long
        self.step_log.restart_clock()  # without the setup
        for measured in self.learner.steps(self.step, self.last_step, self.setup.learning_rate):
            self.after_step(measured)
            if self.step % self.config.tracking.every == 0:
                self.flush(wait=False)
                self.saver.poll(self.step)
            if self.saver.is_due(self.step):
                self.agreement.settle()
                self.flush()
                self.save()
            if self._ends_epoch(self.step):
                self.agreement.settle()
                self.end_epoch(measured.epoch)
                if self._early_stopping.is_exhausted():
                    return

    def after_step(self, measured: StepMeasurements) -> None:
        """Count a step, and agree with all ranks that the one before it was in order."""
        self.step = measured.step
        self.step_log.add(measured)
        self.profiler.after_step(self.step)
        self.tracker.at_step(self.step)
        with self.learner.clock.during("communication"):
            self.agreement.after_step(measured.step, measured.ids, measured.finite)
        if self._is_first_step:
            self.learner.model.assert_synchronised()
            self.learner.model.require_savable_state()
            if unused := self.learner.model.parameters_without_gradient():
                self.tracker.warn(
                    f"{list_some(unused)} got no gradient in the first step: what forward does not use never learns, "
                    "and DDP refuses such a network"
                )
            self._is_first_step = False

    def end_epoch(self, epoch: int) -> None:
        """Evaluate when it is due, then save when it is due or the best so far."""
        self.watchdog.be_patient()
        self._follow_folder()
        self.flush()
        val = self._val_after(self.step)
        is_best = self._evaluate(val, epoch) if val is not None else False
        is_last = self.step == self.last_step or self._early_stopping.is_exhausted()
        self.epochs_evaluated = epoch + 1
        if is_best or is_last or (epoch + 1) % self.config.checkpoint.every == 0:
            self.save(is_best, must=is_last)
        self.watchdog.beat()
        if self.config.train.compile != "no" and self.config.model.unfreeze:
            self.watchdog.be_patient()  # other stages may learn now, for which the next step compiles the network again
        self.step_log.restart_clock()

    def _evaluate(self, val: Split, epoch: int) -> bool:
        """Evaluate on the validation split, and record it; return whether it is the best so far."""
        begin = time.perf_counter()
        with self.learner.clock.during("evaluation"), self.learner.averaged():
            self.watchdog.be_patient()  # again: recalibration moves, and the first batch may take long
            show = partial(self.tracker.evaluating, "val")
            predictions = val.predict(self.learner.model, "0", poll=self.agreement.poll, show=show)
        self._require_finite(math.isfinite(predictions.loss), "the validation loss")
        self.accuracy = predictions.accuracy
        self._wait_for_save()  # only an accuracy whose checkpoint exists counts as the best before
        is_best = self.saver.best is None or self.accuracy >= self.saver.best  # of equal ones that trained longest
        record = Record(
            self.step,
            epoch,
            "val",
            loss=predictions.loss,
            accuracy=predictions.accuracy,
            samples=len(predictions.logits),
            seconds=round(time.perf_counter() - begin, 6),
            usage=self.meter.take(),
        )
        self.tracker.evaluation(record, is_best)
        self._count(record)
        return is_best

    def finish(self) -> None:
        """Keep the final weights and evaluate them with test-time augmentation."""
        self.watchdog.be_patient()
        self._follow_folder()
        for damage in self.ranks.run_on_main(self.folder.discard_damaged_results):
            self.tracker.warn(damage)
        if self.ranks.run_on_main(lambda: self.folder.is_finished(self.config.eval.split)):
            if summary := self.ranks.run_on_main(self.folder.final_summary):
                self._record_final(summary, self._usage_of_final)
            return  # only its metrics had to be restored
        with self.learner.clock.during("evaluation"), self.learner.averaged():
            self._finish()

    def _finish(self) -> None:
        self.watchdog.be_patient()  # again: the recalibration of an average moves
        model = self.learner.model.state(Deal(self.ranks.rank, writers=1))
        self.ranks.run_on_main(lambda: self._write_final(model))
        self.watchdog.be_patient()
        split = self.config.eval.split
        if split not in self.manifest.splits:
            self.tracker.say(f"not evaluated: {evaluation_note(self.config, self.manifest)}")
            return
        weights = CheckpointRef((self.folder.final,), FINAL, self.step, self.accuracy)
        folder, summary = evaluate(
            self.learner.model,
            self.config,
            self.folder,
            weights,
            self.manifest,
            split,
            trained_on=self.manifest,
            poll=self.agreement.poll,
            record=lambda summary: self._record_final(summary, self.meter.take()),
            show=partial(self.tracker.evaluating, split),
        )
        self.tracker.say(f"{split}: {summary.result()}, {counted(summary.samples, 'image')}: {folder}")
        if warning := summary.warning():
            self.tracker.warn(warning)

    def _record_final(self, summary: EvaluationSummary, usage: Usage | None) -> None:
        """Record the final evaluation in the metrics, unless its split is recorded in every epoch."""
        self.watchdog.be_patient()  # its folder is written next
        self._follow_folder()
        if summary.accuracy is None or summary.loss is None or summary.split in ("train", "val"):
            if usage is not None:
                self.tracker.evaluation_without_record(summary.split, usage)
            return
        record = Record(
            self.step,
            self.epochs_evaluated - 1,
            summary.split,
            loss=summary.loss,
            accuracy=summary.accuracy,
            samples=summary.samples,
            seconds=summary.seconds,
            usage=usage,
        )
        self.tracker.evaluation(record, best=False)

    def save_where_it_stops(self) -> None:
        """Save at the agreed step; the tracker says how to resume."""
        self.agreement.settle(stopping=True)
        self.flush()
        self.save(must=True)

    def close(self, status: Status, reason: str = "") -> None:
        """End the tracking. Ranks leave together: a launcher kills those that stay longer than the first to fail."""
        self.watchdog.be_patient()
        self.profiler.close(self.step)
        self.ranks.run_on_main(lambda: self.tracker.finish(status, reason))

    # ---- parts ------------------------------------------------------------------------------------------------

    def flush(self, *, wait: bool = True) -> None:
        """Pass the metrics of the steps since the last call to the tracker: all, or those that have arrived."""
        records = self.step_log.take(wait=wait)
        self.meter.add(records)
        if records and self._ends_epoch(records[-1].step) and self._val_after(records[-1].step) is None:
            records[-1] = replace(records[-1], usage=self.meter.take())
        self.tracker.train_steps(records)

    def save(self, best: bool = False, *, must: bool = False) -> None:
        """Save a checkpoint of this step, see :meth:`CheckpointSaver.save`."""
        self._wait_for_save(then=ONCE_MORE if must else "")
        self._follow_folder()
        self._require_finite(self.learner.holds_finite_weights(), "the norm of a weight")
        self._require_finite(not self.learner.model.always_overflows(), "every gradient in fp16")
        state = checkpoint.TrainState(
            step=self.step,
            epochs_evaluated=self.epochs_evaluated,
            val_accuracy=self.accuracy,
            best_val_accuracy=self.accuracy if best else self.saver.best,
            is_best=best,
            loss_scaler=self.learner.model.scaler_state(),
        )
        with self.learner.clock.during("checkpoint"):
            self.saver.save(self._state, state, must=must)
        self.watchdog.beat()  # the next step has a step's time only
        self.step_log.restart_clock()

    def _state(self, deal: Deal) -> checkpoint.Tensors:
        state = self.learner.state(deal)
        self.watchdog.be_patient()  # again: the recalibration of an average moves
        return state

    def _follow_folder(self) -> None:
        """Make the path lead to the run's folder again if that was renamed, and report it. Collective.

        Raises:
            TrainingFailedError: the folder was deleted, or its name is taken.
        """
        if note := self.ranks.run_on_main(self.folder.follow):
            self.tracker.warn(note)

    def _wait_for_save(self, *, then: str = "") -> None:
        """Wait for the checkpoint that is being written, as long as it may take; ``then`` as in its ``wait``."""
        self.watchdog.be_patient()
        with self.learner.clock.during("checkpoint"):
            self.saver.wait(self.step, then=then)

    def _require_finite(self, is_finite: bool, what: str) -> None:
        """Fail if the last update spoiled the weights, or if no update changes them any more. Collective.

        Raises:
            TrainingFailedError: on all ranks, if a rank found something that is not finite.
        """
        if not all(self.ranks.gather_objects(is_finite)):
            raise self._diverged(f"{what} is not finite after step {self.step}")

    def _diverged(self, what: str) -> TrainingFailedError:
        """Describe a training that has diverged. Collective."""
        try:  # what is being written is the newest checkpoint, which the error names
            self._wait_for_save(then="training ends here")
        except StorageError as error:
            self.tracker.warn(f"the newest checkpoint could not be saved: {error}")
        return divergence_error(what, self.config, self.folder, autocast=self.engine.precision.autocast is not None)

    @property
    def epochs_trained(self) -> int:
        """Epochs of which all steps are done, and the last one if the run ends within it."""
        complete, steps = divmod(self.step, self.steps_per_epoch)
        return complete + (steps > 0 and self.step == self.last_step)

    def _ends_epoch(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0 or step == self.last_step

    def _val_after(self, step: int) -> Split | None:
        """The validation split if it is evaluated after ``step``, which ends an epoch."""
        return self.val if step == self.last_step or self.setup.is_turn(step) else None

    def _count(self, record: Record) -> None:
        """Count an evaluation for early stopping, as rank 0 measured it."""
        if self.config.train.patience:
            self._early_stopping.add(self.ranks.run_on_main(lambda: record))

    def _why_complete(self) -> str:
        if self._early_stopping.is_exhausted():
            return str(self._early_stopping)
        is_limited = self.last_step < self.config.train.epochs * self.steps_per_epoch
        return "train.max_steps" if is_limited else ""

    def _build_watchdog(self) -> Watchdog:
        return Watchdog(
            self.ranks,
            self.folder.stalls,
            timeout=self.config.run.stall_timeout,
            patience=self.config.run.collective_timeout,
            factor=self.config.run.stall_factor,
            steps_done=lambda: self.step,
            record=self._record_stall,
        )

    def _record_stall(self, what: str, code: int) -> None:
        kind: timeline.Kind = "stalled" if code == EXIT_STALLED else "failed"
        timeline.append(self.folder.timeline, Event(timeline.utc(), kind, self.step, note=what))

    def _build_profiler(self) -> StepProfiler:
        return StepProfiler(
            self.folder.profile,
            self.config.train.profile if self.ranks.is_main else 0,
            self.learner.clock,
            self.tracker,
            begin=self.step,
            end=self.last_step,
        )

    def _build_saver(self, state: checkpoint.TrainState) -> CheckpointSaver:
        return CheckpointSaver(
            self.folder.checkpoints,
            self.config.checkpoint,
            self.ranks,
            self.tracker,
            state,
            writer=choose_writer(self.config.checkpoint, self.engine, self.setup.parameters),
            retry=self.config.tracking.every,
            longest_retry=self.steps_per_epoch,
            last_step=self.last_step,
        )

    def _open_val(self) -> Split | None:
        if not self.setup.validates:
            return None
        return Split(self.ranks.device, self.config, self.manifest, "val", self.manifest)

    def _read_usage_of_final(self) -> Usage | None:
        is_evaluated = self.folder.is_finished(self.config.eval.split)
        return metrics.usage_of_final(self.folder.metrics, self.step) if is_evaluated else None

    def _start_tracker(self, mirrors: dict[str, MakeMirror], before: Event | None, notes: list[str]) -> AnyTracker:
        if not self.ranks.is_main:
            return SilentTracker()
        facts = facts_of(self.setup, self.engine, len(self.val.images) if self.val else 0)
        was_trained = timeline.last_of_a_process(timeline.read(self.folder.timeline)) is not None
        change = change_of_numerics(before, self.engine.device_name, self.step)
        notes = [
            *notes,
            *rounding_notes(before, self.config, facts, self.step),
            self.engine.precision.advice,
            *notes_at_start(self.setup, self.ranks, has_begun=was_trained),
        ]
        tracker = Tracker(
            self.folder,
            self.config,
            facts=facts,
            resume_step=self.step,
            resume_epoch=self.epochs_evaluated,
            resume_accuracy=self.accuracy,
            mirrors=mirrors,
        )
        if change:
            tracker.say(change)
        for line in self.config.schedule.cut_short(self.config.train.epochs):
            tracker.say(line)
        if unfreezing := self.config.model.describe_unfreezing(len(self.setup.stages), self.config.train.epochs):
            tracker.say(unfreezing)
        for note in filter(None, notes):
            tracker.warn(note)
        return tracker

    def _write_final(self, model: dict[str, Tensor]) -> None:
        with folder_atomic(self.folder.final.parent, replace=True) as folder:
            checkpoint.save_tensors(model, folder / self.folder.final.name)
            write_sums(folder)
