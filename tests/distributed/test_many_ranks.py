"""64 and 512 ranks, rehearsed on this machine: what grows with their number is bounded, see docs/scaling.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.many_ranks import agree_once, answer, decide, poll_until_stopped, run_on_ranks, train_until_stopped
from support.small_checkpoint import state, tensors

from cifar_dist import checkpoint
from cifar_dist.data.order import epoch_order, global_batch, micro_batches, own_parts, steps_per_epoch
from cifar_dist.distributed.launch_checks import check_launch
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.doctor.network import connections
from cifar_dist.errors import UserError
from cifar_dist.slurm.node import Node

MANY = pytest.mark.parametrize("world_size", [64, 512])
SHARDS, BATCH = [200] * 7, 512  # the last of three batches has 376 samples


@MANY
def test_a_launch_of_many_ranks_is_checked_and_described(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"WORLD_SIZE": str(world_size), "RANK": "63", "MASTER_ADDR": "gpu001", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    check_launch(world_size)
    with pytest.raises(UserError, match=f"run.processes is 8 and the launcher started {world_size}"):
        check_launch(8)
    nodes = world_size // 8
    variables = {"SLURM_NODEID": str(nodes - 1), "SLURM_NNODES": str(nodes), "SLURM_GPUS_ON_NODE": "8"}
    node = Node.from_environment({**variables, "SLURM_JOB_NODELIST": f"gpu[001-{nodes:03}]", "SLURM_JOB_ID": "12"})
    assert node.options[:3] == [
        f"--num_processes={world_size}",
        f"--num_machines={nodes}",
        f"--machine_rank={nodes - 1}",
    ]


def test_rank_0_of_512_needs_more_connections_than_systems_begin_with() -> None:
    """The doctor therefore checks the limit of open files; 64 ranks stay below it."""
    assert connections(64) < 1024 < connections(512)


@MANY
def test_every_sample_occurs_once_and_a_rank_holds_only_its_share(world_size: int) -> None:
    order = epoch_order(SHARDS, seed=3, epoch=1, block=4)
    counted = torch.zeros(len(order))
    steps = steps_per_epoch(len(order), BATCH)
    for rank in range(world_size):
        held = 0
        for step in range(steps):
            (part,) = micro_batches(
                global_batch(order, step, BATCH), own_parts(world_size, rank, world_size), world_size
            )
            counted.index_add_(0, part.ids, part.weight)
            held += len(part.ids)
        assert held <= len(order) / world_size + steps, "one sample of padding a step at most"
    assert counted.eq(1).all()


@MANY
def test_all_stop_after_one_step_when_one_is_asked_to(world_size: int) -> None:
    asked = world_size * 3 // 5
    results, traffic = run_on_ranks(world_size, lambda ranks: train_until_stopped(ranks, asked, at=3))
    assert set(results.values()) == {(4, "USR1")}, "read one step late"
    assert set(traffic.messages.values()) == {4}, "one collective a step, whatever the number of ranks"
    assert set(traffic.bytes.values()) == {4 * 8}


@MANY
def test_all_stop_before_the_same_batch_of_an_evaluation(world_size: int) -> None:
    results, traffic = run_on_ranks(world_size, lambda ranks: poll_until_stopped(ranks, world_size // 2, at=3))
    assert set(results.values()) == {(4, "USR1")}, "read one batch late"
    assert set(traffic.messages.values()) == {4}


@MANY
def test_all_ranks_load_the_checkpoint_that_rank_0_chooses(world_size: int, tmp_path: Path) -> None:
    for step in (5, 10):
        checkpoint.save(tmp_path, tensors(step), state(step))
    (tmp_path / "step-00000010" / "weights.safetensors").write_bytes(b"damaged")
    calls: list[int] = []

    def choose(ranks: Ranks) -> tuple[Path | None, list[str]]:
        def on_main() -> tuple[Path | None, list[str]]:
            calls.append(ranks.rank)
            return checkpoint.choose(tmp_path)

        return ranks.run_on_main(on_main)

    results, traffic = run_on_ranks(world_size, choose)
    assert {found and found.name for found, _ in results.values()} == {"step-00000005"}
    assert calls == [0], "the others touch no file"
    assert set(traffic.messages.values()) == {2}
    assert max(traffic.bytes.values()) < 2_000


def test_what_the_ranks_exchange_grows_at_most_linearly() -> None:
    """A decision of rank 0 costs each rank the same at any world size; an answer of all costs 12 bytes per rank."""
    for work, fixed, for_each in ((agree_once, 8, 0), (decide, 200, 0), (answer, 12, 12)):
        for world_size in (8, 64):
            _, traffic = run_on_ranks(world_size, work)
            assert max(traffic.messages.values()) <= 2
            assert max(traffic.bytes.values()) <= fixed + for_each * world_size, work.__name__
