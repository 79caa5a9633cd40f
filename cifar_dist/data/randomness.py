"""Counter-based randomness: ``f(seed, epoch, sample id, purpose)``, a hash and no state.

Every random decision about data is looked up here, never drawn from a generator, so it cannot depend on the rank,
the number of workers, the batch or what was drawn before. Vectorised integer arithmetic on whatever device
the ids are on; CPU and GPU give the same bits.

The mixer is the 64-bit finaliser of MurmurHash3 with the constants of SplitMix64 (Steele, Lea, Flood: *Fast
splittable pseudorandom number generators*, OOPSLA 2014), applied once per counter word as in Salmon et al.:
*Parallel random numbers: as easy as 1, 2, 3*, SC 2011.
"""

from __future__ import annotations

import functools
import zlib

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the same 64 bits: torch has no full uint64 arithmetic, and int64 wraps alike."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def bits(seed: int, epoch: int, ids: Tensor, purpose: str, draw: int | range = 0) -> Tensor:
    """63 random bits for each sample: int64 in [0, 2**63), the shape and device of ``ids``.

    Args:
        seed: the run's seed.
        epoch: which pass over the data.
        ids: int64, any shape: the sample ids (or any other counter).
        purpose: what the number decides; different purposes are independent.
        draw: tells several numbers for one purpose apart. Of a range all are given, [len(draw), *ids.shape], for
            the price of one: on a GPU a hash costs its dozen launches, and not its arithmetic.
    """
    return _shift_right(_hash(seed, epoch, ids, purpose, draw), 1)


def _hash(seed: int, epoch: int, ids: Tensor, purpose: str, draw: int | range) -> Tensor:
    """All 64 bits; as :func:`bits`."""
    if isinstance(draw, int):
        return _mix(ids ^ _key(seed, epoch, purpose, draw))
    return _mix(ids ^ _keys(seed, epoch, purpose, draw, ids.device).view(-1, *[1] * ids.ndim))


@functools.lru_cache(maxsize=1024)
def _key(seed: int, epoch: int, purpose: str, draw: int) -> int:
    """The words that all samples share, mixed. Kept, because every batch of an epoch asks for the same few."""
    word = torch.zeros((), dtype=torch.int64, device="cpu")
    for counter in (seed, epoch, zlib.crc32(purpose.encode()), draw):
        word = _mix((word + _GOLDEN) ^ counter)
    return int(word + _GOLDEN)


@functools.lru_cache(maxsize=1024)
def _keys(seed: int, epoch: int, purpose: str, draws: range, device: torch.device) -> Tensor:
    """The keys of several draws, int64 [len(draws)], kept on the device."""
    return torch.tensor([_key(seed, epoch, purpose, draw) for draw in draws]).to(device)


def uniform(seed: int, epoch: int, ids: Tensor, purpose: str, draw: int | range = 0) -> Tensor:
    """float32 in [0, 1), a multiple of 2**-24 (exact in float32 on every device); shape as of :func:`bits`."""
    return _shift_right(_hash(seed, epoch, ids, purpose, draw), 40).to(torch.float32) * 2.0**-24


def integers(seed: int, epoch: int, ids: Tensor, purpose: str, below: int, draw: int | range = 0) -> Tensor:
    """int64 in [0, below), shape as of :func:`bits`. The bias of the modulus is under below / 2**63."""
    return bits(seed, epoch, ids, purpose, draw) % below


def permutation(seed: int, epoch: int, count: int, purpose: str) -> Tensor:
    """A permutation of 0..count-1, int64 [count], on the CPU: the ids sorted by their hash.

    Two equal 63-bit hashes keep their order (the sort is stable), so the result is a pure function too.
    """
    return torch.argsort(bits(seed, epoch, torch.arange(count), purpose), stable=True)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed for the global generator that dropout draws from in one step: resume needs no saved generator."""
    return int(bits(seed, step, torch.tensor(rank), "dropout"))
