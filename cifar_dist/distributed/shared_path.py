"""Whether all machines of a job see a path of rank 0, as they must to resume from a run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cifar_dist.config.run import SHARE_DIR
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.errors import UserError
from cifar_dist.launch.launched import machine_name
from cifar_dist.launch.waiting import wait_until

SEEN_SECONDS: Final = 5.0  # in which a change must be seen, where a folder is listed anew


def check_shared(config: Path, checkpoint: Path | None, ranks: Ranks) -> list[str]:
    """Report in one line the machines that do not see the run folder of rank 0; empty if all do. Collective.

    Args:
        config: a file of the folder, which rank 0 has just written; the path of another rank does not count.
        checkpoint: from which the run is to continue, the same on all ranks; None for a new run.
        ranks: this process among all of the job.

    Raises:
        UserError: a machine does not see ``checkpoint``.
    """
    written = ranks.run_on_main(lambda: checkpoint or config)
    is_seen = not ranks.first_of_node or appears(written)
    unseen = ", ".join(filter(None, ranks.gather_objects("" if is_seen else machine_name())))
    if unseen and checkpoint is not None:
        raise UserError(f"{checkpoint}, from which to continue, is not seen on {unseen}; {SHARE_DIR}")
    return [f"{written.parent} is not seen on {unseen}, which cannot continue this run; {SHARE_DIR}"] if unseen else []


def appears(path: Path) -> bool:
    """Whether a path is seen within :data:`SEEN_SECONDS`.

    Its folder is listed, because network file systems remember for longer what was not there.
    """
    return wait_until(lambda: path.parent.is_dir() and path.name in os.listdir(path.parent), SEEN_SECONDS)
