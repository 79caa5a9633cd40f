"""``cifar-dist lr-find RECIPE``: the learning-rate range test."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.formatting import loss_figure
from cifar_dist.terminal.notice import warn
from cifar_dist.verbs.arguments import add_recipe, at_least, rate, user_path
from cifar_dist.verbs.loading import loading
from cifar_dist.verbs.output import refuse_lasting

if TYPE_CHECKING:
    from cifar_dist.config import Config
    from cifar_dist.optim.lr_curve import Curve

HELP = "find a recipe's learning rate with a range test"
COLLECTIVE = True

_SPREAD = 10  # between the highest and the lowest rate of the seeds: beyond it the test cannot tell


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s RECIPE [options] [--section.field VALUE ...]"
    add_recipe(verb)
    verb.add_argument("--low", type=rate, default=1e-6, metavar="LR", help="rate of the first step (default: 1e-6)")
    verb.add_argument("--high", type=rate, default=1.0, metavar="LR", help="rate of the last step (default: 1)")
    verb.add_argument("--steps", type=at_least(20), default=100, metavar="N", help="number of steps (default: 100)")
    verb.add_argument(
        "--seeds",
        type=at_least(1),
        metavar="N",
        help="tests to average, each with its own seed (default: 3 below a million parameters, else 1)",
    )
    verb.add_argument(
        "--suggest",
        choices=["steepest", "valley"],
        default="valley",
        help="rate to print and to write: the middle of the longest fall, or where it is steepest (default: valley)",
    )
    verb.add_argument(
        "--write",
        type=user_path,
        metavar="FILE.toml",
        help="write the rate to this recipe; a new file is based on RECIPE",
    )
    verb.set_defaults(settings=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist import recipe
    from cifar_dist.verbs.recipe_lr import require_recipe, write_lr

    if arguments.low >= arguments.high:
        raise UserError(f"--low {arguments.low:g} must be below --high {arguments.high:g}")
    config = recipe.load(arguments.recipe, arguments.settings)
    _refuse_checkpoint(config)
    if arguments.write is not None:
        refuse_lasting(arguments.write, "--write")
        require_recipe(arguments.write, config)

    from cifar_dist.distributed.stop_signals import StopSignals

    with StopSignals() as signals:
        with loading():
            from cifar_dist.distributed.start import start_engine
            from cifar_dist.optim.lr_curve import mean_curve
            from cifar_dist.training.range_test import require_place, run_range_tests, save_curve

        with start_engine(config, signals) as engine:
            engine.ranks.run_on_main(lambda: require_place(config))
            if engine.ranks.is_main and engine.precision.advice:
                warn(engine.precision.advice)
            curves = run_range_tests(
                config,
                engine,
                low=arguments.low,
                high=arguments.high,
                steps=arguments.steps,
                seeds=arguments.seeds,
                showing=partial(_showing, arguments.steps, engine.ranks.is_main),
            )
            curve = mean_curve(curves)
            path = engine.ranks.run_on_main(lambda: save_curve(curve, config))
    if engine.ranks.is_main:
        from cifar_dist.report.lr_curve import draw_lr_curve
        from cifar_dist.run_folder import RunFolder

        with loading("drawing"):
            picture = draw_lr_curve(curve, RunFolder(path.parent).lr_curve_picture).path
        print(f"curve: {picture}")
        steepest, valley = curve.steepest(), curve.valley()
        mean = f", mean of {len(curves)} seeds" if len(curves) > 1 else ""
        print(f"{config.optim.name}: valley {valley:.3g}, steepest {steepest:.3g}{mean}")
        if doubt := _doubt(curves, arguments.high):
            print(f"warning: {doubt}", flush=True)
        lr = float(f"{valley if arguments.suggest == 'valley' else steepest:.3g}")
        if arguments.write is not None:
            write_lr(arguments.write, lr, base=arguments.recipe, settings=arguments.settings)
            print(f"optim.lr = {lr:g}: {arguments.write}")
        else:
            print(f"use it with --optim.lr {lr:g}")
    return EXIT_DONE


def _refuse_checkpoint(config: Config) -> None:
    """Refuse ``run.from``, which the recipe of a branch has: its rate would be that of new weights."""
    if config.run.from_:
        from cifar_dist.run_folder import RunFolder

        words = ['--run.from ""']
        words += ["--run.from_other_data false"] if config.run.from_other_data else []
        words += ["--run.name NEW"] if RunFolder.of(config).exists() else []
        raise UserError(
            "run.from has no effect on a range test, which does not begin with a checkpoint; "
            f"use {' '.join(words)}, and --model.pretrained FILE to begin with its weights"
        )


def _doubt(curves: Sequence[Curve], high: float) -> str:
    """Say in one line why the test cannot tell a rate; empty if it can."""
    if all(curve.still_falls() for curve in curves):
        return f"the loss still falls at the last rate, so higher ones may train too; use a --high above {high:g}"
    valleys = []
    for curve in curves:
        with contextlib.suppress(UserError):  # of a seed that learnt too little
            valleys.append(curve.valley())
    if lacking := len(curves) - len(valleys):
        return f"{lacking} of {len(curves)} seeds learnt too little to suggest a rate; use more --steps or --seeds"
    if max(valleys) > _SPREAD * min(valleys):
        return f"the seeds disagree, valley {min(valleys):.3g} to {max(valleys):.3g}; use more --steps or --seeds"
    return ""


@contextlib.contextmanager
def _showing(steps: int, is_main: bool, test: int) -> Iterator[Callable[[int, float, float], None]]:
    """Print every tenth step, and at least one every PLAIN_INTERVAL seconds, above a bar if there is a terminal."""
    from cifar_dist.terminal.progress import progress
    from cifar_dist.terminal.screen import is_terminal
    from cifar_dist.tracking.console import PLAIN_INTERVAL

    printed = time.monotonic()

    seed = f"seed {test + 1}  " if test else ""
    with progress(f"{seed}range test", steps, "steps", show=is_main and is_terminal(sys.stderr)) as advance:

        def show(step: int, lr: float, loss: float) -> None:
            nonlocal printed
            advance(1)
            if is_main and (step % 10 == 0 or time.monotonic() - printed >= PLAIN_INTERVAL):
                printed = time.monotonic()
                print(f"{seed}step {step}/{steps}  lr {lr:.3g}  loss {loss_figure(loss)}", flush=True)

        yield show
