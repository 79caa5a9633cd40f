"""Processes and machines that never join are named, every ten seconds and when the job gives up."""

from __future__ import annotations

import contextlib
import itertools
import re
import select
import socket
import subprocess
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from support.running import PATIENCE, TRAIN, finish, free_port, listens, spawn, start, wait_until
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from cifar_dist.errors import JoinTimeoutError
from cifar_dist.launch import joining, meeting
from cifar_dist.launch.joining import join_machines, join_ranks
from cifar_dist.launch.meeting import Meeting
from launch import soak

LOOPBACK = "[::1]" if any(one.address == "::1" for one in psutil.net_if_addrs().get("lo", [])) else "127.0.0.1"


@pytest.mark.parametrize(
    ("rank", "problem"),
    [
        ("0", "2 of 3 have not joined: rank 1, rank 2"),
        ("2", "rank 0 does not answer at 127.0.0.1:{port} (Connection refused)"),
    ],
)
def test_missing_ranks_are_named_repeatedly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], rank: str, problem: str
) -> None:
    port = str(free_port())
    problem = problem.format(port=port)
    now = itertools.count()  # a second passes from one look at the clock to the next
    monkeypatch.setattr(joining, "time", SimpleNamespace(monotonic=lambda: next(now), sleep=lambda _: None))
    place = {"RANK": rank, "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(JoinTimeoutError, match=r"^gave up after 25 s \(run.join_timeout\): ") as error:
        join_ranks(25)
    assert problem in str(error.value)
    said = capfd.readouterr().err
    assert said == "".join(f"cifar-dist: waiting for {seconds} s: {problem}\n" for seconds in (11, 22))


def test_a_first_rank_that_leaves_while_others_wait_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up, or fails, before the others notice."""
    port = free_port()
    code = f"""if True:
        import time
        from cifar_dist.launch.joining import open_store
        store = open_store("rank", "127.0.0.1", {port}, hosts=True)
        while not store.add("count", 0):
            time.sleep(0.01)
    """
    running = start(["-c", code])
    place = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        JoinTimeoutError,
        match=rf"^rank 0, or the launcher of its machine, has left 127\.0\.0\.1:{port} before all have joined; see its",
    ):
        join_ranks(PATIENCE)
    finish(running)


def test_a_machine_that_notices_late_that_all_have_joined_joins_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one has waited for it, then ended the store, and launched what listens at the port now."""
    port, connect, calls = free_port(), socket.create_connection, itertools.count(1)
    stores = [joining.open_store("machine", "127.0.0.1", port, hosts=True)]
    stores[0].add("count", 1)
    with contextlib.ExitStack() as stack:

        def connect_late(place: tuple[str, int], timeout: float) -> socket.socket:
            if next(calls) == 2:
                stores.clear()
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return connect(place, timeout)

        monkeypatch.setattr(joining, "socket", SimpleNamespace(create_connection=connect_late))
        join_machines(1, 2, "127.0.0.1", port, PATIENCE)
    assert next(calls) == 3


def test_ranks_that_torchrun_starts_again_do_not_meet_those_before() -> None:
    """Its store lives as long as torchrun, and has the addresses of the ranks that were killed."""
    code = """if True:
        import os
        from torch import distributed
        from cifar_dist.launch.joining import join_ranks
        store = join_ranks(300)
        distributed.init_process_group("gloo")
        distributed.barrier()
        os._exit(0)
    """
    of_torchrun = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {
        "MASTER_PORT": str(of_torchrun.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "2",
    }
    for _ in range(2):
        ranks = spawn(["-c", code], 2, env=place)
        assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr + ranks[1].stderr
        assert not of_torchrun.check(["cifar-dist/restarts/port"]), "another machine's next ranks would find these"


def _place_of_restarts(monkeypatch: pytest.MonkeyPatch, rank: int, port: int) -> None:
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "2"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)


def test_a_store_of_torchrun_that_was_lost_with_its_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    _place_of_restarts(monkeypatch, 0, port)
    monkeypatch.setattr(joining, "_ANSWER_SECONDS", 0.5)
    with pytest.raises(
        JoinTimeoutError, match=rf"^torchrun's store does not answer at 127\.0\.0\.1:{port}; if machines"
    ):
        join_ranks(PATIENCE)


def test_a_store_of_torchrun_that_is_of_another_meeting_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    of_torchrun = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _place_of_restarts(monkeypatch, 1, of_torchrun.port)
    with pytest.raises(JoinTimeoutError, match=r"^gave up after 0 s .*: rank 0 has not joined; if machines come and"):
        join_ranks(0.4)


def test_a_machine_that_is_slow_to_find_the_meeting_waits_in_it_as_long_as_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port, now = free_port(), 0

    def sleep(_: float) -> None:  # a second passes; this machine finds the meeting in the twelfth
        nonlocal now
        now += 1
        if now == 12:
            store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
            backend = C10dRendezvousBackend(store, "job")
            of_machines.begin(DynamicRendezvousHandler.from_backend("job", store, backend, min_nodes=2, max_nodes=2))

    def give_up(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(meeting, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    monkeypatch.setattr(meeting, "os", SimpleNamespace(_exit=give_up))
    of_machines = Meeting(f"127.0.0.1:{port}", timeout=5)
    with pytest.raises(SystemExit, match="1"):
        of_machines._watch()
    assert now == 12 + 16, "torch gives up after 5 s in the meeting; 10 s later this thread does"
    assert re.findall(r"(waiting for|gave up after) (\d+) s.*: (.*) at ", capfd.readouterr().err) == [
        ("waiting for", "11", "no machine answers"),
        ("waiting for", "11", "1 of at least 2 machines has met"),
        ("gave up after", "16", "1 of at least 2 machines has met"),
    ]


def test_a_machine_that_has_lost_another_does_not_say_that_it_trains() -> None:
    """Torch keeps a machine without a heartbeat for 15 s among those of the last start."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def handler(address: str) -> DynamicRendezvousHandler:
        store = TCPStore("127.0.0.1", server.port, wait_for_workers=False)
        backend = C10dRendezvousBackend(store, "job")
        made: DynamicRendezvousHandler = DynamicRendezvousHandler.from_backend(
            "job", store, backend, 1, 2, address, keep_alive_interval=100
        )
        return made

    machines = [handler("127.0.0.1"), handler("127.0.0.2")]
    meetings = [Meeting(f"127.0.0.1:{server.port}", timeout=600) for _ in machines]
    with futures.ThreadPoolExecutor() as threads:

        def meet(number: int) -> futures.Future[object]:
            meetings[number].begin(machines[number])
            return threads.submit(machines[number].next_rendezvous)

        futures.wait([meet(0), meet(1)])
        for each in meetings:
            each.end()
        own = machines[0]
        again = meet(0)
        wait_until(lambda: own._this_node in own._state_holder.state.wait_list, [])
        said = meetings[0]._patience()
        futures.wait([again, meet(1)])
    assert said == "1 machine must stop, or be given up as lost, before the others start again"


@dataclass(frozen=True)
class Wait:
    """A process that waits for others, which never come.

    Attributes:
        process: of a warm interpreter.
        port: where the others would meet it.
        runs: the folder of its run.
    """

    process: subprocess.Popen[str]
    port: int
    runs: Path

    def end(self) -> subprocess.CompletedProcess[str]:
        (done,) = finish([self.process])
        return done


def without_seconds(text: str) -> str:
    """Return a text without how long a process waited: a busy machine may look at its clock late."""
    return re.sub(r"\b\d+ s\b", "N s", text)


@pytest.fixture(scope="module")
def silent() -> Iterator[int]:
    """The port of a program that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", free_port())) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def waits(
    digits: Path, forked: dict[str, str], silent: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Wait]]:
    """Start all processes that wait for ten seconds, together."""
    folder = tmp_path_factory.mktemp("waits")
    recipe = str(soak.write_recipe(folder, digits))

    def launch(*options: str, patience: str, port: int = 0) -> Wait:
        port = port or free_port()
        own = [option.format(port=port) for option in options]
        words = ["-m", "cifar_dist", "launch", "cpu", *own, recipe, "--run.join_timeout", patience]
        return Wait(start(words, env=forked)[0], port, folder / "runs")

    port = free_port()
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    meeting = "--rdzv_endpoint=127.0.0.1:{port}"
    started = {
        "rank": Wait(start([TRAIN, recipe], env=place)[0], port, folder / "runs"),
        "fixed": launch(
            "--num_machines=2", "--main_process_ip=127.0.0.1", "--main_process_port={port}", patience="600"
        ),
        "elastic": launch("--nnodes=2:4", meeting, patience="600"),
        "silent": launch("--nnodes=1:2", meeting, patience="1", port=silent),
        "few": launch("--nnodes=2:4", f"--rdzv_endpoint={LOOPBACK}:{{port}}", patience="1"),
        "hostless": launch("--nnodes=1:2", meeting, "--rdzv_conf=is_host=0", patience="1"),
    }
    yield started
    for wait in started.values():
        if wait.process.poll() is None:
            wait.process.kill()
            wait.process.communicate()


def test_a_request_to_stop_ends_the_wait_for_other_ranks(waits: dict[str, Wait]) -> None:
    """After ten seconds, in which ranks that start together join."""
    waiting = waits["rank"]
    wait_until(lambda: listens(waiting.port), [waiting.process])
    waiting.process.terminate()
    done = waiting.end()
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == "cifar-dist: stopped by TERM"
    assert not waiting.runs.exists()


def test_a_request_to_stop_ends_the_wait_for_other_machines(waits: dict[str, Wait]) -> None:
    waiting = waits["fixed"]
    wait_until(lambda: listens(waiting.port), [waiting.process])
    waiting.process.terminate()
    done = waiting.end()
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == "cifar-dist: stopped while no rank was running"


def test_a_machine_alone_is_told_how_many_are_missing_and_stops_on_request(waits: dict[str, Wait]) -> None:
    waiting = waits["elastic"]
    stderr = waiting.process.stderr
    assert stderr is not None
    wait_until(lambda: bool(select.select([stderr], [], [], 0)[0]), [waiting.process])
    said = without_seconds(stderr.readline())
    endpoint = f"127.0.0.1:{waiting.port}"
    assert said == f"cifar-dist: waiting for N s: 1 of at least 2 machines has met at {endpoint} (--rdzv_endpoint)\n"
    waiting.process.terminate()
    done = waiting.end()
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1] == "cifar-dist: stopped while no rank was running"


def test_machines_that_do_not_meet_are_reported_until_the_job_gives_up(waits: dict[str, Wait]) -> None:
    done = waits["silent"].end()
    assert done.returncode == 1
    said = [without_seconds(line) for line in done.stderr.splitlines() if line.startswith("cifar-dist: ")]
    listening = f"what listens at 127.0.0.1:{waits['silent'].port} (--rdzv_endpoint)"
    missing = f"{listening} is not a meeting of machines; use another port"
    assert said[-1] == f"cifar-dist: gave up after N s (run.join_timeout): {missing}"
    waiting = f"cifar-dist: waiting for N s: {missing}"
    assert said[:-1] in ([waiting], []), "a second before, which a busy machine may miss"


def test_machines_that_are_too_few_give_up_and_do_not_blame_the_one_where_they_meet(waits: dict[str, Wait]) -> None:
    done = waits["few"].end()
    assert done.returncode == 1
    problem = f"1 of at least 2 machines has met at {LOOPBACK}:{waits['few'].port} (--rdzv_endpoint)"
    *waiting, last = without_seconds(done.stderr).splitlines()
    assert last == f"cifar-dist: gave up after N s (run.join_timeout): {problem}"
    assert waiting in ([], [f"cifar-dist: waiting for N s: {problem}"]), "which a busy machine may say first"


def test_a_machine_waits_for_the_one_where_they_meet(waits: dict[str, Wait]) -> None:
    """Torch gives up after a minute or two, with the stack of its C++ code."""
    done = waits["hostless"].end()
    assert done.returncode == 1
    problem = f"no machine answers at 127.0.0.1:{waits['hostless'].port} (--rdzv_endpoint): Connection refused"
    assert f"cifar-dist: gave up after N s (run.join_timeout): {problem}\n" in without_seconds(done.stderr)


def test_one_machine_of_two_gives_up_before_it_starts_a_rank(tiny: Path, forked: dict[str, str]) -> None:
    place = [
        "--num_machines=2",
        "--machine_rank=0",
        "--main_process_ip=127.0.0.1",
        f"--main_process_port={free_port()}",
    ]
    words = ["-m", "cifar_dist", "launch", "cpu", *place, str(tiny), "--run.join_timeout", "1"]
    (done,) = spawn(words, env=forked)
    assert done.returncode == 1, done.stderr
    assert done.stderr == "cifar-dist: gave up after 1 s (run.join_timeout): 1 of 2 has not joined: machine 1\n"


@pytest.mark.parametrize(
    ("restarts", "problem"),
    [
        ({}, "rank 0 is not what answers at"),
        (
            {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "2"},
            "torchrun's store does not answer at",
        ),
    ],
    ids=["rank 0", "torchrun"],
)
def test_another_program_in_the_place_of_a_store_is_named(
    tiny: Path, silent: int, restarts: dict[str, str], problem: str
) -> None:
    """Torch waits for its answer for ever, and listens to no signal meanwhile."""
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent)}
    (done,) = spawn([TRAIN, str(tiny), "--run.join_timeout", "1"], env={**place, **restarts})
    assert done.returncode == 1
    assert done.stderr == f"cifar-dist: gave up after 1 s (run.join_timeout): {problem} 127.0.0.1:{silent}\n"


def test_a_port_that_is_not_free_for_rank_0_is_named(tiny: Path, silent: int) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent)}
    (done,) = spawn([TRAIN, str(tiny)], env=place)
    assert done.returncode == 2
    assert f"cifar-dist: port {silent} of 127.0.0.1 is not free for rank 0; use another one\n" in done.stderr
    assert "Traceback" not in done.stderr
