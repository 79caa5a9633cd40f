"""The commands of ``slurm/train.sbatch``: ``python -m cifar_dist.slurm COMMAND ...``.

::

    preflight RECIPE [--section.field VALUE ...]          on the first node: prints the run's folder, its newest
                                                          checkpoint, whether to `train` or to `resume` it, and the
                                                          number of events in its timeline, or `finished`
    node VERB FOLDER RECIPE [--section.field VALUE ...]   on every node, under srun: does that
                                                          both take `resume RUN` in place of RECIPE
    requeue FOLDER BEGAN_AT BEFORE EXIT_CODE JOB_STATE RESTARTS MAY_REQUEUE NODES_LEFT
                                                          on the first node: prints the outcome and the job's exit code;
                                                          BEGAN_AT and BEFORE are the second and the last line of
                                                          preflight

Output for programs goes to stdout, output for people to stderr, as does what plug-ins and libraries print.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from cifar_dist.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_STALLED
from cifar_dist.launch.launched import attempt_number
from cifar_dist.process_exit import exit_with
from cifar_dist.run_folder import RunFolder
from cifar_dist.slurm.job_output import describe_attempt, say
from cifar_dist.step_folder import step_of

_FINISHED = "finished"  # before the attempt: there was nothing to do


def preflight(words: Sequence[str], answer: TextIO) -> int:
    """Check the job, and print the run's folder, its newest checkpoint, what to do and what was, one per line."""
    from cifar_dist.slurm.preflight import check_job
    from cifar_dist.tracking import timeline
    from cifar_dist.training.continuation import is_finished

    job, nodes = os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NODELIST"]
    config, verb = check_job(words, os.environ)
    folder = RunFolder.of(config)
    before = _FINISHED if is_finished(config) else len(timeline.read(folder.timeline))
    say(describe_attempt(job, attempt_number(os.environ), nodes, folder))
    print(folder.path, folder.newest_checkpoint(), verb, before, sep="\n", file=answer)
    return EXIT_DONE


def node(words: Sequence[str]) -> int:
    """Train on this node; return the exit code for ``srun``.

    All nodes agree on 75, stopped on request. ``srun`` would treat that as a failure and kill the nodes that need a
    moment longer, so it is reported as 0; the run folder shows that the run is not finished.
    """
    from cifar_dist.runs.resume import settings_of_resume
    from cifar_dist.slurm.node import MIN_NODES, positive, run_node
    from cifar_dist.slurm.options import RESUME

    verb, path, *rest = words
    if rest[0] == RESUME:
        collective = rest
    elif verb == RESUME:
        collective = [RESUME, path, *settings_of_resume(rest[1:])]
    else:  # the first attempt may have created the folder, and no more
        fresh = ["--run.fresh", "false"] if attempt_number(os.environ) > 1 else []
        collective = ["train", *rest, *fresh, "--run.name", Path(path).name]
    code = run_node(collective, os.environ)
    if code != EXIT_REQUEUE:
        return code
    if os.environ["SLURM_NODEID"] == "0" and positive(os.environ, MIN_NODES):
        with contextlib.suppress(OSError):  # the job runs again without that line, too, unless a node was lost
            _note_stop(RunFolder(Path(path)))
    return EXIT_DONE


def _note_stop(folder: RunFolder) -> None:
    """Add to the timeline that an elastic job stopped on request, if no rank could: between two groups of ranks."""
    from cifar_dist.tracking import timeline

    last = timeline.last_of_a_process(timeline.read(folder.timeline))
    if last is None or last.kind in ("interrupted", "finished"):
        return
    step = step_of(Path(folder.newest_checkpoint())) or 0
    note = "while no rank was running"
    timeline.append(folder.timeline, timeline.Event(timeline.utc(), "interrupted", step, note=note))


def requeue(words: Sequence[str], answer: TextIO) -> int:
    """Print the outcome of the job, and its exit code unless Slurm requeues it."""
    from cifar_dist.slurm.requeue import Attempt, decide
    from cifar_dist.tracking import timeline

    path, began_at, before, step_code, job_state, restarts, may_requeue, left = words
    folder, number = RunFolder(Path(path)), attempt_number(os.environ)
    kinds = [event.kind for event in timeline.read(folder.timeline)][0 if before == _FINISHED else int(before) :]
    decision = decide(
        Attempt(
            run=str(folder.path),
            number=number,
            job_state=job_state,
            requeued=int(restarts or 0) >= number,  # Slurm counts a restart as soon as it decides on it
            may_requeue=may_requeue != "0",
            exit_code=_agreed_code(kinds, int(step_code), int(left)),
            # A run that was to be extended stays finished until its ranks have joined.
            finished=folder.is_finished() and (before == _FINISHED or "finished" in kinds),
            began_at=began_at,
            stopped_at=folder.newest_checkpoint(),
            stop_file=folder.stop_file.is_file(),
        )
    )
    if decision.line:
        say(decision.line)
    print(decision.outcome, decision.exit_code, file=answer)
    return EXIT_DONE


def _answer() -> TextIO:
    """Return standard output, for the answer alone: what else this process prints goes to standard error from now."""
    answer = open(os.dup(1), "w", buffering=1, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    os.dup2(2, 1)
    return answer


def _agreed_code(kinds: Sequence[str], code: int, left: int) -> int:
    """Return the exit code that the nodes agreed on, from that of their step.

    A node that is killed hides it, because 128 and more is the highest: one that Slurm ends as others stalled, or one
    that was lost while others continued. The timeline knows how the others ended. If too few are left to continue,
    they fail, and the job needs others.

    Args:
        kinds: of the events in it since the attempt began.
        code: of the step.
        left: nodes that the job still has.
    """
    from cifar_dist.slurm.node import MIN_NODES, positive

    least = min(positive(os.environ, MIN_NODES), int(os.environ.get("SLURM_JOB_NUM_NODES", "1")))
    if 0 < left < least and (code == EXIT_FAILED or code > 128):
        return EXIT_REQUEUE
    if code <= 128:
        return code
    agreed: dict[str, int] = {"stalled": EXIT_STALLED}
    if least:
        agreed |= {"interrupted": EXIT_REQUEUE, "finished": EXIT_DONE}
    return agreed.get(kinds[-1], code) if kinds else code


def main(command: str, words: Sequence[str]) -> int:
    """Run a command, and return the exit code."""
    answering = {"preflight": preflight, "requeue": requeue}
    return answering[command](words, _answer()) if command in answering else node(words)


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1], sys.argv[2:]))
