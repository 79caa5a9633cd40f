"""The commands of ``slurm/train.sbatch``: ``python -m cifar_dist.slurm COMMAND ...``.

::

    preflight RECIPE [--section.field VALUE ...]          on the first node: prints the run's folder, its newest
                                                          checkpoint, and whether to `train` or to `resume` it
    node VERB FOLDER RECIPE [--section.field VALUE ...]   on every node, under srun: does that
                                                          both take `resume RUN` in place of RECIPE
    requeue FOLDER BEGAN_AT EXIT_CODE JOB_STATE RESTARTS MAY_REQUEUE
                                                          on the first node: prints the outcome and the job's exit code

Output for programs goes to stdout, output for people to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cifar_dist.exit_codes import EXIT_DONE, EXIT_REQUEUE, EXIT_STALLED
from cifar_dist.process_exit import exit_with
from cifar_dist.run_folder import RunFolder
from cifar_dist.slurm.job_output import describe_attempt, say


def preflight(words: Sequence[str]) -> int:
    """Check the job, and print the run's folder, its newest checkpoint and what to do, one per line."""
    from cifar_dist.slurm.preflight import check_job

    job, nodes = os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NODELIST"]
    folder, verb = check_job(words, os.environ)
    say(describe_attempt(job, _attempt(), nodes, folder))
    print(f"{folder.path}\n{folder.newest_checkpoint()}\n{verb}")
    return EXIT_DONE


def node(words: Sequence[str]) -> int:
    """Train on this node."""
    from cifar_dist.runs.resume import settings_of_resume
    from cifar_dist.slurm.node import run_node
    from cifar_dist.slurm.preflight import RESUME

    verb, path, *rest = words
    if rest[0] == RESUME:
        return run_node(rest, os.environ)
    if verb == RESUME:
        return run_node([RESUME, path, *settings_of_resume(rest[1:])], os.environ)
    fresh = ["--run.fresh", "false"] if _attempt() > 1 else []  # the first may have created the folder, and no more
    return run_node(["train", *rest, *fresh, "--run.name", Path(path).name], os.environ)


def requeue(words: Sequence[str]) -> int:
    """Print the outcome of the job, and its exit code unless Slurm requeues it."""
    from cifar_dist.slurm.requeue import Attempt, decide

    path, began_at, step_code, job_state, restarts, may_requeue = words
    folder = RunFolder(Path(path))
    decision = decide(
        Attempt(
            run=str(folder.path),
            number=_attempt(),
            job_state=job_state,
            requeued=int(restarts or 0) >= _attempt(),  # Slurm counts a restart as soon as it decides on it
            may_requeue=may_requeue != "0",
            exit_code=_agreed_code(folder, int(step_code)),
            finished=folder.is_finished(),
            began_at=began_at,
            stopped_at=folder.newest_checkpoint(),
            stop_file=folder.stop_file.is_file(),
        )
    )
    if decision.line:
        say(decision.line)
    print(decision.outcome, decision.exit_code)
    return EXIT_DONE


def _agreed_code(folder: RunFolder, code: int) -> int:
    """Return the exit code that the nodes agreed on, from that of their step.

    A node that is killed hides it, because 128 and more is the highest: one that Slurm ends as others stalled, or one
    that was lost while others continued. The timeline knows how the others ended.
    """
    from cifar_dist.slurm.node import MIN_NODES
    from cifar_dist.tracking import timeline

    if code <= 128:
        return code
    agreed: dict[str, int] = {"stalled": EXIT_STALLED}
    if os.environ.get(MIN_NODES):
        agreed |= {"interrupted": EXIT_REQUEUE, "finished": EXIT_DONE}
    return next((agreed.get(event.kind, code) for event in timeline.read(folder.timeline)[-1:]), code)


def _attempt() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"preflight": preflight, "node": node, "requeue": requeue}

if __name__ == "__main__":
    exit_with(lambda: _COMMANDS[sys.argv[1]](sys.argv[2:]))
