"""``cifar-dist doctor [RECIPE]``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_BAD_INPUT, EXIT_DONE
from cifar_dist.formatting import counted
from cifar_dist.verbs.arguments import RECIPE, RECIPE_NAME
from cifar_dist.verbs.loading import loading

if TYPE_CHECKING:
    from cifar_dist.config import Config
    from cifar_dist.distributed.stop_signals import StopSignals
    from cifar_dist.doctor.finding import Finding

HELP = "check whether a recipe works here, and measure how long it takes; also inside a job: srun cifar-dist doctor"
COLLECTIVE = True


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s [RECIPE] [--section.field VALUE ...]"
    about = f"{RECIPE}; if omitted, check the machine only"
    verb.add_argument("recipe", nargs="?", type=RECIPE_NAME, help=about)
    verb.set_defaults(settings=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist import recipe
    from cifar_dist.distributed.stop_signals import StopSignals

    words = [arguments.recipe, *arguments.settings] if arguments.recipe else arguments.settings
    if variables := node_of_srun(os.environ):
        from cifar_dist.slurm.node import run_node

        return run_node(["doctor", *words], variables)
    config: Config | None = None
    if words:
        config = recipe.load(arguments.recipe or "", arguments.settings)
    with StopSignals() as signals:
        return _examine(config, signals)


def node_of_srun(variables: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables of Slurm with which this process must start the ranks of its node.

    Returns:
        Nothing where this process is a rank, or the only one of the job.

    Raises:
        UserError: ``srun`` has started several on a node.
    """
    if "SLURM_STEP_NUM_TASKS" not in variables or "RANK" in variables:
        return {}
    from cifar_dist.slurm.node import Node

    tasks, nodes = (int(variables.get(name) or 1) for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"))
    if tasks == 1:  # perhaps in a job of several nodes
        alone = {**variables, "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
        return alone if Node.from_environment(alone).processes > 1 else {}
    if tasks != nodes:
        raise UserError(
            f"srun started {counted(tasks, 'task')} on {counted(nodes, 'node')}; start one on each, which "
            "starts its ranks: srun --ntasks-per-node=1 cifar-dist doctor"
        )
    return variables


def _examine(config: Config | None, signals: StopSignals) -> int:
    from cifar_dist.config import Config, TrainConfig

    with loading():
        from cifar_dist.distributed.start import start_engine
        from cifar_dist.doctor.examine import examine
        from cifar_dist.doctor.finding import Verdict, print_table

    checked = config or Config(train=TrainConfig(precision="auto"))
    with start_engine(checked, signals, trains=config is not None) as engine:
        rows = print_table(_each(examine(config, engine)), sys.stdout if engine.ranks.is_main else None)
        failed = engine.ranks.run_on_main(lambda: any(row.verdict is Verdict.FAILED for row in rows))
    return EXIT_BAD_INPUT if failed else EXIT_DONE


def _each(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Say that something is being tried until the next finding is there."""
    while True:
        with loading("trying the next steps"):
            found = next(findings, None)
        if found is None:
            return
        yield found
