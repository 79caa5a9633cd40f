"""``cifar-dist evaluate``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.formatting import counted, list_renamed
from cifar_dist.runs.reports import draw
from cifar_dist.terminal.screen import fold, table_width
from cifar_dist.verbs.arguments import SPLIT_NAME, add_checkpoint, add_run, add_views, user_path, with_views
from cifar_dist.verbs.loading import loading

HELP = "evaluate a checkpoint of a run with test-time augmentation"
COLLECTIVE = True


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_run(verb)
    add_views(verb)
    verb.add_argument("--data", type=user_path, help="a packed dataset (default: that of the training)")
    verb.add_argument("--split", type=SPLIT_NAME, help="split to evaluate (default: the run's)")
    add_checkpoint(verb)


def run(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.data.manifest import Manifest
        from cifar_dist.distributed.same_dataset import open_dataset
        from cifar_dist.distributed.start import start_engine
        from cifar_dist.distributed.stop_signals import StopSignals
        from cifar_dist.evaluation.evaluate import evaluate
        from cifar_dist.evaluation.trained import agree_on_weights, load_model, open_trained
        from cifar_dist.run_folder import find_run
        from cifar_dist.run_folder.opening import refuse_missing_data, refuse_read_only
        from cifar_dist.terminal.progress import progress

    trained = open_trained(find_run(arguments.run, checkpoint="with --checkpoint"), arguments.checkpoint)
    trained = replace(trained, config=with_views(trained.config, arguments))
    split = arguments.split or trained.config.eval.split
    if not arguments.data:
        refuse_missing_data(trained.run, trained.config.data.path, "--data")
    refuse_read_only(trained.run, trained.run.evaluations, "the evaluation")
    data = Manifest.load(arguments.data or trained.config.data.path)
    if split not in data.splits:
        raise UserError(f"{data.root} has no split '{split}'; use --split {' or '.join(data.splits)}")
    with StopSignals() as signals, start_engine(trained.config, signals, trains=False) as engine:
        trained, data = agree_on_weights(trained, engine.ranks), open_dataset(data.root, engine.ranks)
        folder, summary = evaluate(
            load_model(engine, trained),
            trained.config,
            trained.run,
            trained.weights,
            data,
            split,
            trained_on=trained.trained_on,
            poll=engine.poll,
            show=partial(progress, f"evaluating {split}", show=engine.ranks.is_main),
        )
    if engine.ranks.is_main:
        if data.fingerprint != trained.trained_on.fingerprint:
            _say(f"{data.root} is another dataset than {trained.trained_on.name}, which the run was trained on")
        else:
            if difference := data.difference(trained.trained_on):
                _say(f"{data.root} differs from what the run was trained on {difference}")
            if renamed := list_renamed(trained.trained_on.classes, data.classes):
                _say(f"{data.root} names classes otherwise than the run, which keeps its names: {renamed}")
            if trained.config.trains_on(split):
                _say(f"the run was trained on the split {split}")
        tta = trained.config.eval.tta
        if summary.tta != tta:
            _say(f"TTA {tta} with the augmentation of this run repeats views; TTA {summary.tta} has the distinct ones")
        _say(f"{split}: {summary.result()}, {counted(summary.samples, 'image')}, {summary.checkpoint}: {folder}")
        if warning := summary.warning():
            _say(f"warning: {warning}")
        draw(trained.run, data.root)
    return EXIT_DONE


def _say(line: str) -> None:
    """Print a line that a terminal does not break inside a word."""
    width = table_width(sys.stdout)
    print(line if width is None else fold(line, width))
