"""Submit a sweep as one Slurm job array, with a task of ``slurm/sweep.sbatch`` for each unfinished run."""

from __future__ import annotations

from collections.abc import Sequence

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.slurm import sbatch
from cifar_dist.sweeps.sweep import Sweep


def submit(sweep: Sweep, options: Sequence[str], jobs: int | None = None) -> int:
    """Submit the unfinished runs and print one line; return the exit code of ``sbatch``, with ``--wait`` the job's.

    The job contains the words of every run, so the sweep file may change while the job is queued.

    Args:
        sweep: what to train.
        options: of ``sbatch``.
        jobs: how many tasks may run at a time; None: no limit.

    Raises:
        UserError: Slurm is not installed, or it accepts no job.
    """
    waiting = [run for run in sweep.runs if not run.folder.is_finished()]
    if not waiting:
        print(f"{sweep.name}: all {len(sweep.runs)} runs are finished")
        return EXIT_DONE
    lines = ["\t".join(run.words) for run in waiting]
    for run, line in zip(waiting, lines, strict=True):
        if line.count("\t") + 1 != len(run.words) or "\n" in line:
            raise UserError(
                f"{run.name}: a setting contains a tab or a line break, which slurm/sweep.sbatch cannot pass on"
            )
    array = [f"--array=0-{len(waiting) - 1}{f'%{jobs}' if jobs else ''}", f"--job-name={sweep.name}"]
    sbatch.check_sbatch(otherwise="cifar-dist sweep run")
    job = sbatch.submit(sbatch.SCRIPTS / "sweep.sbatch", lines, [*array, *options])
    print(f"{sweep.name}: job {job.id}, {len(waiting)} of {len(sweep.runs)} runs", flush=True)
    return job.wait()
