"""Processes that are forks of an interpreter that has already imported torch.

Importing torch and what training needs takes five seconds of CPU time, and a small run takes one. The forks are
processes like any other: with arguments, environment, working folder and output of their own, killed and waited for
by their process id. What differs: libraries have read their environment already (OMP_NUM_THREADS, say), strings hash
alike in all of them, and their parent is not the process that started them.

:class:`Popen` forks for a test; :func:`programs` for a shell, a launcher or a cluster, which start programs by name.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import inspect
import io
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_ADDRESS = "CIFAR_DIST_TEST_WARM"
_HUGE_PAGES = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""For the warm interpreter only. A fork copies its page table, which has a hundred thousand entries for small pages."""
_IMPORTED = (
    *("accelerate.commands.accelerate_cli", "sklearn.datasets", "torch._dynamo", "torch.distributed.run"),
    *("torch.export", "webdataset"),
)
"""What some command imports, in up to two seconds: here once, not in each fork."""
_PROGRAMS = ("python", "python3", "cifar-dist", "accelerate", "torchrun")


class Popen(subprocess.Popen[str]):
    """``subprocess.Popen`` of ``[sys.executable, *words]``, forked from this process's warm interpreter."""

    def _execute_child(self, *args: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*args).arguments  # type: ignore[misc]
        message = {"words": list(map(str, given["args"][1:])), "cwd": str(given["cwd"]), "env": given["env"]}
        pipes = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        libc = ctypes.CDLL(None)
        # The fork's parent ends at once; while this is set it becomes a child of this process, which waits for it.
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            server, _ = _server()
            socket.send_fds(server, [json.dumps(message).encode()], [given["c2pwrite"], given["errwrite"]])
            self.pid = int(server.recv(32))
        finally:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
        self._child_created = True


def programs(folder: Path) -> dict[str, str]:
    """Fill ``folder/bin`` with the programs of this environment, Python and ours run by :mod:`support.warm_program`.

    Returns the environment variables that a process needs for it. Without them the programs are the real ones.
    """
    real, bin_folder = Path(sys.executable).parent, folder / "bin"
    source = Path(__file__).with_name("warm_program.py").read_text()
    bin_folder.mkdir(parents=True)
    for program in real.iterdir():
        if program.name not in (*_PROGRAMS, "activate"):
            (bin_folder / program.name).symlink_to(program)
    for name in _PROGRAMS:
        (bin_folder / name).write_text(f"#!{sys.executable} -IS\n{source}")
        (bin_folder / name).chmod(0o755)
    (bin_folder / "activate").write_text(f"export PATH={bin_folder}:$PATH\n")  # the real one names the real folder
    return {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", _ADDRESS: f"{_server()[1].name}/socket"}


@functools.cache
def _server() -> tuple[socket.socket, tempfile.TemporaryDirectory[str]]:
    """Start the warm interpreter, which ends with this process; return a connection and its socket's folder."""
    folder = tempfile.TemporaryDirectory(prefix="cifar-dist-warm-")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(f"{folder.name}/socket")
    listening.listen(64)
    subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno()), str(listening.fileno())],
        pass_fds=[theirs.fileno(), listening.fileno()],
        env={**os.environ, **_HUGE_PAGES, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()
    listening.close()
    return ours, folder


def serve(server: socket.socket, programs: socket.socket) -> None:
    """Fork a process for each message and for each program, until the other end of ``server`` is closed."""
    from matplotlib.figure import Figure

    import cifar_dist
    from cifar_dist import recipe

    ours = (module.name for module in pkgutil.walk_packages(cifar_dist.__path__, "cifar_dist."))
    for name in (*_IMPORTED, *ours):
        if not name.endswith("__main__"):  # which ``python -m`` imports, and warns of if it is already
            importlib.import_module(name)
    Figure(layout="constrained").savefig(io.BytesIO())  # reads its fonts and loads its backend
    recipe.load("demo")  # builds what validates settings
    gc.freeze()
    watchers: list[int] = []
    while True:
        watchers = [pid for pid in watchers if not os.waitpid(pid, os.WNOHANG)[0]]
        ready = _wait_for(server, programs)
        if programs in ready:
            connection, _ = programs.accept()
            message, files, *_ = socket.recv_fds(connection, 2**20, 8)
            if message:  # else it was killed
                _import_engine(message)
                given = (connection, json.loads(message), files, [server, programs])
                watchers.append(_fork(lambda given=given: _watch(*given)))
            for file in (connection.detach(), *files):
                os.close(file)
        if server in ready:
            message, files, *_ = socket.recv_fds(server, 2**20, 2)
            if not message:
                return
            _import_engine(message)
            reading, writing = os.pipe()

            def fork_twice(message: bytes = message, files: list[int] = files, writing: int = writing) -> None:
                child = _fork(lambda: _become(json.loads(message), files, [server, programs]))
                os.write(writing, str(child).encode())

            os.waitpid(_fork(fork_twice), 0)  # from here on the child has its new parent
            server.send(os.read(reading, 32))
            for file in (reading, writing, *files):
                os.close(file)


def _wait_for(*files: socket.socket | int) -> list[socket.socket | int]:
    """Wait until some of the files can be read; return them. Unlike select.select it takes numbers above 1023."""
    arrivals = select.poll()
    by_number = {file if isinstance(file, int) else file.fileno(): file for file in files}
    for number in by_number:
        arrivals.register(number, select.POLLIN)
    return [by_number[number] for number, _ in arrivals.poll()]


def _fork(work: Any) -> int:
    """Do ``work`` in a fork of this process and end it; return its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def _import_engine(message: bytes) -> None:
    """Import DeepSpeed, which takes three seconds, once for the forks that use it."""
    if json.loads(message)["env"].get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed.compile.init_z1_and_2  # noqa: F401
        import transformers.integrations.deepspeed  # noqa: F401 - Accelerate imports it beside DeepSpeed

        gc.freeze()


def _watch(program: socket.socket, message: dict[str, Any], files: list[int], others: list[socket.socket]) -> None:
    """Run the command of ``program`` in a fork; send its process id and exit code; kill it if ``program`` is killed."""
    child = _fork(lambda: _become(message, files, [program, *others]))
    for file in files:
        os.close(file)
    program.send(str(child).encode())
    ended = os.pidfd_open(child)
    if ended not in _wait_for(ended, program):
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        program.send(str(code).encode())
    except BrokenPipeError:
        pass


def _become(message: dict[str, Any], files: list[int], sockets: list[socket.socket]) -> None:
    """Run ``python *words`` in this process, to its end.

    The last of ``files`` become its standard files, and the others are the namespaces that it enters.
    """
    for other in sockets:
        other.close()
    standard = files[message.get("namespaces", 0) :]
    for namespace in files[: -len(standard)]:
        _enter(namespace)
    for number, file in enumerate(standard, start=3 - len(standard)):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    for number in message.get("ignored", ()):
        signal.signal(number, signal.SIG_IGN)
    if "cpus" in message:
        os.sched_setaffinity(0, message["cpus"])
    os.environ.clear()
    os.environ.update(message["env"])
    tempfile.tempdir = None  # it is in the environment
    os.environ.pop("CIFAR_DIST_LAUNCHER", None)  # the parent of this process is another; what it stands in for ends
    if _ADDRESS in os.environ:  # what this process starts is forked, too
        sys.executable = shutil.which("python") or sys.executable
    os.chdir(message["cwd"])
    path = message["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.orig_argv = [sys.executable, *message["words"]]
    kind, *words = message["words"]
    script = Path(kind).parent if not kind.startswith("-") else message["cwd"]
    sys.path[:1] = [*([] if message["env"].get("PYTHONSAFEPATH") else [str(script)]), *filter(None, path)]
    _forget_other_package()
    code: object = 1
    try:
        if "CIFAR_DIST_TEST_PAUSE_AFTER" in os.environ:
            importlib.import_module("sitecustomize")  # tests/support/pausing
        if "CIFAR_DIST_TEST_DIE_AT" in os.environ:
            from support import crashing

            crashing.arm_by_environment()
        if "CIFAR_DIST_TEST_DRAWN" not in os.environ and "report" not in words:
            sys.modules["cifar_dist.report.run_page"] = None  # type: ignore[assignment]  # its import fails
        if kind == "-m":
            sys.argv = words
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *words[1:]]
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(words[0], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = [kind, *words]
            runpy.run_path(kind, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


def _enter(namespace: int) -> None:
    """Enter a namespace (a file of /proc/PID/ns), unless this process is in it."""
    own = os.stat(f"/proc/self/ns/{os.readlink(f'/proc/self/fd/{namespace}').partition(':')[0]}")
    if own.st_ino != os.fstat(namespace).st_ino:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace, 0):
            raise OSError(ctypes.get_errno(), "setns")


def _forget_other_package() -> None:
    """Import ``cifar_dist`` again if the path leads to another copy than the imported one."""
    spec = PathFinder.find_spec("cifar_dist", sys.path)
    if spec is None or spec.origin != sys.modules["cifar_dist"].__file__:
        for name in [name for name in sys.modules if name.partition(".")[0] == "cifar_dist"]:
            del sys.modules[name]


if __name__ == "__main__":
    serve(*(socket.socket(fileno=int(file)) for file in sys.argv[1:3]))
    os._exit(0)  # some of torch's libraries complain about their own leaks at the interpreter's exit
