"""A full disk: a real limit on the size of files."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable


def error_of(work: Callable[[], object], limit: int) -> str:
    """Call ``work`` in a fork that can write no file beyond ``limit`` bytes; return the text of its OSError.

    Empty: it succeeded, or raised something else.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            work()
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as text:
        said = text.read()
    os.waitpid(child, 0)
    return said
