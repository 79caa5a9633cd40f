"""How many CPU threads a run uses where ``train.threads`` is 0. Their number changes how sums are rounded."""

from __future__ import annotations

from typing import Final

import torch

from cifar_dist.cpu.openmp import share_cores, use_threads
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.launch.launched import local_processes
from cifar_dist.tracking.jobs import recorded_threads
from cifar_dist.tracking.timeline import Event
from cifar_dist.training.device_speed import operations_per_image
from cifar_dist.training.setup import TrainingSetup

_LEAST_OPERATIONS: Final = 1e8
"""Floating-point operations of a thread in a step: milliseconds, against microseconds of waiting in each operation."""


def settle_threads(setup: TrainingSetup, ranks: Ranks, before: Event | None) -> list[str]:
    """Take the threads of the job whose checkpoint is resumed, or else no more than the network can use. Collective.

    Args:
        setup: of the run.
        ranks: this process among all, which uses as many threads as there are free cores.
        before: the job that computed the steps done, on rank 0; None for a new run, or if it is unknown.

    Returns:
        Lines to report.
    """
    if ranks.device.type != "cpu":
        return []
    asked = setup.config.train.threads

    def choose() -> tuple[int, list[str]]:
        if asked:  # for this process only: another machine may have fewer cores
            return 0, []
        if kept := recorded_threads(before, setup.config, ranks.world_size):
            return kept, _more_than_cores(kept)
        free = torch.get_num_threads()
        return free if free == 1 else min(free, _useful_threads(setup, ranks.world_size)), []

    # On every rank: of several machines only some may have been asked for theirs.
    chosen, notes = ranks.run_on_main(choose)
    if chosen and not asked:
        use_threads(chosen)
    return notes


def _more_than_cores(threads: int) -> list[str]:
    share = share_cores(local_processes())
    if threads <= share:
        return []
    return [
        f"each process keeps the {threads} threads of the steps done, and this machine has cores for {share}: slow, "
        f"but with the same bits; --train.threads {share} is faster, and rounds differently"
    ]


def _useful_threads(setup: TrainingSetup, world_size: int) -> int:
    per_image = operations_per_image(setup.blueprint, setup.manifest.shape)
    if per_image is None:
        return torch.get_num_threads()
    return max(1, int(per_image * setup.config.train.batch_size / world_size / _LEAST_OPERATIONS))
