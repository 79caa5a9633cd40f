"""``cifar-dist evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import CHECKPOINT, RUN, TTA, checked_tta, user_path
from cifar_dist.verbs.report import draw

HELP = "evaluate a checkpoint of a run with test-time augmentation"
COLLECTIVE = True


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help=RUN)
    verb.add_argument("--tta", help=TTA)
    verb.add_argument("--data", type=user_path, help="a packed dataset (default: that of the training)")
    verb.add_argument("--split", default="test", help="split to evaluate (default: test)")
    verb.add_argument("--checkpoint", default="best", help=CHECKPOINT)


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist.data.manifest import Manifest
    from cifar_dist.distributed.start import start_engine
    from cifar_dist.evaluation.evaluate import evaluate
    from cifar_dist.evaluation.trained import load_model, open_trained
    from cifar_dist.run_folder import find_run

    run_path = find_run(arguments.run)
    trained = open_trained(run_path, arguments.checkpoint)
    tta = checked_tta(arguments.tta, trained.config.eval.tta)
    if not arguments.data and not Path(trained.config.data.path).is_dir():
        raise UserError(
            f"{trained.config.data.path}, the dataset of {run_path}, does not exist here; name it with --data DIR"
        )
    data = Manifest.load(arguments.data or trained.config.data.path)
    with start_engine(trained.config, trains=False) as engine:
        folder, summary = evaluate(
            load_model(engine, trained),
            trained.config,
            trained.run,
            trained.weights,
            data,
            arguments.split,
            tta,
            trained_on=trained.trained_on,
            show=True,
        )
    if engine.ranks.is_main:
        accuracy = "no labels" if summary.accuracy is None else f"accuracy {summary.accuracy:.2%}"
        if data.fingerprint != trained.trained_on.fingerprint:
            print(f"{data.root} is another dataset than {trained.trained_on.name}, which the run was trained on")
        print(f"{arguments.split}: {accuracy} on {summary.samples} samples, TTA {tta}, {summary.checkpoint}: {folder}")
        draw(run_path)
    return EXIT_DONE
