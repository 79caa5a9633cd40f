"""The number format of a run's arithmetic: ``train.precision`` as this device can honour it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from cifar_dist.cpu import instructions
from cifar_dist.distributed.gpu_checks import own_gpu
from cifar_dist.errors import UserError


@dataclass(frozen=True)
class Precision:
    """What operations are computed in.

    Attributes:
        name: Accelerate's word for it: ``no``, ``bf16`` or ``fp16``.
        advice: one line for the reader; empty where there is nothing to advise.
        int8: whether convolutions are trained in 8-bit integers.
    """

    name: Literal["no", "bf16", "fp16"]
    advice: str = ""
    int8: bool = False

    @classmethod
    def resolve(cls, requested: str, *, cpu: bool, scales_loss: bool) -> Precision:
        """Resolve ``train.precision``: ``auto`` becomes bf16 where that is faster than fp32, else ``no``.

        So does ``int8``, with convolutions in 8-bit integers on a CPU that is faster in these than in either.

        Args:
            requested: ``train.precision``.
            cpu: whether the run computes on a CPU.
            scales_loss: whether the engine scales the loss, as fp16 requires.

        Raises:
            UserError: fp16 on a CPU.
        """
        if requested == "fp16":
            if cpu:
                raise UserError("train.precision fp16 requires a GPU; use --train.precision auto")
            return cls("fp16")
        if requested == "no":
            return cls("no")
        if requested == "int8":
            found = cls.resolve("auto", cpu=cpu, scales_loss=scales_loss)
            if cpu and instructions.is_int8_fast():
                return replace(found, int8=True)
            return replace(
                found, advice=f"train.precision int8 is for CPUs with VNNI and without AMX: {found.label} here"
            )
        if is_bf16_fast(cpu=cpu):
            return cls("bf16")
        device = "CPU" if cpu else torch.cuda.get_device_name(own_gpu())
        if requested == "bf16":
            slow = f"bf16 is slower than fp32 on this {device}"
            return cls("bf16", f"{slow}; a new run with --train.precision auto trains in fp32 here")
        if cpu or not scales_loss:
            return cls("no")
        return cls("no", f"this {device} has no bf16 arithmetic: fp32; a new run with --train.precision fp16 is faster")

    @property
    def label(self) -> str:
        """Its name for a reader."""
        return {"no": "fp32"}.get(self.name, self.name) + " + int8 convolutions" * self.int8

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype that operations are cast to; None for none."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)

    @property
    def of_products(self) -> torch.dtype:
        """The dtype of the numbers that most products multiply."""
        return torch.int8 if self.int8 else self.autocast or torch.float32


def is_bf16_fast(*, cpu: bool) -> bool:
    """Whether this process's device computes faster in bfloat16 than in float32. Every device can emulate it."""
    if not cpu:
        with torch.cuda.device(own_gpu()):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return instructions.is_bf16_fast()
