"""The engine that a config of ``accelerate launch`` asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cifar_dist.launch.launched import deepspeed_stage, was_asked_for
from cifar_dist.launch.options import read_config

_KINDS = ("DEEPSPEED", "FSDP")  # all others are one process or DDP


@dataclass(frozen=True)
class AskedEngine:
    """What a launch config says of the engine.

    Attributes:
        kind: ``DEEPSPEED``, ``FSDP``, or empty for one process and DDP.
        stage: of DeepSpeed's ZeRO; empty where the config does not say it.
    """

    kind: str = ""
    stage: str = ""

    @property
    def description(self) -> str:
        """Its name for a reader."""
        if self.kind == "DEEPSPEED":
            return f"DeepSpeed ZeRO-{self.stage}" if self.stage else "DeepSpeed"
        return self.kind or "DDP"

    @classmethod
    def of_launcher(cls) -> AskedEngine:
        """Return what the launcher of this process was asked for."""
        return cls(next(filter(was_asked_for, _KINDS), ""), deepspeed_stage())

    @classmethod
    def of_config(cls, path: Path) -> AskedEngine:
        """Read a config before it is launched.

        Raises:
            UserError: it is not a config of Accelerate.
        """
        config = read_config(path)
        kind = str(config["distributed_type"])
        return cls(kind if kind in _KINDS else "", str(config.get("zero_stage", "")))
