"""In which numbers this machine trains: ``train.precision`` as asked for, and as its device can do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from cifar_dist.errors import UserError


@dataclass(frozen=True)
class Precision:
    """What is computed in.

    Attributes:
        name: as Accelerate says it: ``no``, ``bf16`` or ``fp16``.
        advice: what the reader should know of it, in one line; empty where there is nothing.
    """

    name: Literal["no", "bf16", "fp16"]
    advice: str = ""

    @classmethod
    def of(cls, asked: str, *, cpu: bool, sharded: bool) -> Precision:
        """``asked`` is ``train.precision``; ``auto`` becomes bf16 where the device computes it, and ``no`` elsewhere.

        With sharded weights nobody scales the loss as fp16 needs it.

        Raises:
            UserError: a precision that this device cannot do.
        """
        if asked == "fp16":
            if cpu or sharded:
                raise UserError("train.precision fp16 needs a GPU, one process or DDP; use --train.precision auto")
            return cls("fp16")
        if asked == "no":
            return cls("no")
        if computes_bf16(cpu=cpu):
            return cls("bf16")
        device = "CPU" if cpu else torch.cuda.get_device_name()
        if asked == "bf16":
            slow = f"this {device} has no bf16 arithmetic and imitates it, many times slower than fp32"
            return cls("bf16", f"{slow}; a new run with --train.precision auto trains in fp32 here")
        if cpu or sharded:
            return cls("no")
        return cls("no", f"this {device} has no bf16 arithmetic: fp32; a new run with --train.precision fp16 is faster")

    @property
    def shown(self) -> str:
        """For the reader."""
        return {"no": "fp32"}.get(self.name, self.name)

    @property
    def autocast(self) -> torch.dtype | None:
        """What operations are cast to; None for nothing."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)


def computes_bf16(*, cpu: bool) -> bool:
    """Whether the device multiplies bfloat16 itself. Every device can imitate it."""
    if not cpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # AVX-512 and AMX on x86, NEON's and SVE's extension on Arm; what else there may be is not known to be fast.
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
