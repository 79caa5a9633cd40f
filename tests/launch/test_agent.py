"""Which rank the agent blames when several have failed, and the exit code of the job."""

from __future__ import annotations

import signal

import pytest

from cifar_dist.exit_codes import how_it_ended
from cifar_dist.launch.agreed_code import Failure, agreed_code


@pytest.mark.parametrize(
    ("failures", "blamed", "code"),
    [
        ([(-9, 10), (-15, 10)], 0, 137),
        ([(-15, 10), (-9, 10)], 1, 137),
        ([(-7, 10), (-9, 40)], 0, 135),
        ([(-9, 40), (-11, 10)], 1, 139),
        ([(-9, 10), (-11, 10)], 1, 139),
        ([(1, 10), (-9, 10)], 1, 137),
        ([(1, 10), (-15, 10)], 0, 1),
        ([(-9, 40), (1, 10)], 1, 1),
        ([(-6, 11), (1, 10)], 1, 1),
        ([(1, 11), (4, 10)], 1, 4),
        ([(1, 10), (1, 10)], 0, 1),
        ([(-9, 10), (75, 20)], 0, 137),
        ([(1, 10), (75, 10)], 0, 1),
    ],
    ids=[
        "TERM is sent to those that are left",
        "in any order",
        "a rank that hangs after a fault is killed",
        "and may have the lower number",
        "a fault explains more than KILL",
        "ranks fail that have lost one that was killed",
        "ranks are ended after an error of one",
        "or killed, if they hang in an exchange with it",
        "a library aborts in a rank that is ended",
        "the first error causes the others",
        "of two at once the one noticed first",
        "ranks that wait for one that was killed are asked to stop",
        "in the same second",
    ],
)
def test_the_failure_that_caused_the_others_is_reported(
    capsys: pytest.CaptureFixture[str], failures: list[tuple[int, int]], blamed: int, code: int
) -> None:
    """A negative code is a signal; torchrun's KILL comes 30 s after its TERM."""
    assert agreed_code([Failure(f"rank {rank}", *failure) for rank, failure in enumerate(failures)]) == code
    cause = how_it_ended(failures[blamed][0])
    killed = "if nobody did that, the memory of its machine, job or container ran out"
    where = killed if failures[blamed][0] == -9 else "its output is above"
    assert capsys.readouterr().err == f"cifar-dist: rank {blamed} {cause}; {where}\n"


@pytest.mark.parametrize("agreed", [75, 2, 69, 124, 3])
def test_a_code_that_the_ranks_agreed_on_stands_for_all(capsys: pytest.CaptureFixture[str], agreed: int) -> None:
    assert agreed_code([Failure("rank 0", agreed, 10), Failure("rank 1", -9, 40)]) == agreed
    assert capsys.readouterr().err == ""


def test_bad_input_of_one_rank_is_not_hidden_by_those_that_wait_for_it() -> None:
    """Torchrun asks them to stop, and they end with 75 before they have joined."""
    assert agreed_code([Failure("rank 2", 2, 10), Failure("rank 0", 75, 20), Failure("rank 1", 75, 20)]) == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1, "failed with exit code 1"),
        (-signal.SIGBUS, "was killed by SIGBUS"),
        (-signal.SIGRTMIN - 1, f"was killed by signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_signals_are_named(code: int, said: str) -> None:
    assert how_it_ended(code) == said
