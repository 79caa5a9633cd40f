"""Refuse a job that cannot train, whatever it trains, before it waits in a queue."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from cifar_dist.distributed.time_limit import refuse_short_limit
from cifar_dist.doctor.grace import lead_of_signal
from cifar_dist.errors import UserError, quoted
from cifar_dist.exit_codes import GRACE_SECONDS
from cifar_dist.slurm.options import Options, asked


def check_options(options: Options, variables: Mapping[str, str], script: Path, *, max_time: str) -> None:
    """Refuse options with which Slurm or the run itself ends the job before it has trained.

    Args:
        options: of the command line.
        variables: the environment.
        script: that will be submitted, or from which it is derived.
        max_time: ``run.max_time``.

    Raises:
        UserError: the time limit is too short to train, the folder for the output does not exist, or the job would
            run in another folder, as another program or on fewer nodes than asked for.
    """
    in_script = Options.of_script(script)
    for names in (("-o", "--output"), ("-e", "--error")):
        source, pattern = asked(names, options, variables, in_script)
        folder = Path(pattern).parent
        if "%" not in str(folder) and not folder.is_dir():
            raise UserError(
                f"{source}: the folder {folder} does not exist, and Slurm would end the job without any output; "
                f"create it: mkdir -p {quoted(folder)}"
            )
    if folder_asked := options.value("-D", "--chdir"):
        raise UserError(
            f"--chdir={folder_asked}: a run is found, and finds its data, from the folder of this command; "
            f"drop it, or run this command there: cd {quoted(folder_asked)}"
        )
    nodes, tasks = options.value("-N", "--nodes"), options.value("-n", "--ntasks")
    if nodes.isdecimal() and tasks.isdecimal() and int(tasks) < int(nodes):
        raise UserError(f"--ntasks={tasks} would take {tasks} of {nodes} nodes: each runs one task; drop it")
    if wrapped := options.value("--wrap"):
        raise UserError(f"--wrap={wrapped}: the job has a script of its own; drop it")
    source, text = asked(("-t", "--time"), options, variables, in_script)
    if (limit := seconds_of_limit(text)) == math.inf:
        return
    if max_time == "auto":
        refuse_short_limit(limit, GRACE_SECONDS, "run.max_time auto", source)
    stopper, signal = asked(("--signal",), options, variables, in_script)
    if signal:
        refuse_short_limit(limit, lead_of_signal(signal), stopper, source)


def seconds_of_limit(text: str) -> float:
    """Return the seconds that Slurm grants for a time limit, whole minutes; infinity for none.

    Its forms are minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes and
    days-hours:minutes:seconds. ``sbatch`` itself refuses any other.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        return math.inf
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # hours
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    return math.ceil(total / 60) * 60 or math.inf
