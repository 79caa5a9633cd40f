"""Add up numbers of several processes, each on a GPU of its own, before anything else uses them together.

    python benchmarks/gpu/exchange.py BACKEND PROCESSES SECONDS

BACKEND is nccl, or gloo for processes on the CPU. GPUs of one machine may see each other and not be able to exchange
anything: NCCL then waits without a word. After SECONDS this says so, and ends.
"""

from __future__ import annotations

import sys
import tempfile
import time

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from cifar_dist.distributed.collective_timeout import waits_explained
from cifar_dist.distributed.first_exchange import REMEDIES

_SIZES = (1, 2**22)  # NCCL carries few numbers and many in different ways


def find_fault(backend: str, processes: int, seconds: float) -> str:
    """Let ``processes`` exchange; return why they could not, in one line, or nothing."""
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        arguments = (backend, processes, f"{folder}/store")
        ranks = start_processes(_rank, arguments, processes, join=False, start_method="fork")
        try:
            while not ranks.join(max(0.0, deadline - time.monotonic())):
                if time.monotonic() >= deadline:
                    nothing = f"{processes} ranks have not exchanged anything over {backend} in {seconds:.0f} s"
                    return f"{nothing}; {REMEDIES['NCCL']}" if backend == "nccl" else nothing
        except ProcessExitedException as error:  # killed by a signal
            return str(error)
        except ProcessRaisedException as error:
            print(error, flush=True)
            return str(error).strip().splitlines()[-1]
        finally:
            for process in ranks.processes:
                process.kill()
    return ""


def _rank(rank: int, backend: str, processes: int, store: str) -> None:
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    with waits_explained(1800):  # torch's own limit
        dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=processes)
        for size in _SIZES:
            numbers = torch.full((size,), rank + 1.0, device=device)
            dist.all_reduce(numbers)
            wrong = int((numbers != processes * (processes + 1) / 2).sum())
            if wrong:
                raise ValueError(f"{wrong:,} of {size:,} sums over {backend} are wrong; set NCCL_P2P_DISABLE=1")
        dist.destroy_process_group()


def main() -> int:
    backend, processes, seconds = sys.argv[1:]
    fault = find_fault(backend, int(processes), float(seconds))
    print(fault or f"{processes} ranks over {backend}", flush=True)
    return int(bool(fault))


if __name__ == "__main__":
    sys.exit(main())
