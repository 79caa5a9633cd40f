"""What ranks, launchers and batch scripts agree on: all exit codes, and how long a process may take to stop.

A process that a signal killed has 128 plus the signal's number, as in a shell.
"""

import signal
from typing import Final

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_DIFFERS = 3  # a replay computed other numbers than the run recorded
EXIT_IN_USE = 69  # EX_UNAVAILABLE of sysexits.h: another process is training this run
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: stopped on request with a checkpoint; run it again
EXIT_STALLED = 124  # as of timeout(1): no step ended for too long, so the job was ended; earlier checkpoints are intact

GRACE_SECONDS: Final = 120
"""Between a request to stop and the end by force; `#SBATCH --signal` of slurm/*.sbatch has it, too."""


def how_it_ended(code: int) -> str:
    """Describe how a process failed, to follow its name in a sentence.

    Args:
        code: not 0; as of :class:`subprocess.Popen`, where a signal is negative.
    """
    if code > 0:
        return f"failed with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"
