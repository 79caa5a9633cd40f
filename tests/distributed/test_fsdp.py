"""FSDP over gloo: every network is sharded, and updated as on one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import fsdp_on_ranks
from support.running import TRAIN, spawn


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("fsdp") / "found.json"
    (done,) = spawn([fsdp_on_ranks.__file__, str(out)], timeout=400)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return {**json.loads(out.read_text()), "alone": json.loads(out.with_name("alone.json").read_text())}


@pytest.mark.parametrize("name", fsdp_on_ranks.NETWORKS)
def test_a_process_holds_half_and_the_update_is_that_of_one_process(found: dict[str, object], name: str) -> None:
    """Compares weights, frozen ones included, batch statistics and predictions, after a lookahead."""
    assert found[name] == ""


def test_one_process_is_fsdp_too(found: dict[str, object]) -> None:
    """Its hooks and its exchanges, on a machine with one GPU."""
    assert found["alone"] == {fsdp_on_ranks.FROZEN: ""}


def test_one_process_without_a_launcher_is_refused(tiny: Path) -> None:
    (done,) = spawn([TRAIN, str(tiny)], env={"ACCELERATE_USE_FSDP": "true"})
    assert done.returncode == 2
    assert done.stderr == "cifar-dist: FSDP was asked for and there is no process group; start with launch/fsdp.yaml\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--optim.name", "muon"],
            'optim.name = "muon" needs full weights and gradients on each process, not FSDP; use: cifar-dist launch',
        ),
        (
            ["--train.compile"],
            'train.compile = "default" needs one process, DDP or DeepSpeed, not FSDP',
        ),
    ],
)
def test_what_needs_unsharded_weights_is_refused(tiny: Path, words: list[str], says: str) -> None:
    done = spawn([TRAIN, str(tiny), *words], processes=2, env={"ACCELERATE_USE_FSDP": "true"})
    assert {process.returncode for process in done} == {2}
    assert says in done[0].stderr
    assert not (tiny.parent / "runs").exists()
