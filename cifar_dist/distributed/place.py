"""Where a rank runs: a process, its machine, and what is known of it from here."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from cifar_dist.launch.launched import machine_name

_ENDED = "ended"


@dataclass(frozen=True)
class Place:
    """The process of a rank.

    Attributes:
        machine: its name. Several machines or containers may have the same one.
        numbers: names the one system, and the container in it, whose processes ``process`` counts among.
        process: its number.
    """

    machine: str
    numbers: str
    process: int

    @staticmethod
    def here() -> Place:
        """Return the place of this process."""
        return Place(machine_name(), _numbers(), os.getpid())

    def __str__(self) -> str:
        return f"process {self.process} on {self.machine}"

    def status(self) -> str:
        """Return the status as psutil names it, or ``ended``; empty for a process that cannot be seen from here."""
        if self.numbers != _numbers():
            return ""
        try:
            status = str(psutil.Process(self.process).status())
        except psutil.NoSuchProcess:
            return _ENDED
        return _ENDED if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else status

    def is_stopped(self) -> bool:
        """Whether the process is stopped, as far as can be seen from here."""
        return self.status() == str(psutil.STATUS_STOPPED)

    def has_ended(self) -> bool:
        """Whether the process has ended, as far as can be seen from here."""
        return self.status() == _ENDED

    def describe_status(self) -> str:
        """Return the status as in ``it is stopped``; empty for a process that cannot be seen from here."""
        status = self.status()
        return f"it {'has' if status == _ENDED else 'is'} {status}" if status else ""

    def kill(self) -> None:
        """End the process, if it can be seen from here."""
        if self.numbers == _numbers():
            with contextlib.suppress(psutil.Error):
                psutil.Process(self.process).kill()


def _numbers() -> str:
    """Name this start of the system and this container, as Linux does; elsewhere, the machine."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return machine_name()
