"""How a process ends, and standard streams that are closed when it begins or while it runs."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import PATIENCE, ROOT, TRAIN, environment, free_port, metrics, pausing, spawn, wait_for_pause


def test_a_run_that_begins_with_closed_streams_trains(tiny: Path, tmp_path: Path) -> None:
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", sys.executable, TRAIN, str(tiny), "--train.epochs", "1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(tmp_path / "runs" / "tiny")


def test_a_mistake_keeps_its_exit_code_if_stderr_is_closed() -> None:
    command = ["bash", "-c", 'exec "$@" 2>&-', "-", sys.executable, TRAIN, "nowhere"]
    assert subprocess.run(command, env=environment(), timeout=PATIENCE).returncode == 2


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_closed_terminal_is_no_failure(tiny: Path, tmp_path: Path, when: str) -> None:
    """As under nohup: no signal, but an error for each line that is written."""
    ours, terminal = pty.openpty()
    command = [TRAIN, str(tiny), "--train.epochs", "1"] if when == "while" else ["-m", "cifar_dist", "recipes"]
    words = ["sh", "-c", 'trap "" HUP; exec "$@"', "-", sys.executable, *command]
    note = tmp_path / "paused"
    env = environment(pausing(1, note) if when == "while" else {})
    process = subprocess.Popen(words, env=env, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    paused = wait_for_pause(note, [process]) if when == "while" else None
    os.close(ours)
    if paused is not None:
        paused.send_signal(signal.SIGCONT)
    assert process.wait(PATIENCE) == 0
    assert when == "before" or (tmp_path / "runs" / "tiny" / "report.html").is_file()


def test_work_does_not_end_with_the_reader_of_its_output() -> None:
    """Ctrl-C at `cifar-dist launch ... 2>&1 | tee log` ends tee first, and the launcher says that it stops."""
    code = "from cifar_dist.process_exit import exit_with; from cifar_dist.terminal.notice import notice; import sys; "
    code += "exit_with(lambda: notice('stopping') or print('stopping', flush=True) or 75)"
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run([sys.executable, "-c", code], env=environment(), stdout=pipe, stderr=pipe)
    assert done.returncode == 75


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("print('a table')", 1),
        ("print('a table', flush=True)", 1),
        ("write_output(Path('/dev/stdout'), 'a table')", 1),
        ("print('a table', end='') or 75", 75),
        ("suppress_all(lambda: print('what training says', flush=True))", 0),
        ("print('a warning', file=sys.stderr)", 0),
    ],
)
@pytest.mark.parametrize("to", ["out", "/dev/full"])
def test_what_cannot_be_printed_is_a_failure_of_one_line(work: str, code: int, to: str, tmp_path: Path) -> None:
    """On a full disk, whose place a limit on the size of files takes, unless the work has done without the output."""
    program = f"""if True:
        import contextlib, sys
        from pathlib import Path
        from cifar_dist.files.outputs import write_output
        from cifar_dist.process_exit import exit_with
        def suppress_all(work):
            with contextlib.suppress(OSError):
                work()
        exit_with(lambda: {work} or 0)
    """
    other = "2" if "stderr" in work else "1"
    words = ["bash", "-c", f'ulimit -f 0; exec "$@" {other}>{to}', "-", sys.executable, "-c", program]
    env = environment({"PYTHONUNBUFFERED": ""})
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE)
    cause = "No space left on device" if to == "/dev/full" else "File too large"
    name = "/dev/stdout" if "write_output" in work else "standard output"
    assert (done.returncode, done.stderr) == (code, f"cifar-dist: {name}: {cause}\n" if code == 1 else "")


def test_a_mistake_keeps_its_exit_code_if_stderr_is_on_a_full_disk(tmp_path: Path) -> None:
    words = ["bash", "-c", 'ulimit -f 0; exec "$@" 2>err', "-", sys.executable, "-m", "cifar_dist", "nothing"]
    assert subprocess.run(words, cwd=tmp_path, env=environment(), timeout=PATIENCE).returncode == 2


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        ("write_output(Path('/dev/stdout'), 'x' * 200_000)", 0, ""),
        ("write_output(Path('/dev/fd/PIPE'), 'x')", 1, "cifar-dist: /dev/fd/PIPE: Broken pipe\n"),
        ("open(PIPE, 'wb', 0).write(b'x')", 1, "cifar-dist: a file: Broken pipe\n"),
    ],
)
def test_only_the_reader_of_standard_output_may_end_first(work: str, code: int, said: str) -> None:
    program = "from pathlib import Path; from cifar_dist.process_exit import exit_with; "
    program += "from cifar_dist.files.outputs import write_output; exit_with(lambda: WORK and 0 or 0)"
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        command = [sys.executable, "-c", program.replace("WORK", work.replace("PIPE", str(writer)))]
        done = subprocess.run(
            command, env=environment(), stdout=pipe, stderr=subprocess.PIPE, text=True, pass_fds=[writer]
        )
    assert (done.returncode, done.stderr) == (code, said.replace("PIPE", str(writer)))


def test_a_letter_that_the_output_cannot_encode_is_escaped() -> None:
    code = "from cifar_dist.process_exit import exit_with; exit_with(lambda: print('caf\\udce9 \\u6c49') or 0)"
    (done,) = spawn(["-c", code], env={"PYTHONIOENCODING": "ascii:strict"}, fresh=True)
    assert (done.returncode, done.stdout) == (0, "caf\\udce9 \\u6c49\n"), done.stderr


FAULTS = {
    "a fault of the disk": "open('/proc/self/mem', 'rb').read()",
    "that a reader turned into its own message": "read_config(Path('/proc/self/mem'))",
    "of one rank": "write_atomic(Path('/dev/full/x'), '')",
    "while memory is short": "raise OSError(errno.ENOMEM, 'Cannot allocate memory', 'x')",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_machine_is_one_line_and_not_bad_input(fault: str) -> None:
    code = f"""if True:
        import errno
        from pathlib import Path
        from cifar_dist.config.saved import read_config
        from cifar_dist.files.atomic import write_atomic
        from cifar_dist.process_exit import exit_with
        def work():
            {FAULTS[fault]}
        exit_with(work)
    """
    (done,) = spawn(["-c", code])
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("cifar-dist: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_rank_names_its_own_gpu_though_it_is_not_the_first() -> None:
    code = """if True:
        from cifar_dist.errors import GpuError
        from cifar_dist.process_exit import exit_with
        def work(): raise GpuError("torch cannot compute on GPU 3")
        exit_with(work)
    """
    place = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}
    (done,) = spawn(["-c", code], env={**place, "MASTER_PORT": str(free_port())})
    assert (done.returncode, done.stderr) == (2, "cifar-dist: torch cannot compute on GPU 3\n")


def test_a_limit_on_address_space_that_torch_does_not_fit_into_is_named() -> None:
    """As login nodes of some clusters have one."""
    code = """if True:
        import resource
        from cifar_dist.process_exit import exit_with
        def work():
            resource.setrlimit(resource.RLIMIT_AS, (2**29, resource.RLIM_INFINITY))
            import torch
        exit_with(work)
    """
    (done,) = spawn(["-c", code], fresh=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.endswith("; a limit on address space leaves too little for it: ulimit -v unlimited\n")


@pytest.mark.parametrize(
    "starts",
    [
        "threading.Thread(target=print).start()",
        "subprocess.run(['true'])",
        "distributed.ProcessGroupGloo(distributed.HashStore(), 0, 1)",
    ],
    ids=["thread", "process", "gloo"],
)
def test_a_limit_on_threads_and_processes_is_named(starts: str) -> None:
    """As a user has one who fills a login node with other jobs, or a container with a pids limit."""
    code = f"""if True:
        import os, resource, subprocess, threading
        from torch import distributed
        from cifar_dist.process_exit import exit_with
        def work():
            if os.getuid() == 0:
                os.setuid(54321)  # the limit does not apply to root
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
            {starts}
        exit_with(work)
    """
    (done,) = spawn(["-c", code])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.endswith(
        "; no more threads or processes may be started: raise ulimit -u, or the pids limit of the container\n"
    )


def test_ctrl_c_during_a_command_that_has_nothing_to_save_is_named() -> None:
    code = """if True:
        import os, signal, sys
        from cifar_dist import process_exit
        answer = process_exit.notice
        def notice(text):
            os.kill(os.getpid(), signal.SIGINT)  # pressed again
            answer(text)
        process_exit.notice = notice
        def work(): raise KeyboardInterrupt
        process_exit.exit_with(work)
    """
    (done,) = spawn(["-c", code])
    assert (done.returncode, done.stderr) == (130, "cifar-dist: stopped by Ctrl-C\n")


@pytest.mark.parametrize(("given", "said"), [("'set DATA first'", ": set DATA first"), ("0", ": 0"), ("", "")])
def test_a_plug_in_that_calls_exit_has_failed_and_its_text_is_printed(tmp_path: Path, given: str, said: str) -> None:
    code = tmp_path / "code.py"
    code.write_text(f"import sys\ndef read():\n    sys.exit({given})\n")
    (done,) = spawn(["-m", "cifar_dist", "pack", f"{code}:read", str(tmp_path / "out")])
    line = f"cifar-dist: the plug-in {code}, line 3, raised SystemExit{said}\n"
    assert (done.returncode, done.stderr) == (1, line), done.stdout


@pytest.mark.parametrize(
    ("given", "code", "said"), [("'a text'", 1, "cifar-dist: a text\n"), ("3", 3, ""), ("None", 0, "")]
)
def test_what_exit_is_called_with_is_the_code_or_printed(given: str, code: int, said: str) -> None:
    program = f"import sys; from cifar_dist.process_exit import exit_with; exit_with(lambda: sys.exit({given}))"
    (done,) = spawn(["-c", program])
    assert (done.returncode, done.stderr) == (code, said)
