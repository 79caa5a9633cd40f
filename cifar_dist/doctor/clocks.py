"""How far the clocks of the processes differ."""

from __future__ import annotations

import time
from typing import Final

from cifar_dist.distributed.ranks import Ranks
from cifar_dist.doctor.finding import Finding, Verdict
from cifar_dist.launch.launched import machine_name

_ROUNDS: Final = 5
_LIMIT_SECONDS: Final = 2.0  # a wall-time limit, a STOP file and the timeline compare times of several nodes


def compare_clocks(ranks: Ranks) -> Finding:
    """Compare each rank's clock with that of rank 0. Collective.

    Rank 0 reads its clock before and after all others read theirs (Cristian: *Probabilistic clock synchronization*,
    Distributed Computing 3, 1989); the shortest of some rounds counts.
    """
    if ranks.world_size == 1:
        return Finding("clocks", "one process")
    best: tuple[float, list[float]] | None = None
    for _ in range(_ROUNDS):
        before = time.time()
        ranks.gather_objects(None)  # nobody returns before all have come
        readings = ranks.gather_objects(time.time())
        after = time.time()
        if best is None or after - before < best[0]:
            best = after - before, [reading - (before + after) / 2 for reading in readings]
    assert best is not None
    hosts = ranks.gather_objects(machine_name())
    interval, offsets = ranks.run_on_main(lambda: best)
    rank = max(range(1, ranks.world_size), key=lambda rank: abs(offsets[rank]))
    text = f"rank {rank} on {hosts[rank]} differs most from rank 0 on {hosts[0]}, by {abs(offsets[rank]):.3g} s"
    text += f" (measured to {interval / 2:.1g} s)"
    remedy = "synchronise the clocks of the nodes: timedatectl set-ntp true, or chronyc makestep"
    differs = abs(offsets[rank]) > _LIMIT_SECONDS + interval / 2
    return Finding.ok_or(Verdict.FAILED, "clocks", text, remedy if differs else "")
