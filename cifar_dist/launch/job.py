"""What a launcher knows of the job that its ranks do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cifar_dist.launch.options import LaunchRequest


class Job(Protocol):
    """A collective verb and its arguments, and the run that they train."""

    @property
    def words(self) -> Sequence[str]:
        """The verb and its arguments."""

    @property
    def join_timeout(self) -> float:
        """Seconds to wait for other machines, if the job has several."""

    def is_finished(self) -> bool:
        """Whether the run is finished; asked when an elastic job has ended without this machine."""

    def is_training(self) -> bool:
        """Whether a process trains the run now."""

    def starts(self) -> int | None:
        """Return how often processes have begun to train the run; None if it is finished, or none is trained."""

    def check_elastic(self, asked: LaunchRequest, processes: Sequence[int], *, has_begun: bool = False) -> None:
        """Refuse a job, or this machine of it, that would end all machines once it has joined them.

        Args:
            asked: the processes of this machine.
            processes: all numbers of processes that the job may have; empty if they are unknown.
            has_begun: whether ranks of the job have trained before, also if no process trains the run now.

        Raises:
            UserError: it cannot train with one of them, or not with the job that trains the run now.
        """

    def words_to_continue(self) -> Sequence[str]:
        """Return the words of ranks that start again, because a machine was lost or joins."""
