"""Many ranks on this machine, each in a thread with real collectives; counts what they send.

``python -m support.many_ranks 64 512`` (in ``tests/``) prints what docs/scaling.md quotes.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg as threaded

from cifar_dist.distributed.agreement import Agreement, StopPoll
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.stop_requests import StopRequests
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.errors import StopRequested
from support.running import PATIENCE

_STACK_BYTES = 2**20


@dataclass
class Traffic:
    """The collectives of each rank, and the bytes that it sent or received in them."""

    messages: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    bytes: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, rank: int, data: object) -> None:
        self.messages[rank] += 1
        self.bytes[rank] += _bytes(data)


def _bytes(data: object) -> int:
    if isinstance(data, torch.Tensor):
        return data.numel() * data.element_size()
    return sum(map(_bytes, data)) if isinstance(data, (list, tuple)) else 0


@contextlib.contextmanager
def _counted() -> Iterator[Traffic]:
    """Count in torch's threaded process group, whose collectives all begin in one method."""
    traffic = Traffic()
    join: Callable[..., Any] = threaded.Collective.join

    def counting(self: Any, rank: int, data: Any) -> Any:
        traffic.add(rank, data)
        return join(self, rank, data)

    threaded.Collective.join = counting  # type: ignore[method-assign]
    try:
        yield traffic
    finally:
        threaded.Collective.join = join  # type: ignore[method-assign]


def run_on_ranks(world_size: int, work: Callable[[Ranks], Any]) -> tuple[dict[int, Any], Traffic]:
    """Call ``work`` on every rank of a job of ``world_size``; return the results by rank and the traffic.

    An exception of a rank ends all of them, and is raised.
    """
    results: dict[int, Any] = {}
    errors: list[BaseException] = []
    store = dist.HashStore()

    def rank_thread(rank: int) -> None:
        dist.init_process_group("threaded", rank=rank, world_size=world_size, store=store)
        try:
            results[rank] = work(Ranks(rank, world_size, torch.device("cpu"), first_of_node=rank % 8 == 0))
        except BaseException as error:
            errors.append(error)
            threaded.ProcessLocalGroup.exception_handle(error)
        finally:
            dist.destroy_process_group()

    torch.set_num_threads(torch.get_num_threads())  # after a fork, threads must not race to create torch's pool
    torch._C._distributed_c10d._set_thread_isolation_mode(True)  # type: ignore[attr-defined]  # its stub lacks it
    threaded._install_threaded_pg()
    threaded.ProcessLocalGroup.reset()
    before = threading.stack_size(_STACK_BYTES)
    try:
        with _counted() as traffic:
            threads = [threading.Thread(target=rank_thread, args=(rank,), daemon=True) for rank in range(world_size)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive(), "a rank hangs"
    finally:
        threading.stack_size(before)
        threaded._uninstall_threaded_pg()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)  # type: ignore[attr-defined]
    if errors:
        raise errors[0]
    return results, traffic


def train_until_stopped(ranks: Ranks, asked: int, at: int) -> tuple[int, str]:
    """Run steps until all ranks agree to stop; return the last step and the cause.

    Args:
        ranks: this rank.
        asked: the rank that receives USR1.
        at: the step before which it does.
    """
    signals = StopSignals()
    agreement = Agreement(ranks, StopRequests(signals))
    ids, finite = torch.arange(4), torch.ones(4, dtype=torch.bool)
    for step in range(1, 100):
        if ranks.rank == asked and step == at:
            signals.received = "USR1"
        try:
            agreement.after_step(step, ids, finite)
        except StopRequested as cause:
            agreement.settle(stopping=True)
            return step, str(cause)
    return 0, ""


def poll_until_stopped(ranks: Ranks, asked: int, at: int) -> tuple[int, str]:
    """Like :func:`train_until_stopped` with the batches of an evaluation, which poll."""
    signals = StopSignals()
    poll = StopPoll(ranks, StopRequests(signals))
    for batch in range(1, 100):
        if ranks.rank == asked and batch == at:
            signals.received = "USR1"
        try:
            poll()
        except StopRequested as cause:
            return batch, str(cause)
    return 0, ""


def agree_once(ranks: Ranks) -> object:
    """Exchange what the ranks exchange after every step."""
    return ranks.start_maximum(torch.zeros(2)).wait().tolist()


def decide(ranks: Ranks) -> Path:
    """Let rank 0 decide, as it does which checkpoint to load."""
    return ranks.run_on_main(lambda: Path("runs/demo/checkpoints/step-00001234"))


def answer(ranks: Ranks) -> list[None]:
    """Let all ranks answer all, as they do when each has opened the data."""
    return ranks.gather_objects(None)


def _main(sizes: list[int]) -> None:
    for work in (agree_once, decide, answer):
        for world_size in sizes if work is not answer else [size for size in sizes if size <= 64]:
            begin = time.perf_counter()
            _, traffic = run_on_ranks(world_size, work)
            seconds, peak = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            sent = f"{traffic.messages[1]} collectives, {traffic.bytes[1]:,} bytes a rank"
            print(f"{work.__name__:10} {world_size:4} ranks: {sent}; {seconds:.2f} s, {peak} MB for all threads")


if __name__ == "__main__":
    _main([int(word) for word in sys.argv[1:]])
