"""How the device computes: TF32, cuDNN's choice of algorithms, and deterministic ones. Decisions of the config."""

from __future__ import annotations

import os

import torch

from cifar_dist.config import TrainConfig


def set_arithmetic(train: TrainConfig) -> None:
    """Set torch's flags for this process, all of them: by default torch computes fp32 convolutions in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = train.tf32
    torch.backends.cudnn.allow_tf32 = train.tf32
    torch.backends.cudnn.benchmark = train.cudnn_benchmark
    torch.backends.cudnn.deterministic = train.deterministic
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS has no other way to ask for it
    if train.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler
        torch.use_deterministic_algorithms(train.deterministic)


def describe_arithmetic(train: TrainConfig, precision: str, *, cpu: bool) -> str:
    """Return one phrase for a reader: ``precision``, and what else was decided for this device."""
    decided = [
        ("TF32", train.tf32 and not cpu),
        ("cuDNN benchmark", train.cudnn_benchmark and not cpu),
        ("deterministic", train.deterministic),
    ]
    return " + ".join([precision, *(name for name, is_on in decided if is_on)])
