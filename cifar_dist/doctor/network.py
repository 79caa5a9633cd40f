"""The processes of a job and the network between them: where each is, who reaches whom, and how fast they sum."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from cifar_dist.distributed.device_time import time_on
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.doctor.finding import Finding, Verdict
from cifar_dist.formatting import percent, size
from cifar_dist.launch.joining import JOB_PORTS
from cifar_dist.launch.launched import machine_name

_CONNECT_SECONDS: Final = 5.0
_LOOKUP_SECONDS: Final = 1.0  # of which a job with many ranks loses a multiple
_MEASURE_SECONDS: Final = 0.2  # for each size
_SIZES: Final = (4_096, 2**20, 2**24)  # bytes of an all-reduce: latency, a small network, a large one
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_INTERFACE: Final = "name the network between the nodes in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"


def map_ranks(engine: Engine) -> Iterator[Finding]:
    """Yield a row for each node, with its ranks and their devices, and one if something about them is wrong."""
    ranks, device = engine.ranks, engine.ranks.device
    places = ranks.gather_objects((machine_name(), str(device) if device.type == "cuda" else device.type))
    nodes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for rank, (host, on) in enumerate(places):
        nodes[host].append((rank, on))
    yield Finding("processes", f"{ranks.world_size}, {engine.description}" if ranks.world_size > 1 else "one process")
    for host, found in nodes.items():
        listed = ", ".join(f"{rank} ({on})" for rank, on in found)
        yield Finding("ranks", f"{host}: {listed}")
    if len(counts := {len(of_node) for of_node in nodes.values()}) > 1:
        text = f"the nodes have different numbers of ranks: {', '.join(map(str, sorted(counts)))}"
        yield Finding("ranks", text, Verdict.WARNING, "set CIFAR_DIST_PROCESSES_PER_NODE, or ask for nodes of one kind")


def check_ports(ranks: Ranks) -> Finding:
    """Check that each rank reaches the next one at a port that the system chose, as gloo and NCCL connect them."""
    with socket.create_server(("", 0)) as server:
        places = ranks.gather_objects((machine_name(), int(server.getsockname()[1])))
        problems = ranks.gather_objects(_reach(*places[(ranks.rank + 1) % ranks.world_size]))
    several = ranks.world_size > 1
    for rank, problem in enumerate(problems):
        if problem:
            text = f"rank {rank} on {places[rank][0]} cannot reach {problem}"
            return Finding("ports", text, Verdict.FAILED if several else Verdict.WARNING, _INTERFACE)
    first, last = map(int, _EPHEMERAL.read_text().split())
    meet = f"rank 0 at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}" if several else "one process needs none"
    text = f"{meet}; jobs use {JOB_PORTS.start} to {JOB_PORTS.stop - 1}, the system {first} to {last}"
    allowed = ranks.run_on_main(lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # each process has its own
    wanted = connections(ranks.world_size)
    if allowed < wanted:
        text = f"a process may have {allowed:,} open files and connections, and rank 0 needs {wanted:,}"
        return Finding("ports", text, Verdict.FAILED, f"ulimit -n {2 * wanted}")
    lookup = max(ranks.gather_objects(_lookup_seconds()))
    if several and lookup > _LOOKUP_SECONDS:
        text = f"{text}; the name of an address takes {lookup:.1f} s, and torch asks for it twice for each connection"
        return Finding("ports", text, Verdict.WARNING, "put the nodes into /etc/hosts, or repair the name server")
    overlap = first < JOB_PORTS.stop and last >= JOB_PORTS.start
    remedy = f"another program may have a job's port; give the system others: echo 32768 60999 > {_EPHEMERAL}"
    return Finding.ok_or(Verdict.WARNING, "ports", text, remedy if overlap else "")


def connections(world_size: int) -> int:
    """Return how many files and connections rank 0 has open in a job of so many ranks.

    It serves the stores of joining, of torch and of the watchdog, gloo connects it to every rank, and a process has
    some 200 files of its own.
    """
    return 4 * world_size + 200


def _lookup_seconds() -> float:
    """The time until the name server has answered, or not, which name this machine's address has."""
    begin = time.perf_counter()
    try:
        address = socket.getaddrinfo(machine_name(), None)[0][4]
        socket.getnameinfo(address, 0)
    except OSError:
        pass
    return time.perf_counter() - begin


def _reach(host: str, port: int) -> str:
    """Connect to a port; return why that fails, or an empty string."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return f"{host}:{port} ({error.strerror or error})"
    return ""


def measure_all_reduce(ranks: Ranks) -> Finding:
    """Time the sum over all ranks for several sizes, with the bus bandwidth, and check its result. Collective."""
    if ranks.world_size == 1:
        return Finding("all-reduce", "one process: nothing to sum")
    ones = ranks.sum(torch.ones(4, device=ranks.device)).tolist()
    if ones != [float(ranks.world_size)] * 4:
        return Finding("all-reduce", f"the sum of a 1 of each rank is {ones[0]:g}", Verdict.FAILED, _INTERFACE)
    parts = [f"{size(summed)} in {_shown(seconds, summed, ranks)}" for summed, seconds in _time_sums(ranks, _SIZES)]
    return Finding("all-reduce", f"{dist.get_backend()}: {', '.join(parts)}")


def time_gradients(ranks: Ranks, size_bytes: int, step_seconds: float) -> Finding:
    """Time the sum of gradients of ``size_bytes``, and compare it with a step. Collective."""
    if ranks.world_size == 1:
        return Finding("gradients", f"{size(size_bytes)}, which one process need not send")
    ((_, seconds),) = _time_sums(ranks, (size_bytes,))
    share = seconds / step_seconds
    text = f"{size(size_bytes)} a step: {_shown(seconds, size_bytes, ranks)}, "
    text += f"{percent(share, 0)} of a step if nothing overlapped"
    remedy = f"the network limits this run: a larger --train.batch_size, or fewer processes; or {_INTERFACE}"
    return Finding.ok_or(Verdict.WARNING, "gradients", text, remedy if share > 0.5 else "")


def _time_sums(ranks: Ranks, sizes: tuple[int, ...]) -> list[tuple[int, float]]:
    timed = []
    for size_bytes in sizes:
        values = torch.zeros(size_bytes // 4, device=ranks.device)
        add = partial(ranks.sum, values)
        first = time_on(ranks.device, add)  # connects, and warms up
        repeats = ranks.run_on_main(partial(_repeats, first))
        timed.append((size_bytes, time_on(ranks.device, add, repeats)))
    return timed


def _repeats(seconds: float) -> int:
    return max(1, min(20, int(_MEASURE_SECONDS / seconds)))


def _shown(seconds: float, size_bytes: int, ranks: Ranks) -> str:
    """The time, and what each link carries in a ring: 2 (n - 1) / n of the bytes."""
    bandwidth = 2 * (ranks.world_size - 1) / ranks.world_size * size_bytes / seconds
    return f"{1000 * seconds:.3g} ms ({size(bandwidth)}/s)"
