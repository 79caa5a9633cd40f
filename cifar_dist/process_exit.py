"""How a process ends: one line for the reader, the right exit code, and no abort on the way out."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from cifar_dist.distributed.launch_checks import is_main_process
from cifar_dist.errors import TrainingFailedError, UserError
from cifar_dist.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED


def exit_with(work: Callable[[], int]) -> NoReturn:
    """Run ``work`` and end the process with its exit code.

    A :class:`UserError` is known to all ranks alike (the engine sees to it), so rank 0 alone says it. The interpreter's
    own shutdown is left out: with a gloo process group it aborts about one job in thirty after the work is done.
    """
    try:
        code = work()
    except UserError as error:
        code = _say(error, EXIT_BAD_INPUT)
    except TrainingFailedError as error:
        code = _say(error, EXIT_FAILED)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:  # argparse and tyro end this way
        code = error.code if isinstance(error.code, int) else EXIT_FAILED if error.code else 0
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        code = 0
    except BaseException:
        traceback.print_exc()
        code = EXIT_FAILED
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            pass
    os._exit(code)


def _say(error: Exception, code: int) -> int:
    if is_main_process():
        print(f"cifar-dist: {error}", file=sys.stderr)
    return code
