"""An engine whose first exchange fails as NCCL's does: ``--train.engine tests/support/failing_nccl.py:FirstExchange``.

The errors are torch's own, with the texts of NCCL 2.28.
"""

from __future__ import annotations

from torch.distributed import DistBackendError

from cifar_dist.distributed.data_parallel import DataParallel

_IN = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/"

LOST = (
    f"{_IN}NCCLUtils.hpp:268, remote process exited or there was a network error, NCCL version 2.28.9\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
    "Last error:\nsocketProgress: Connection closed by remote peer node1<40123>"
)
NO_ID = (
    "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', but "
    "store->get('0') got error: Connection reset by peer"
)
_SYSTEM = (
    f"{_IN}ProcessGroupNCCL.cpp:3690, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version "
    "2.28.9\nncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \n"
    "Last error:\n"
)
SHARED_MEMORY = (
    f"{_SYSTEM}Error while creating shared memory segment /dev/shm/nccl-3mWj0k (size 33030528), error: No space left "
    "on device (28)"
)
UNREACHABLE = f"{_SYSTEM}socketStartConnect: Connect to 10.0.0.7<40123> failed : No route to host\n"
NO_CAUSE = f"{_IN}NCCLUtils.hpp:268, invalid usage, NCCL version 2.28.9\nncclInvalidUsage: This usually reflects a bug."
NO_MEMORY = (
    f"{_IN}NCCLUtils.hpp:268, unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
)


class FirstExchange(DataParallel):
    """DDP, whose constructor makes the first exchange."""

    def _check_processes(self) -> None:
        raise DistBackendError(SHARED_MEMORY)
