"""Drives one mirror from a thread of its own, so that a mirror that waits, or hangs, does not hold up training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from cifar_dist.config.plugin_errors import describe_plugin_failure
from cifar_dist.tracking.metrics import Record
from cifar_dist.tracking.mirror import Mirror

_REASON_LENGTH = 300
MOST_STEPS = 256  # of one call, so that it returns in time, however long a mirror takes for each step


def shortened(error: BaseException) -> str:
    """Describe an error in one short line, with the line of the plug-in that raised it."""
    text = describe_plugin_failure(error) or str(error)
    return " ".join(text.split())[:_REASON_LENGTH] or type(error).__name__


class MirrorThread:
    """Calls the methods of a mirror in the order in which they were asked for, and none after one that failed.

    Args:
        mirror: the mirror.
    """

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self._calls: SimpleQueue[tuple[str, Callable[[Mirror], None]] | None] = SimpleQueue()
        self._under_way: tuple[str, float] | None = None  # what, and since when
        self._steps: list[Record] = []  # of the last call, if that one records steps and has not begun
        self._lock = threading.Lock()  # of these
        self._failure = ""
        self._is_given_up = False
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def ask(self, what: str, method: Callable[[Mirror], None]) -> None:
        """Have a method called once those before it have returned; ``what`` completes "could not ..."."""
        with self._lock:
            self._steps = []
        self._calls.put((what, method))

    def ask_to_record(self, steps: Sequence[Record]) -> None:
        """Have training steps recorded.

        Those that arrive while the mirror is busy are recorded by one call: a mirror that takes longer for a call than
        a few steps last falls behind no further.
        """
        with self._lock:
            begins = not self._steps or len(self._steps) + len(steps) > MOST_STEPS
            if begins:
                gathered: list[Record] = []
                self._steps = gathered
                self._calls.put(("record training steps", lambda mirror: mirror.train_steps(self._take(gathered))))
            self._steps.extend(steps)

    def failure(self, patience: float) -> str:
        """Return what the mirror could not do, and why; empty if nothing.

        Args:
            patience: seconds after which a method that has not returned has failed.
        """
        under_way = self._under_way
        if self._failure or under_way is None or time.monotonic() - under_way[1] < patience:
            return self._failure
        self._is_given_up = True
        self._calls.put(None)
        return f"{under_way[0]}: no answer for {patience:.0f} s"

    def end(self, seconds: float) -> bool:
        """Wait at most so long until all methods have returned; return whether they have. No other is called after."""
        self._calls.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _take(self, gathered: list[Record]) -> list[Record]:
        """Return the steps of a call that begins; later ones are for another."""
        with self._lock:
            if self._steps is gathered:
                self._steps = []
            return gathered

    def _run(self) -> None:
        while not self._is_given_up and (call := self._calls.get()) is not None:
            what, method = call
            self._under_way = what, time.monotonic()
            try:
                method(self.mirror)
            except BaseException as error:  # whatever it is, it is the mirror's and not the run's
                self._failure = f"{what}: {shortened(error)}"
                break
            finally:
                self._under_way = None
        if self._failure or self._is_given_up:
            try:
                self.mirror.close(None)
            except BaseException:
                pass  # the first failure is the one that is reported
