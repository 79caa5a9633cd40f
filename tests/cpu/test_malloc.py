"""Memory that a step frees is kept for the next, unless the user has configured the allocator."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from support.running import PATIENCE, environment

# Steps that free 64 MiB each, in a process that has an engine on the CPU, and the page faults that they take.
PROBE = """
import ctypes
import resource
import torch
from cifar_dist.config import Config, TrainConfig
from cifar_dist.distributed.start import start_engine
PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # a huge page takes one fault for 512 pages
def step():
    torch.ones(2**24).add_(1)
with start_engine(Config(train=TrainConfig())):
    for _ in range(20):  # until the allocations have settled
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(env: dict[str, str]) -> int:
    env = environment({"ACCELERATE_USE_CPU": "true", **env})
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is the GNU C library's")
def test_steps_allocate_no_new_pages_unless_the_user_sets_it() -> None:
    pages = 20 * 2**26 // 4096
    assert faults({}) < pages / 20
    assert faults({"MALLOC_MMAP_MAX_": "65536"}) > pages / 2
