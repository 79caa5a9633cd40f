"""``cifar-dist submit RECIPE`` and ``submit resume RUN``: one run as a Slurm job, after the checks that need no job."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterable

from cifar_dist.config.overrides import split_settings
from cifar_dist.errors import UserError, quoted
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.slurm.options import RESUME
from cifar_dist.terminal.notice import notice
from cifar_dist.verbs.arguments import RECIPE_NAME, Name
from cifar_dist.verbs.loading import loading

HELP = "train a recipe on a Slurm cluster, or continue a run there; accepts sbatch options"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.usage = "%(prog)s {RECIPE | resume RUN} [--dry-run] [sbatch options] [--section.field VALUE ...]"
    verb.add_argument(
        "recipe",
        type=Name(_known, ".toml"),
        help="name of a shipped recipe, path of a .toml, or `resume RUN`; must come first",
    )
    verb.add_argument(
        "--dry-run", action="store_true", help="check, show the batch script and the config, and submit nothing"
    )
    verb.set_defaults(settings=[])


def run(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.config.saved import read_config
        from cifar_dist.doctor.before import examine_before
        from cifar_dist.doctor.finding import Verdict, print_table
        from cifar_dist.slurm.before_queue import check_options
        from cifar_dist.slurm.options import Options
        from cifar_dist.slurm.preflight import check_site
        from cifar_dist.slurm.sbatch import check_sbatch, script_path
        from cifar_dist.slurm.submission import TEMPLATE, Submission
        from cifar_dist.training.continuation import is_finished

    settings, words = split_settings(arguments.settings)
    job_words = [arguments.recipe, *settings]
    if arguments.recipe == RESUME:
        if not words or words[0].startswith("-"):
            raise UserError("name the run: cifar-dist submit resume RUN [sbatch options]")
        job_words.insert(1, words[0])
        submission = Submission.of_run(words[0], settings, Options.of_one_run(words[1:], os.environ))
        if len(words) == 1 and submission.options.typed:
            notice(f"with the options of its last job: {submission.options.typed}")
    else:
        submission = Submission.of_recipe(arguments.recipe, settings, Options.of_one_run(words, os.environ))
    config, path = submission.config, submission.folder.path
    check_options(submission.options, os.environ, script_path(TEMPLATE), max_time=config.run.max_time)
    check_site(config, os.environ)
    for row in print_table(examine_before(config, submission.options.processes(os.environ)), sys.stderr):
        if row.verdict is Verdict.FAILED:
            raise UserError("; ".join(filter(None, [row.text, row.remedy])))
    if is_finished(config):
        if config.data.path != read_config(submission.folder.config).data.path:
            way = f"cifar-dist resume {quoted(path)} --data.path {quoted(config.data.path)}"
            raise UserError(f"{path} is finished already and needs no job to read its data elsewhere; use: {way}")
        raise UserError(f"{path} is finished already; another --run.name starts a new run")
    if arguments.dry_run:
        print(f"# ---- {submission.folder.job_script}\n{submission.script()}")
        print(f"# ---- {submission.folder.config}\n{submission.frozen_config()}", end="")
        return EXIT_DONE
    check_sbatch(otherwise=shlex.join(["cifar-dist", "launch", "ddp", *job_words]))
    job = submission.submit()
    print(f"job {job.id}: {path}")
    if not (submission.options.value("-o", "--output") or "SBATCH_OUTPUT" in os.environ):
        task = re.match(r"\d*", submission.options.array)
        log = submission.log.replace("%j", job.id).replace("%A", job.id).replace("%a", task[0] if task else "")
        print(f"watch it: tail -F {log}; {shlex.join(['cifar-dist', 'runs', 'list', config.run.dir])}")
    sys.stdout.flush()  # with --wait, long before the end
    return job.wait()


def _known() -> Iterable[str]:
    return [*RECIPE_NAME.known(), RESUME]
