"""Which numbers this CPU multiplies fast: what its instructions say."""

from __future__ import annotations

import torch


def is_bf16_fast() -> bool:
    """Whether products of bfloat16 are faster than those of float32."""
    can = torch.cpu.get_capabilities()
    # Intel's processors with float16 arithmetic have AMX. Where a virtual machine hides it, bf16 is what is left to
    # AVX-512: half as fast as fp32.
    if can.get("avx512_fp16") and not can.get("amx_bf16") and str(can.get("cpu_name", "")).startswith("Intel"):
        return False
    # AVX-512 and AMX on x86, NEON's and SVE's extension on Arm; others are not known to be fast.
    return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def has_int8_products() -> bool:
    """Whether there are dot products of 8-bit integers, and torch has oneDNN, which uses them."""
    can = torch.cpu.get_capabilities()
    names = ("avx512_vnni", "avx_vnni", "amx_int8")
    return torch.backends.mkldnn.is_available() and any(can.get(name, False) for name in names)


def is_int8_fast() -> bool:
    """Whether training is faster with 8-bit integers.

    Not with AMX: its products of bfloat16 are so fast that rounding to integers takes longer than they save.
    """
    return has_int8_products() and not has_amx()


def has_amx() -> bool:
    """Whether tiles of bfloat16 are multiplied (Advanced Matrix Extensions)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
