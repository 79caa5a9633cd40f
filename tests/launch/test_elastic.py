"""An elastic job on two machines, here two launchers: one is lost and returns, and the other continues meanwhile.

The lost machine is stopped (SIGSTOP). As after a power failure no connection breaks, and only its heartbeat is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from support import warm
from support.running import (
    PATIENCE,
    ROOT,
    TRAIN,
    environment,
    finish,
    free_port,
    listens,
    pausing,
    resume,
    spawn,
    story,
    wait_for_pause,
    wait_until,
)

from cifar_dist.errors import GpuError, MachineError
from cifar_dist.launch.elastic import _hosts, request_end
from cifar_dist.launch.gpus import check_gpus_of_ranks
from cifar_dist.launch.signal_queue import MACHINE_JOINS
from cifar_dist.tracking import timeline

PATIENT = "keep_alive_interval=100,last_call_timeout=100"
"""Of machines that all take part in the first start, and of which none counts as lost because it is busy."""
LONE = "--rdzv_conf=keep_alive_interval=100,last_call_timeout=1"
"""The same for a machine that starts without the others."""
PAUSING = Path(warm.__file__).parent / "pausing" / "sitecustomize.py"
MISSES = """
import os, runpy
from datetime import timedelta
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _BackendRendezvousStateHolder as StateHolder

remove_lost = StateHolder._sanitize

def miss(self):
    for machine in self._state.last_heartbeats:
        if os.path.exists(f"{lost}-{{machine.pid}}"):
            self._state.last_heartbeats[machine] -= timedelta(days=1)
    remove_lost(self)

StateHolder._sanitize = miss
runpy.run_path({pausing!r})
"""
"""A machine that misses the heartbeat of another once a file says that this one is lost, however patient it is else."""


def test_a_job_continues_without_a_lost_machine_until_it_returns(
    tiny: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    words = [str(tiny), "--train.parts", "2", "--train.threads", "1"]
    assert spawn([TRAIN, *words, "--run.name", "whole"])[0].returncode == 0
    port, note = free_port(), tmp_path / "paused"
    options = ["--num_processes=1", "--nnodes=1:2", f"--rdzv_endpoint=127.0.0.1:{port}", f"--rdzv_conf={PATIENT}"]
    (tmp_path / "sitecustomize.py").write_text(MISSES.format(lost=tmp_path / "lost", pausing=str(PAUSING)))
    misses = {**forked, "PYTHONPATH": f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"}

    def start_machine(variables: dict[str, str] = forked) -> warm.Popen:
        command = [sys.executable, "-m", "cifar_dist", "launch", "cpu", *options, *words, "--run.fresh"]
        env = environment({**pausing(12, note), **variables})
        return warm.Popen(command, env=env, cwd=ROOT, stdout=-1, stderr=-1, text=True)

    first = start_machine(misses)
    wait_until(lambda: listens(port), [first])  # where they meet
    lost = start_machine({})  # its rank is its own child, not one of the warm interpreter's
    paused = wait_for_pause(note, [first, lost])
    note.unlink()
    tiny.write_text(tiny.read_text().replace("lr = 0.1", "lr = 9.0"))  # for another run
    silent = _stop(lost)
    (tmp_path / f"lost-{_launcher(lost).pid}").touch()
    paused.send_signal(signal.SIGCONT)
    paused = wait_for_pause(note, [first])  # of the one process that continues
    for process in silent:
        process.kill()
    _, said_before = lost.communicate()
    returned = start_machine()
    resume(paused)  # once it is asked to stop
    done = finish([first, returned])
    assert [one.returncode for one in done] == [0, 0], done[0].stderr + done[1].stderr
    runs = tmp_path / "runs"
    assert story(runs / "tiny") == story(runs / "whole")
    assert "for a machine that joins; the run continues with it" in done[0].stdout
    assert "resume with:" not in done[0].stdout, "there is nothing to type"
    assert "too few" not in done[0].stderr + done[1].stderr
    events = timeline.read(runs / "tiny" / "timeline.jsonl")
    assert [event.processes for event in events if event.processes] == [2, 1, 2]
    # Said by the machine of rank 0, which is that of the lowest process number.
    said = said_before + done[0].stderr + done[1].stderr
    assert re.findall(r"^cifar-dist: machines: (\d), processes: \1$", said, re.M) == ["2", "1", "2"]


def test_a_machine_that_cannot_take_part_leaves_the_job_alone(
    tiny: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    port, note = free_port(), tmp_path / "paused"
    options = ["--num_processes=1", "--nnodes=1:2", f"--rdzv_endpoint=127.0.0.1:{port}", LONE]
    command = [sys.executable, "-m", "cifar_dist", "launch", "cpu", *options, str(tiny)]

    def start_machine(*words: str) -> warm.Popen:
        env = environment({**forked, **pausing(12, note)})
        return warm.Popen([*command, *words], env=env, cwd=ROOT, stdout=-1, stderr=-1, text=True)

    first = start_machine()
    paused = wait_for_pause(note, [first])
    run = tmp_path / "runs" / "tiny"
    refusals = {
        "--optim.lr 0.2": f"{run} was started with optim.lr = 0.1 and this command says 0.2",
        "--train.epochs 3": f"train.epochs is 2 in the job that trains {run} now, and 3 here",
        "--data.path /nowhere": "no packed dataset at /nowhere: the folder does not exist",
        "--run.processes 1": "run.processes is 1 and this job may have 2",
    }
    done = finish([start_machine(*words.split()) for words in refusals])
    paused.send_signal(signal.SIGCONT)
    assert finish([first])[0].returncode == 0
    for refused, problem in zip(done, refusals.values(), strict=True):
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.startswith(f"cifar-dist: {problem}")
        assert refused.stderr.count("\n") == 1
    events = timeline.read(run / "timeline.jsonl")
    assert [event.processes for event in events if event.processes] == [1], "it did not stop for them"


STARTS_LATE = """
import os, runpy, time
if "RANK" in os.environ:
    open({starting!r}, "w").close()
    while not os.path.exists({goes_on!r}):
        time.sleep(0.05)
runpy.run_path({pausing!r})
"""


def test_a_machine_that_cannot_take_part_in_a_job_that_starts_leaves_it_alone(
    tiny: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    """No process trains the run when it arrives, so there is nothing yet with which it could be compared."""
    port, note, starting, goes_on = free_port(), *(tmp_path / name for name in ("paused", "starting", "goes_on"))
    options = ["--num_processes=1", "--nnodes=1:2", f"--rdzv_endpoint=127.0.0.1:{port}", LONE]
    text = STARTS_LATE.format(starting=str(starting), goes_on=str(goes_on), pausing=str(PAUSING))
    (tmp_path / "sitecustomize.py").write_text(text)
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"

    def start_machine(*words: str) -> warm.Popen:
        command = [sys.executable, "-m", "cifar_dist", "launch", "cpu", *options, str(tiny), *words]
        env = environment({**forked, **pausing(12, note), "PYTHONPATH": path})
        return warm.Popen(command, env=env, cwd=ROOT, stdout=-1, stderr=-1, text=True)

    first = start_machine()
    wait_until(starting.exists, [first])
    other = start_machine("--optim.lr", "0.2")
    wait_until(lambda: _connects(other, port), [first, other])
    time.sleep(2)  # in which it looks at the job
    goes_on.touch()
    paused = wait_for_pause(note, [first])
    (refused,) = finish([other])
    paused.send_signal(signal.SIGCONT)
    assert finish([first])[0].returncode == 0
    run = tmp_path / "runs" / "tiny"
    problem = f"cifar-dist: {run} was started with optim.lr = 0.1 and this command says 0.2"
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.splitlines()[-1].startswith(problem)
    events = timeline.read(run / "timeline.jsonl")
    assert [event.processes for event in events if event.processes] == [1], "it did not stop for it"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that torch can use")
def test_a_machine_without_a_gpu_does_not_join_a_job_for_gpus(tiny: Path, forked: dict[str, str]) -> None:
    port = free_port()
    options = ["--num_processes=2", "--nnodes=1:2", f"--rdzv_endpoint=127.0.0.1:{port}"]
    (done,) = spawn(["-m", "cifar_dist", "launch", "ddp", *options, str(tiny)], env=forked)
    problem = (
        f"cifar-dist: {socket.gethostname()} has no GPU that torch can use, and {ROOT}/launch/ddp.yaml is for GPUs"
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"{problem}; use: python -m cifar_dist launch cpu --num_processes=2 --nnodes=1:2 --")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("processes", "variables", "refused"),
    [(1, {}, False), (2, {}, True), (2, {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}, False)],
)
def test_a_machine_with_too_few_gpus_does_not_join(
    monkeypatch: pytest.MonkeyPatch, processes: int, variables: dict[str, str], refused: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", lambda *_, device: SimpleNamespace(tolist=list))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    says = pytest.raises(MachineError, match=r"has 1 GPU, and the launcher starts 2 processes on it; use --num_proc")
    with says if refused else nullcontext():
        check_gpus_of_ranks(processes, "MULTI_GPU", "")


@pytest.mark.parametrize(("processes", "refused"), [(0, True), (2, False), (3, True)])
def test_a_machine_with_a_gpu_of_its_ranks_that_torch_cannot_compute_on_does_not_join(
    monkeypatch: pytest.MonkeyPatch, processes: int, refused: bool
) -> None:
    def ones(*_: object, device: str) -> SimpleNamespace:
        if device == "cuda:2":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nFor debugging")
        return SimpleNamespace(tolist=list)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Tesla {number}")
    monkeypatch.setattr(torch, "ones", ones)
    says = pytest.raises(GpuError, match=r"cannot compute on GPU 2 of \S+, Tesla 2 \(CUDA error: no kernel image is a")
    with says if refused else nullcontext():
        check_gpus_of_ranks(processes, "MULTI_GPU", "")


BREAKS = """
import os, sys
if any("cifar_dist.launch.gpus" in word for word in sys.orig_argv):
    import torch
    from types import SimpleNamespace
    def ones(*_, device):
        if os.path.exists({broken!r}):
            raise RuntimeError("CUDA error: unspecified launch failure")
        return SimpleNamespace(tolist=list)
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_name = lambda number: "H200"
    torch.ones = ones
else:
    import runpy
    runpy.run_path({pausing!r})
"""


def test_a_machine_whose_gpu_fails_leaves_the_job_to_the_others(
    tiny: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    """With its rank, which would refuse to start again, with an exit code that ends all machines."""
    port, note, broken = free_port(), tmp_path / "paused", tmp_path / "broken"
    config = tmp_path / "mine.yaml"
    config.write_text((ROOT / "launch" / "cpu.yaml").read_text().replace("use_cpu: true\n", ""))

    def start_machine(number: int) -> warm.Popen:
        folder = tmp_path / f"machine{number}"
        folder.mkdir()
        breaks = str(broken) if number == 2 else str(tmp_path / "never")
        (folder / "misses.py").write_text(MISSES.format(lost=tmp_path / "lost", pausing=str(PAUSING)))
        text = BREAKS.format(broken=breaks, pausing=str(folder / "misses.py"))
        (folder / "sitecustomize.py").write_text(text)
        variables = {**forked, **pausing(12, note), "PYTHONPATH": f"{folder}{os.pathsep}{environment()['PYTHONPATH']}"}
        options = ["--num_processes=1", "--nnodes=1:2", f"--rdzv_endpoint=127.0.0.1:{port}"]
        options += [f"--rdzv_conf=is_host={number == 1},{PATIENT}", f"--local_addr=127.0.0.{number}"]
        command = [sys.executable, "-m", "cifar_dist", "launch", str(config), *options, str(tiny)]
        return warm.Popen(command, env=environment(variables), cwd=ROOT, stdout=-1, stderr=-1, text=True)

    host, other = start_machine(1), start_machine(2)
    paused = wait_for_pause(note, [host, other])
    broken.touch()
    launcher = _launcher(other)
    (rank,) = launcher.children()
    rank.kill()
    paused.send_signal(signal.SIGCONT)
    done = finish([other])
    (tmp_path / f"lost-{launcher.pid}").touch()
    done += finish([host])
    assert [one.returncode for one in done] == [2, 0], done[0].stderr + done[1].stderr
    assert f" cannot compute on GPU 0 of {socket.gethostname()}, H200 (CUDA error: unspecified" in done[0].stderr
    assert "Traceback" not in done[0].stderr
    events = timeline.read(tmp_path / "runs" / "tiny" / "timeline.jsonl")
    assert [event.processes for event in events if event.processes] == [2, 1], done[0].stderr + done[1].stderr


@pytest.mark.parametrize("words", [["--train.parts", "1"], ["--run.processes", "1"]])
def test_a_job_that_a_second_machine_would_end_is_refused(
    tiny: Path, tmp_path: Path, forked: dict[str, str], words: list[str]
) -> None:
    options = ["--num_processes=1", "--nnodes=1:2", f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    (done,) = spawn(["-m", "cifar_dist", "launch", "cpu", *options, str(tiny), *words], env=forked)
    problem = "are too few for 2 processes" if "--train.parts" in words else "and this job may have 2"
    assert done.returncode == 2
    assert problem in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_machine_that_was_not_needed_ends_with_the_job(tiny: Path, tmp_path: Path, forked: dict[str, str]) -> None:
    port, note = free_port(), tmp_path / "paused"
    env = environment({**forked, **pausing(12, note)})

    def start_machine(*, is_host: bool) -> warm.Popen:
        options = ["--num_processes=1", "--nnodes=1:1", f"--rdzv_endpoint=127.0.0.1:{port}"]
        words = ["-m", "cifar_dist", "launch", "cpu", *options, f"--rdzv_conf=is_host={is_host},{PATIENT}", str(tiny)]
        return warm.Popen([sys.executable, *words], env=env, cwd=ROOT, stdout=-1, stderr=-1, text=True)

    first = start_machine(is_host=True)
    paused = wait_for_pause(note, [first])
    spare = start_machine(is_host=False)
    wait_until(lambda: _connects(spare, port), [first, spare])
    paused.send_signal(signal.SIGCONT)
    done = finish([first, spare])
    assert [one.returncode for one in done] == [0, 0], done[1].stderr
    assert done[1].stderr.endswith("cifar-dist: the run is finished; this machine was not needed\n")
    assert "Traceback" not in done[1].stderr


@pytest.mark.parametrize(
    ("late", "words", "code"),
    [("rank", [], 75), ("rank", ["--train.sync_batchnorm", "true"], 2), ("launcher", [], 75)],
    ids=["its rank ends later", "its rank refuses later", "its launcher notices later"],
)
def test_a_machine_that_ends_after_the_host_returns_the_code_of_its_ranks(
    tiny: Path, tmp_path: Path, forked: dict[str, str], late: str, words: list[str], code: int
) -> None:
    """The store at which the machines meet ends with the launcher of the host."""
    port, note, host_ended = free_port(), tmp_path / "paused", tmp_path / "host-ended"
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(
        f"import os, time\n"
        f"end = os._exit\n"
        f"def end_later(code):\n"
        f"    while code in (2, 75) and not os.path.exists({str(host_ended)!r}):\n"
        f"        time.sleep(0.05)\n"
        f"    end(code)\n"
        f"os._exit = end_later\n"
    )

    def start_machine(number: int, variables: dict[str, str]) -> warm.Popen:
        options = ["--num_processes=1", "--nnodes=2:2", f"--rdzv_endpoint=127.0.0.1:{port}"]
        options += [f"--rdzv_conf=is_host={number == 1},{PATIENT}", f"--local_addr=127.0.0.{number}"]
        command = [sys.executable, "-m", "cifar_dist", "launch", "cpu", *options, str(tiny), *words]
        env = environment({**forked, **pausing(12, note), **variables})
        return warm.Popen(command, env=env, cwd=ROOT, stdout=-1, stderr=-1, text=True)

    host = start_machine(1, {})  # it has the lower address, and therefore rank 0
    path = os.pathsep.join([str(tmp_path / "late"), environment()["PYTHONPATH"]])
    other = start_machine(2, {"PYTHONPATH": path} if late == "rank" else {})
    if code == 75:
        paused = wait_for_pause(note, [host, other])
        launcher = _launcher(other)
        if late == "launcher":
            launcher.suspend()
        host.send_signal(signal.SIGTERM)
        resume(paused)
    done = finish([host])
    time.sleep(1)  # in which the other launcher looks for machines that wait
    host_ended.touch()
    if late == "launcher":
        launcher.resume()
    done += finish([other])
    assert [one.returncode for one in done] == [code, code], done[1].stderr
    assert "has left" not in done[1].stderr


@pytest.mark.parametrize(
    ("options", "restarts"), [(["--nnodes=1:2"], 3), (["--nnodes=1:2", "--max_restarts=0"], 0), ([], 0)]
)
def test_a_job_starts_its_ranks_again_as_often_as_it_is_asked_to(options: list[str], restarts: int) -> None:
    if options:
        options = [*options, f"--rdzv_endpoint=127.0.0.1:{free_port()}"]
    code = f"""if True:
        from pathlib import Path
        import accelerate.commands.launch as accelerate
        from cifar_dist.launch.launcher import launch_ranks
        from cifar_dist.launch.options import read_request
        from cifar_dist.runs.launched_run import LaunchedRun
        accelerate.launch_command = lambda arguments: print(arguments.max_restarts)
        asked = read_request(Path("launch/cpu.yaml"), {options})
        launch_ranks([*{options}, "-m", "cifar_dist", "doctor"], asked, LaunchedRun(["doctor"]), [])
    """
    (done,) = spawn(["-c", code])
    assert done.stdout == f"{restarts}\n", done.stderr


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ([], "add --nnodes=1 --rdzv_endpoint=127.0.0.1:29500"),
        (
            ["--num_machines=2", "--num_processes=2", "--main_process_ip=node1"],
            "replace --num_machines with --nnodes=2 --rdzv_endpoint=node1:29500, and count the --num_processes of one "
            "machine",
        ),
    ],
    ids=["one machine", "several"],
)
def test_restarts_that_a_request_to_stop_would_not_end_are_refused(
    tiny: Path, tmp_path: Path, forked: dict[str, str], options: list[str], remedy: str
) -> None:
    """Torchrun starts ranks again whatever their exit code."""
    words = ["-m", "cifar_dist", "launch", "cpu", "--max_restarts=2", *options, str(tiny)]
    (done,) = spawn(words, env=forked)
    problem = f"--max_restarts=2 alone would also start ranks again that stopped on request; {remedy}"
    assert (done.returncode, done.stderr) == (2, f"cifar-dist: {problem}\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("endpoint", "is_host"),
    [
        ("[::1]:29400", ""),
        ("192.0.2.77:29400", ",is_host=True"),
        ("[2001:db8::77]:29400", ",is_host=True"),
        ("192.0.2.78:29400", None),
    ],
)
def test_a_machine_hosts_the_meeting_at_any_of_its_addresses(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, is_host: str | None
) -> None:
    """Torch knows the addresses of its host name only, and has to be told of those of other networks."""
    addresses = [SimpleNamespace(address=address) for address in ("192.0.2.77", "2001:db8::77%ib0")]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"ib0": addresses})
    arguments = argparse.Namespace(rdzv_endpoint=endpoint, rdzv_conf="join_timeout=600")
    assert _hosts(arguments) == (is_host is not None)
    assert arguments.rdzv_conf == f"join_timeout=600{is_host or ''}"


def test_a_rank_that_starts_up_is_asked_again() -> None:
    """It ignores what it is sent until it listens; one request alone would be lost, and the rank killed at last."""
    code = (
        "import signal, sys, time\n"
        "def listen(number, frame):\n"
        "    signal.signal(number, lambda *_: sys.exit(75))\n"
        "signal.signal(signal.SIGRTMIN, listen)\n"
        "print('starting', flush=True)\n"
        "time.sleep(300)\n"
    )
    rank = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert rank.stdout is not None
    assert rank.stdout.readline() == b"starting\n"
    request_end([rank], MACHINE_JOINS, PATIENCE)
    assert rank.wait() == 75
    rank.stdout.close()


def _connects(machine: warm.Popen, port: int) -> bool:
    """Whether a process of a machine is connected to a port."""
    launcher = psutil.Process(machine.pid)
    processes = [launcher, *launcher.children(recursive=True)]
    with contextlib.suppress(psutil.NoSuchProcess):  # one has ended meanwhile: the next call looks again
        return any(one.raddr and one.raddr.port == port for each in processes for one in each.net_connections("tcp"))
    return False


def _launcher(machine: warm.Popen) -> psutil.Process:
    """Return the process of a machine that meets the others."""
    (launcher,) = psutil.Process(machine.pid).children()
    return launcher


def _stop(machine: warm.Popen) -> list[psutil.Process]:
    """Stop all processes of a machine at once, and return them."""
    processes = [psutil.Process(machine.pid), *psutil.Process(machine.pid).children(recursive=True)]
    for process in processes:
        process.suspend()
    return processes
