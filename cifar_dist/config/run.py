"""Settings of the run: its name, its place, its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cifar_dist.config.section import Section, UserPath, require, require_at_least

SHARE_DIR: Final = "choose a --run.dir on a file system that all machines share"
"""What to do where processes do not see one folder."""

# An ASCII name that is safe as a folder name on any file system; no leading dot or dash.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,127}")
_NUMBER = r"\d{1,9}(?:\.\d{1,9})?"
_DURATION = re.compile("".join(f"(?:({_NUMBER}){unit})?" for unit in "dhms"), re.ASCII)


@dataclass(frozen=True)
class RunConfig(Section):
    """The run: its name, folder, seed and number of processes."""

    name: str = ""
    """Name of the run folder; training again with the same name resumes. Empty: the recipe's name."""
    dir: UserPath = "runs"
    """Folder that holds the run folders."""
    seed: int = 0
    """Seed of all randomness: weights, order, augmentation, dropout."""
    fresh: bool = False
    """Refuse to start if the run folder already exists."""
    processes: int = 0
    """Required number of processes; 0 accepts any number that the launcher starts."""
    max_time: str = ""
    """Limit on wall time, such as 45m, 2h or 1h30m, or auto for that of the Slurm job; the run saves before it and
    exits with 75. Empty: no limit."""
    from_: str = ""
    """Branch: begin with a checkpoint of another run, its weights, optimizer state, averages and place in the data.
    RUN, or RUN@STEP, RUN@best; RUN is a name in ``run.dir`` or a folder."""
    from_other_data: bool = False
    """Accept another dataset than that of ``run.from``, with the same classes and as many steps in an epoch."""
    join_timeout: int = 600
    """Seconds to wait for all processes and machines of a job to join; who is missing is reported every 10 s. Then
    their first exchange has as long."""
    collective_timeout: int = 1800
    """Seconds that a process waits for the others in one exchange, from when they have joined; then the job fails. A
    checkpoint or an evaluation that one process writes alone must be done by then."""
    stall_timeout: int = 300
    """A job in which no step ends for so many seconds is ended, with exit code 124 and the stacks of its processes in
    the run folder; 0 never ends it. The first step, the first batch of an evaluation and a checkpoint have at least
    ``collective_timeout``, unless a process on the same machine is stopped; so has the first step of each epoch with
    ``train.compile`` and ``model.unfreeze``. A process on the same machine that has ended ends the others, with exit
    code 1, after 10 s."""
    stall_factor: float = 20.0
    """The job also has at least this multiple of the usual time of a step before it is ended."""

    def __post_init__(self) -> None:
        # A command with an unset variable, as --run.dir "$OUT", would write into the working directory.
        require(bool(self.dir), 'dir is empty; name a folder, or use "." for the working directory')
        require(
            not self.from_other_data or bool(self.from_),
            "from_other_data has no effect without from; use --run.from_other_data false, or set --run.from",
        )
        if self.max_time not in ("", "auto"):
            seconds_of(self.max_time)
        require(
            not self.name or is_run_name(self.name),
            f"name {self.name!r} must be 1 to 128 of A-Z a-z 0-9 _ . + = - and not start with . + = or -",
        )
        require(0 <= self.seed < 2**31, f"seed {self.seed} must be between 0 and 2147483647")
        require_at_least(self, processes=0, join_timeout=1, collective_timeout=1, stall_timeout=0, stall_factor=1)


def is_run_name(name: str) -> bool:
    """Whether a run folder may have this name."""
    return _NAME.fullmatch(name) is not None


def seconds_of(text: str) -> float:
    """Parse a duration such as ``90s``, ``45m``, ``1.5h`` or ``1d12h30m``.

    Raises:
        ValueError: it is not one; the message begins with ``max_time``.
    """
    match = _DURATION.fullmatch(text)
    counts = map(float, match.groups("0") if match else ())
    seconds = sum(count * unit for count, unit in zip(counts, (86400, 3600, 60, 1), strict=False))
    require(seconds > 0, f"max_time {text!r} must be a time such as 45m, 2h or 1h30m, or auto")
    return seconds
