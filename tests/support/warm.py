"""Processes that are forked from an interpreter which has imported torch already, rather than started anew.

Importing torch and what training needs takes five seconds of CPU time, and a small run takes one. The forks are
processes like any other: with arguments, environment, working folder and output of their own, killed and waited for
by their number. What differs: libraries have read their environment already (OMP_NUM_THREADS, say), and strings hash
alike in all of them.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import inspect
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
import types
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


class Popen(subprocess.Popen[str]):
    """``subprocess.Popen`` of ``[sys.executable, *words]``, forked from this process's warm interpreter."""

    def _execute_child(self, *args: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*args).arguments
        message = {"words": list(map(str, given["args"][1:])), "cwd": str(given["cwd"]), "env": given["env"]}
        pipes = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        libc = ctypes.CDLL(None)
        # The fork's parent ends at once; while this is set it becomes a child of this process, which waits for it.
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            server = _server()
            socket.send_fds(server, [json.dumps(message).encode()], [given["c2pwrite"], given["errwrite"]])
            self.pid = int(server.recv(32))
        finally:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
            self._close_pipe_fds(*pipes)
        self._child_created = True


@functools.cache
def _server() -> socket.socket:
    """The warm interpreter, which ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()
    return ours


def serve(server: socket.socket) -> None:
    """Fork a process for each message, until the other end is closed."""
    import accelerate  # noqa: F401
    import torch._dynamo  # noqa: F401 - torch imports it when it makes an optimizer
    from matplotlib.figure import Figure

    import cifar_dist.report.html
    import cifar_dist.training.trainer
    import cifar_dist.verbs.train  # noqa: F401

    Figure(layout="constrained").savefig(io.BytesIO())  # reads its fonts and loads its backend
    gc.freeze()
    while True:
        message, files, *_ = socket.recv_fds(server, 2**20, 2)
        if not message:
            return
        reading, writing = os.pipe()
        parent = os.fork()
        if parent == 0:
            child = os.fork()
            if child == 0:
                server.close()
                _become(json.loads(message), files)
            os.write(writing, str(child).encode())
            os._exit(0)
        os.waitpid(parent, 0)  # from here on it has its new parent
        server.send(os.read(reading, 32))
        for file in (reading, writing, *files):
            os.close(file)


def _become(message: dict[str, Any], files: list[int]) -> None:
    """Run ``python *words`` in this process, to its end."""
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(message["env"])
    os.chdir(message["cwd"])
    path = message["env"].get("PYTHONPATH", "").split(os.pathsep)
    kind, *words = message["words"]
    sys.path[:1] = [str(Path(kind).parent) if kind.endswith(".py") else message["cwd"], *path]
    code: object = 1
    try:
        if "CIFAR_DIST_TEST_PAUSE_AFTER" in os.environ:
            import sitecustomize  # noqa: F401 - tests/support/pausing
        if "CIFAR_DIST_TEST_DIE_AT" in os.environ:
            from support import crashing

            crashing.arm_by_environment()
        if "CIFAR_DIST_TEST_UNDRAWN" in os.environ:
            sys.modules["cifar_dist.report.html"] = None  # type: ignore[assignment] - as if it could not be imported
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


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # some of torch's libraries complain about their own leaks at the interpreter's exit
