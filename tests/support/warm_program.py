"""``python``, or a program of the environment, run by a fork of the warm interpreter of :mod:`support.warm`.

It stands in for the program: it passes on arguments, environment, files and working folder, forwards each signal, and
ends as the fork ends. If the environment names no warm interpreter, or if a fork cannot honour an option of Python, it
executes the program itself.
"""

import ctypes
import json
import os
import signal
import socket
import sys

_NAMESPACES = ("uts", "net", "mnt")  # in which a node of tests/slurm differs
_PR_SET_PDEATHSIG = 1  # prctl(2)
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGRTMIN)


def main() -> None:
    name = os.path.basename(sys.argv[0])
    words = sys.argv[1:]
    if name.startswith("python"):
        while words[:1] == ["-u"]:  # as all forks are
            words.pop(0)
    else:
        words.insert(0, os.path.join(os.path.dirname(sys.executable), name))
    address = os.environ.get("CIFAR_DIST_TEST_WARM")
    if not address or not words or (words[0].startswith("-") and words[0] not in ("-m", "-c")):
        os.execv(sys.executable, [sys.executable, *words])
    if "CIFAR_DIST_LAUNCHER" in os.environ:  # a rank ends with its launcher, see cifar_dist/launch/parent_death.py
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ["CIFAR_DIST_LAUNCHER"]):
            return
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(address)
    message = {
        "words": words,
        "cwd": os.getcwd(),
        "env": dict(os.environ),
        "ignored": [number for number in _FORWARDED if signal.getsignal(number) == signal.SIG_IGN],
        "cpus": list(os.sched_getaffinity(0)),
        "namespaces": len(_NAMESPACES),
    }
    namespaces = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in _NAMESPACES]
    socket.send_fds(server, [json.dumps(message).encode()], [*namespaces, 0, 1, 2])
    fork = int(server.recv(32))

    def forward(number: int, _frame: object) -> None:
        try:
            os.kill(fork, number)
        except ProcessLookupError:
            pass

    for number in _FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    code = int(server.recv(32))
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
