"""``cifar-dist replay RUN STEP`` and ``cifar-dist replay RUN --check``."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_dist.errors import UserError, quoted
from cifar_dist.exit_codes import EXIT_DIFFERS, EXIT_DONE
from cifar_dist.formatting import counted, loss_figure, percent
from cifar_dist.launch.launched import launched_processes
from cifar_dist.step_folder import step_name, step_of
from cifar_dist.terminal.progress import Show, progress
from cifar_dist.verbs.arguments import add_run, at_least, user_path
from cifar_dist.verbs.loading import loading

if TYPE_CHECKING:
    from cifar_dist.config import Config
    from cifar_dist.distributed.engine import Engine
    from cifar_dist.run_folder import RunFolder
    from cifar_dist.training.certificate import Stretch
    from cifar_dist.training.job_differences import JobDifferences
    from cifar_dist.training.replay import Replay

HELP = "recompute a step of a run, to inspect it or to certify the run"
COLLECTIVE = True

_PICTURE = "replay.png"  # in the folder of the replayed step


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s RUN STEP [--rank R] [--data DIR]\n       %(prog)s RUN --check [K] [--seed S] [--data DIR]"
    add_run(verb)
    verb.add_argument("step", nargs="?", type=at_least(1), help="number of the step, from 1")
    verb.add_argument("--rank", type=at_least(0), metavar="R", help="draw the samples of this process only")
    verb.add_argument(
        "--check", nargs="?", type=at_least(1), const=3, metavar="K", help="recompute K random stretches (default: 3)"
    )
    verb.add_argument("--seed", type=at_least(0), metavar="S", help="selects the stretches (default: random)")
    verb.add_argument("--data", type=user_path, metavar="DIR", help="the dataset (default: that of the training)")


@dataclass(frozen=True)
class _Result:
    """What was recomputed.

    Attributes:
        equal: whether the run recorded exactly this.
        lines: what to print.
        differences: of this job from the run's, of each stretch that was recomputed.
    """

    equal: bool
    lines: list[str]
    differences: list[JobDifferences]


def run(arguments: argparse.Namespace) -> int:
    if (arguments.step is None) == (arguments.check is None):
        raise UserError("name either a step or --check: cifar-dist replay RUN 120, or cifar-dist replay RUN --check")
    if arguments.step is not None and arguments.seed is not None:
        raise UserError("--seed has no effect with a step; it selects the stretches of --check")
    if arguments.check is not None and arguments.rank is not None:
        raise UserError("--rank has no effect with --check; it selects the samples of a step")

    with loading():
        from cifar_dist.distributed.stop_signals import StopSignals
        from cifar_dist.run_folder import find_run
        from cifar_dist.run_folder.opening import refuse_read_only

    folder = find_run(arguments.run)
    if arguments.check is None:
        _refuse_unknown_rank(folder, arguments.rank)
        refuse_read_only(folder, folder.replays, "the replay")
    else:
        refuse_read_only(folder, folder.path, "the certificate")
    config = _recorded_config(folder, arguments.data, arguments.step)

    with StopSignals() as signals:
        with loading():
            from cifar_dist.distributed.start import start_engine

        recompute = _recompute_step if arguments.check is None else _recompute_stretches
        with start_engine(config, signals) as engine:
            result = recompute(arguments, config, engine, folder)
    if engine.ranks.is_main:
        print("\n".join(result.lines))
        if not result.equal and result.differences:
            for line in _lines(result.differences):
                print(f"this job is not the run's: {line}")
            if any(difference.avoidable for difference in result.differences):
                words = f"{quoted(arguments.run)} {arguments.step or '--check'}"
                print(f"replay it on the run's processes: cifar-dist launch CONFIG --num_processes=N replay {words}")
    return EXIT_DONE if result.equal else EXIT_DIFFERS


def _refuse_unknown_rank(folder: RunFolder, rank: int | None) -> None:
    from cifar_dist.tracking import timeline

    most = max((event.processes for event in timeline.starts(timeline.read(folder.timeline))), default=0)
    if rank is not None and 0 < most <= rank:
        raise UserError(f"--rank {rank}: {folder.path} had ranks 0 to {most - 1} at most")


def _recorded_config(folder: RunFolder, data: Path | None, step: int | None) -> Config:
    """Read the settings that a run was trained with, plug-ins and threads included.

    Args:
        folder: of the run.
        data: where its data is; None for the place in its settings.
        step: with whose threads it is recomputed; None for those of the newest checkpoint.
    """
    from cifar_dist.run_folder.settings import read_settings_with_plugins
    from cifar_dist.tracking.jobs import job_of_step, recorded_threads

    config = read_settings_with_plugins(folder)
    if data is not None:
        config = replace(config, data=replace(config.data, path=str(data)))
    if not config.train.threads:  # chosen when the run began; another number would round differently
        step = step or step_of(Path(folder.newest_checkpoint())) or 0
        threads = recorded_threads(job_of_step(folder, step), config, launched_processes())
        config = replace(config, train=replace(config.train, threads=threads))
    return config


def _recompute_step(arguments: argparse.Namespace, config: Config, engine: Engine, folder: RunFolder) -> _Result:
    with loading():
        from cifar_dist.training.job_differences import differences
        from cifar_dist.training.replay import replay_step

    replayed = replay_step(config, engine, folder, arguments.step, _shown_by(engine))
    path = engine.ranks.run_on_main(lambda: _write(replayed, folder, arguments.rank))
    found = differences(folder, engine, replayed.began, arguments.step)
    return _Result(replayed.equal, _describe_step(replayed, path), [found])


def _recompute_stretches(arguments: argparse.Namespace, config: Config, engine: Engine, folder: RunFolder) -> _Result:
    with loading():
        from cifar_dist.training.certificate import certify, write_certificate
        from cifar_dist.training.job_differences import differences

    drawn = random.SystemRandom().randrange(2**31) if arguments.seed is None else arguments.seed
    seed = engine.ranks.run_on_main(lambda: drawn)
    stretches = certify(config, engine, folder, count=arguments.check, seed=seed, show=_shown_by(engine))
    found = [differences(folder, engine, stretch.began, stretch.ended) for stretch in stretches]
    path = engine.ranks.run_on_main(lambda: write_certificate(folder, stretches, _lines(found), seed))
    return _Result(all(s.equal for s in stretches), _describe_stretches(stretches, path), found)


def _shown_by(engine: Engine) -> Show:
    """Shows the progress of the recomputation, by one process."""
    return partial(progress, "recomputing", unit="steps", show=engine.ranks.is_main)


def _lines(differences: Iterable[JobDifferences]) -> list[str]:
    """Return the distinct lines of the differences, in their order."""
    return list(dict.fromkeys(line for one in differences for line in one.lines))


def _write(replayed: Replay, folder: RunFolder, rank: int | None) -> Path:
    """Write tables and picture into the run folder."""
    from cifar_dist.files.atomic import folder_atomic
    from cifar_dist.report.replay import draw_replay
    from cifar_dist.report.style import short_names

    samples, record = replayed.samples, replayed.record
    order = samples.losses.argsort(descending=True)
    if rank is not None:
        order = order[samples.ranks[order] == rank]
        if not len(order):
            raise UserError(f"--rank {rank}: step {record.step} has ranks 0 to {int(samples.ranks.max())}")
    several = int(samples.ranks.max()) > 0
    names = short_names(replayed.classes, 9)
    captions = [
        f"{names[label]} as {names[predicted]}: {loss:.2f}\n"
        + (f"{percent(1 - share, 0)} {names[partner]}, " if share < 1 else "")
        + f"id {sample}"
        + (f", rank {of}" if several else "")
        for label, partner, share, predicted, loss, sample, of in zip(
            *(
                column[order].tolist()
                for column in (
                    samples.labels,
                    samples.partners,
                    samples.shares,
                    samples.predicted,
                    samples.losses,
                    samples.ids,
                    samples.ranks,
                )
            ),
            strict=True,
        )
    ]
    target = folder.replays / step_name(record.step)
    with folder_atomic(target, replace=True) as temporary:
        replayed.save(temporary)
        draw_replay(
            temporary / _PICTURE,
            title=f"{folder.name}, step {record.step}: loss {loss_figure(record.loss)}, "
            f"accuracy {percent(record.accuracy, 1)}, the highest losses of {counted(record.samples, 'sample')}",
            images=replayed.pixels()[order].numpy(),
            captions=captions,
            right=samples.right[order].tolist(),
            norms=replayed.gradient_norms,
        )
    return target


def _describe_step(replayed: Replay, path: Path) -> list[str]:
    from cifar_dist.training.recomputation import different_numbers

    record, recorded = replayed.record, replayed.recorded
    different = different_numbers(record, recorded)
    if "loss" in different:
        verdict = f"differs by {abs(record.loss - recorded.loss):.3g}"
    else:
        verdict = "equal to the last digit"
        for name in different:
            verdict += f"; {name} {getattr(record, name)!r}, recorded {getattr(recorded, name)!r}"
    return [
        f"step {record.step}, recomputed from step {replayed.began}",
        f"loss {record.loss!r}, recorded {recorded.loss!r}: {verdict}",
        f"picture: {path / _PICTURE}",
        f"tables: {path}",
    ]


def _describe_stretches(stretches: list[Stretch], path: Path) -> list[str]:
    lines = []
    for stretch in stretches:
        numbers = "equal" if stretch.differs_at is None else f"differ from step {stretch.differs_at} on"
        saved = _in_words("checkpoint", stretch.different_tensors)
        evaluated = _in_words("evaluation", stretch.different_evaluations)
        lines.append(f"steps {stretch.began + 1} to {stretch.ended}: numbers {numbers}{saved}{evaluated}")
    return [*lines, f"certificate: {path}"]


def _in_words(name: str, different: tuple[str, ...] | None) -> str:
    """Say in which parts something differs; empty if it was not compared."""
    if different is None:
        return ""
    return f", {name} differs in {' and '.join(different)}" if different else f", {name} equal"
