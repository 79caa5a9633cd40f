"""The checksum by which processes find that they hold the same gradients."""

from __future__ import annotations

import pytest
import torch

from cifar_dist.distributed.checksum import checksum


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_equal_tensors_have_one_checksum_and_others_do_not(dtype: torch.dtype) -> None:
    tensor = torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = checksum(tensor)
    assert torch.equal(checksum(tensor.clone()), expected)
    assert torch.equal(checksum(tensor.to(memory_format=torch.channels_last)), expected)
    changed, swapped = tensor.clone(), tensor.clone()
    changed[3, 2, 1, 0] *= 1.01
    swapped[0], swapped[1] = tensor[1], tensor[0]
    assert not torch.equal(checksum(changed), expected)
    assert not torch.equal(checksum(swapped), expected)


def test_it_does_not_depend_on_the_number_of_threads() -> None:
    """A sum of squares, in double precision, does."""
    tensor = torch.randn(256, 128, 3, 3, generator=torch.Generator().manual_seed(0))
    before, sums, found = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            sums.append(float(tensor.double().square().sum()))
            found.append(checksum(tensor).tolist())
    finally:
        torch.set_num_threads(before)
    assert all(one == found[0] for one in found)
    assert len(set(sums)) > 1, "or the test would show nothing"
