"""Submit a sweep as one Slurm job array, with a task of ``slurm/sweep.sbatch`` for each unfinished run."""

from __future__ import annotations

import errno
import os
import shlex
from dataclasses import replace
from typing import Final

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.slurm import sbatch
from cifar_dist.slurm.before_queue import check_options
from cifar_dist.slurm.options import Options
from cifar_dist.slurm.preflight import check_site
from cifar_dist.sweeps.sweep import Sweep

_SCRIPT: Final = "sweep.sbatch"


def submit(sweep: Sweep, options: Options, jobs: int | None = None) -> int:
    """Submit the unfinished runs and print one line; return the exit code of ``sbatch``, with ``--wait`` the job's.

    The job contains the words of every run, so the sweep file may change while the job is queued, and the variables of
    the site, which a job with ``--export=NONE`` does not inherit.

    Args:
        sweep: what to train.
        options: of Slurm.
        jobs: how many tasks may run at a time; None: no limit.

    Raises:
        UserError: Slurm is not installed or accepts no job, or no task of the job could train.
    """
    if options.array:
        raise UserError(f"--array={options.array}: a sweep numbers its tasks itself; drop it, or limit them: --jobs 8")
    script = sbatch.script_path(_SCRIPT)
    configs = {row.name: row.runs[0].config for row in sweep.rows}
    for name, config in configs.items():
        check_options(options, os.environ, script, max_time=config.run.max_time)
        try:
            check_site(config, os.environ)
        except UserError as error:
            raise UserError(f"row '{name}': {error}") from None
    waiting = [run for run in sweep.runs if not run.is_intact()]
    if not waiting:
        print(f"{sweep.name}: {sweep.all_finished}")
        return EXIT_DONE
    lines = ["\t".join(run.words) for run in waiting]
    for run, line in zip(waiting, lines, strict=True):
        if line.count("\t") + 1 != len(run.words) or "\n" in line:
            raise UserError(
                f"{run.name}: a setting contains a tab or a line break, which slurm/sweep.sbatch cannot pass on"
            )
    sbatch.check_sbatch(otherwise="cifar-dist sweep run")
    variables = [f"{name}={value}" for name, value in sbatch.site_variables(options).items()]
    array = [f"--array=0-{len(waiting) - 1}{f'%{jobs}' if jobs else ''}", f"--job-name={shlex.quote(sweep.name)}"]
    try:
        job = sbatch.submit(script, [*variables, *lines], replace(options, sbatch=[*array, *options.sbatch]))
    except (OSError, UserError) as error:
        raise _too_many(len(waiting), error) from None
    print(f"{sweep.name}: job {job.id}, {len(waiting)} of {sweep.size}", flush=True)
    return job.wait()


def _too_many(runs: int, error: OSError | UserError) -> OSError | UserError:
    """Return ``error``, with what to do if it means that one job cannot have so many runs."""
    remedy = "split the rows of the sweep into several files"
    if isinstance(error, OSError):
        return UserError(f"{runs} runs are too long for one command; {remedy}") if error.errno == errno.E2BIG else error
    if "array" not in str(error):
        return error
    return UserError(
        f"{error}; one job may have fewer than {runs} tasks (scontrol show config: MaxArraySize); {remedy}"
    )
