"""Augmentation and mixing as one static function, compiled for a GPU.

Where few samples get an operation, a CPU applies it to those alone. A GPU would be waited for to learn how many they
are, and each small operation costs it the launch of a kernel. So here every operation is applied to all samples and the
results are selected, nothing depends on a value, and the compiler joins what follows from it into a few kernels. The
pixels are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cifar_dist.data.batches import Batch
from cifar_dist.data.keys import Draw, RecordedKeys, TabledKeys, key_table
from cifar_dist.data.mix import Mix
from cifar_dist.errors import first_line

Function = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps images, labels, ids, keys and epoch to images and targets, as :class:`Mix`."""

# The arithmetic of the uncompiled operations: without them, multiplications and additions are fused and rounded once,
# and quotients are approximate.
_EXACT = ("emulate_precision_casts", "eager_numerics.division_rounding")
# Not in every torch and Triton that have the others. Without it numbers below 2 ** -126 are 0; no pixel is one of them.
_SUBNORMAL = "eager_numerics.disable_ftz"
_ALIKE = 0.1  # at most, in units of a normalised pixel's deviation or of a target, what differs only by rounding


class StaticMix:
    """:class:`Mix` without waits for the device.

    Args:
        mix: what to compute.
        seed: the run's seed.
        shape: (height, width, channels) of the images.
        size: images of a usual batch, for which the function is compiled. Others, such as an epoch's last, are not
            worth a compilation.
        device: of the batches.

    Attributes:
        failure: why :meth:`warm_up` could not compile the function, in one line; empty if it could.
    """

    failure = ""

    def __init__(self, mix: Mix, seed: int, shape: tuple[int, int, int], size: int, device: torch.device) -> None:
        self._mix, self._seed, self._shape, self._size, self._device = mix, seed, shape, size, device
        self._draws = _recorded_draws(mix, seed, shape, device)
        self._keys: tuple[int, Tensor, Tensor] | None = None
        self._compiled: Function | None = None

    def warm_up(self) -> None:
        """Compile the function on black images, so that no training step waits for the compiler; see ``failure``."""
        ids = torch.arange(self._size, device=self._device)
        images = torch.zeros(self._size, *self._shape, dtype=torch.uint8, device=self._device)
        self._compiled = self._compile(images, torch.zeros_like(ids), ids, *self._keys_of(0))

    def __call__(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Return images and targets, as :class:`Mix`."""
        keys, number = self._keys_of(epoch)
        if self._compiled is not None and len(batch.images) == self._size:
            return self._compiled(batch.images, batch.image_labels, batch.image_ids, keys, number)
        # What only later epochs draw is not in the table, and cannot be compiled.
        others = RecordedKeys(self._seed, self._device, epoch)
        samples = self._mix.samples(batch.image_ids, epoch, TabledKeys(self._draws, keys, others))
        return self._mix.apply(batch.images, batch.image_labels, samples)

    def _static(
        self, images: Tensor, labels: Tensor, ids: Tensor, keys: Tensor, epoch: Tensor
    ) -> tuple[Tensor, Tensor]:
        samples = self._mix.samples(ids, epoch, TabledKeys(self._draws, keys))
        return self._mix.apply(images, labels, samples)

    def _keys_of(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the keys of an epoch and its number, on the device; copied once an epoch."""
        if self._keys is None or self._keys[0] != epoch:
            values = torch.cat([key_table(self._draws, self._seed, epoch), torch.tensor([epoch])]).to(self._device)
            self._keys = epoch, values[:-1], values[-1]
        return self._keys[1:]

    def _compile(self, *inputs: Tensor) -> Function | None:
        try:
            compiled = compile_static(self._static, *inputs)
            self._check_others(compiled, *inputs)
            return compiled
        except torch.OutOfMemoryError:  # uncompiled it would need more, and later
            raise
        except Exception as error:  # of a compiler, that has many
            self.failure = first_line(error)
            return None

    def _check_others(self, compiled: Function, images: Tensor, labels: Tensor, ids: Tensor, *_: Tensor) -> None:
        """Refuse a function into which the trace has put values of its inputs: they left torch for NumPy, say."""
        noise = torch.randint(256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        others = noise.to(images.device), labels, ids + 1, *self._keys_of(1)
        for expected, found in zip(self._static(*others), compiled(*others), strict=True):
            if not torch.allclose(expected.float(), found.float(), rtol=0, atol=_ALIKE):
                why = "a transform computes outside of torch, or the compiler errs"
                raise ValueError(f"compiled, it gives other images: {why}")


def compile_static(function: Function, *inputs: Tensor) -> Function:
    """Compile a function for inputs of these shapes, with the arithmetic of its uncompiled operations.

    The function is traced, so it may not depend on values of its inputs. It must have run before, or copies of its
    constants to the device would become part of it. A torch that cannot keep the arithmetic refuses an option.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import

    traced = make_fx(lambda *given: function(*given))(*inputs)
    try:
        return _compiled(traced, (*_EXACT, _SUBNORMAL), inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of an option, or of a compiler, that has many
        return _compiled(traced, _EXACT, inputs)


def _compiled(traced: Callable[..., tuple[Tensor, Tensor]], names: Sequence[str], inputs: Sequence[Tensor]) -> Function:
    options: dict[str, str | int | bool | Callable[..., object]] = dict.fromkeys(names, True)
    compiled: Function = torch.compile(traced, dynamic=False, options=options)
    compiled(*inputs)
    return compiled


def _recorded_draws(mix: Mix, seed: int, shape: tuple[int, int, int], device: torch.device) -> list[Draw]:
    """Return what the transforms draw, by transforming two black images."""
    keys, ids = RecordedKeys(seed, device), torch.arange(2, device=device)
    mix.apply(torch.zeros(2, *shape, dtype=torch.uint8, device=device), ids, mix.samples(ids, 0, keys))
    return keys.draws
