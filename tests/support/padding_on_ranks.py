"""A rank of ZeRO-3 whose padding is not a number: ``python padding_on_ranks.py``, started by test_sharding.py."""

from __future__ import annotations

import torch

from cifar_dist.distributed.sharded_tensor import full_tensor, own_shard, shard_of
from support import engine_on_ranks


def main() -> None:
    """Compare each parameter with the shards of all ranks."""
    model = engine_on_ranks.prepared("sgd")
    for name, parameter in model.module.named_parameters():
        partition, full = parameter.ds_tensor, full_tensor(parameter)  # type: ignore[attr-defined]  # DeepSpeed's
        held = max(0, full.numel() - model.ranks.rank * partition.numel())
        partition.data[held:] = torch.nan
        assert own_shard(parameter).isfinite().all(), name
        assert torch.equal(shard_of(full, parameter), own_shard(parameter)), name
        assert model.ranks.sum(torch.tensor(own_shard(parameter).numel())) == full.numel(), name


if __name__ == "__main__":
    main()
