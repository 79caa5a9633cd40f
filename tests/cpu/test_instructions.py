"""Which products a processor computes fast, by the names of its instructions."""

from __future__ import annotations

import pytest
import torch

from cifar_dist.cpu.instructions import is_bf16_fast, is_int8_fast


@pytest.mark.parametrize(
    ("can", "bf16", "int8"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16 avx512_fp16 avx512_vnni amx_int8 amx_bf16": True}, True, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16 avx512_fp16 avx512_vnni": True, "amx_bf16": False}, False, True),
        ({"cpu_name": "Intel Xeon", "avx512_bf16 avx512_vnni": True, "avx512_fp16": False}, True, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16 avx512_fp16 avx512_vnni": True}, True, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16 avx512_vnni": False}, False, False),
        ({"cpu_name": "Intel Core", "avx_vnni": True}, False, True),
        ({"sve_bf16": True}, True, False),
        ({}, False, False),
    ],
    ids=["AMX", "AMX hidden by a virtual machine", "before AMX", "AMD", "older", "without AVX-512", "Arm", "unknown"],
)
def test_which_processors_are_fast(
    monkeypatch: pytest.MonkeyPatch, can: dict[str, str | bool], bf16: bool, int8: bool
) -> None:
    found = {name: value for names, value in can.items() for name in names.split()}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert is_bf16_fast() is bf16
    assert is_int8_fast() is (int8 and torch.backends.mkldnn.is_available())
