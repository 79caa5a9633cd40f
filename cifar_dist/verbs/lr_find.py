"""``cifar-dist lr-find RECIPE``: the learning-rate range test."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE, EXIT_REQUEUE
from cifar_dist.verbs.arguments import at_least, positive

HELP = "find a recipe's learning rate by a range test"
COLLECTIVE = True


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s RECIPE [options] [--section.field VALUE ...]"
    verb.add_argument("recipe", help="a shipped recipe, or the path of a .toml")
    verb.add_argument("--low", type=positive, default=1e-6, metavar="LR", help="rate of the first step (default: 1e-6)")
    verb.add_argument("--high", type=positive, default=1.0, metavar="LR", help="rate of the last one (default: 1)")
    verb.add_argument("--steps", type=at_least(20), default=100, metavar="N", help="default: 100")
    verb.add_argument(
        "--suggest", choices=["steepest", "valley"], default="valley", help="the rate to take (default: valley)"
    )
    verb.add_argument(
        "--write", type=Path, metavar="FILE.toml", help="put it into this recipe; a new file is based on RECIPE"
    )
    verb.set_defaults(settings=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist import recipe

    if arguments.low >= arguments.high:
        raise UserError(f"--low {arguments.low:g} must be below --high {arguments.high:g}")
    config = recipe.load(arguments.recipe, arguments.settings)
    if arguments.write is not None:
        recipe.check_writable(arguments.write)

    from cifar_dist.distributed.stop_signals import StopSignals

    with StopSignals() as signals:
        from cifar_dist.distributed.agreement import StopRequested
        from cifar_dist.distributed.engine import Engine
        from cifar_dist.tracking.console import PLAIN_INTERVAL
        from cifar_dist.training.range_test import keep, lr_find

        engine = Engine(
            config.train, clip_norm=config.optim.clip_norm, sam_rho=config.optim.sam_rho, processes=config.run.processes
        )

        if engine.is_main and engine.precision.advice:
            print(f"warning: {engine.precision.advice}", file=sys.stderr, flush=True)
        said = time.monotonic()

        def show(step: int, lr: float, loss: float) -> None:
            nonlocal said
            if engine.is_main and (step % 10 == 0 or time.monotonic() - said >= PLAIN_INTERVAL):
                said = time.monotonic()
                print(f"step {step}/{arguments.steps}  lr {lr:.3g}  loss {loss:.4f}", flush=True)

        try:
            curve = lr_find(
                config,
                engine,
                signals,
                low=arguments.low,
                high=arguments.high,
                steps=arguments.steps,
                show=show,
            )
            kept = engine.decide(lambda: keep(curve, config))
        except StopRequested:
            return EXIT_REQUEUE
        finally:
            engine.close()
    if engine.is_main:
        from cifar_dist.report.lr_curve import draw_lr_curve

        print(f"curve: {draw_lr_curve(curve, kept.parent / 'figures' / 'lr_curve.png')}")
        steepest, valley = curve.steepest(), curve.valley()
        print(f"{config.optim.name}: valley {valley:.3g}, steepest {steepest:.3g}")
        lr = float(f"{valley if arguments.suggest == 'valley' else steepest:.3g}")
        if arguments.write is not None:
            recipe.write_lr(arguments.write, lr, base=arguments.recipe, settings=arguments.settings)
            print(f"optim.lr = {lr:g}: {arguments.write}")
        else:
            print(f"take it with --optim.lr {lr:g}")
    return EXIT_DONE
