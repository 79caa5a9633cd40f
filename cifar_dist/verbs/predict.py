"""``cifar-dist predict``."""

from __future__ import annotations

import argparse
from dataclasses import replace

from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import add_checkpoint, add_run, add_views, user_path, with_views
from cifar_dist.verbs.loading import loading
from cifar_dist.verbs.output import check_writable, stream_for_people

HELP = "predict an unlabelled set and write an ID,Labels file"
COLLECTIVE = True


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_run(verb)
    verb.add_argument(
        "unlabelled",
        type=user_path,
        help="a folder or archive of images, a pickle or npz with data and ids, or a packed dataset",
    )
    verb.add_argument(
        "--out", type=user_path, required=True, metavar="FILE.csv", help="file to write the ID,Labels rows to"
    )
    verb.add_argument(
        "--labels",
        choices=["auto", "name", "index"],
        default="auto",
        help="write classes by name or by index (default: by name if the run was trained on class folders)",
    )
    add_views(verb)
    add_checkpoint(verb)


def run(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.distributed.start import start_engine
        from cifar_dist.distributed.stop_signals import StopSignals
        from cifar_dist.evaluation.predict_file import predict_file
        from cifar_dist.evaluation.trained import agree_on_weights, open_trained
        from cifar_dist.run_folder import find_run

    run = find_run(arguments.run, checkpoint="with --checkpoint")
    inputs = (arguments.unlabelled, arguments.checkpoint, *run.essential)
    check_writable(arguments.out, "--out", *inputs)
    trained = open_trained(run, arguments.checkpoint)
    trained = replace(trained, config=with_views(trained.config, arguments))
    with StopSignals() as signals, start_engine(trained.config, signals, trains=False) as engine:
        trained = agree_on_weights(trained, engine.ranks)
        rows = predict_file(engine, trained, arguments.unlabelled, arguments.out, arguments.labels, engine.poll)
    if engine.ranks.is_main:
        said = f"{rows} predictions, TTA {trained.config.distinct_tta}, {trained.weights.name}: {arguments.out}"
        print(said, file=stream_for_people(arguments.out))
    return EXIT_DONE
