"""Run folders as training leaves them: written without training, or cut off in the middle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cifar_dist.config import Config
from cifar_dist.config.tree import to_toml
from cifar_dist.tracking.metrics import Record


def cut(source: Path, target: Path, middle: int) -> None:
    """Copy a finished run as it was after the step ``middle``."""
    shutil.copytree(source, target, symlinks=True)
    for checkpoint in (target / "checkpoints").iterdir():
        if checkpoint.is_symlink():
            checkpoint.unlink()
        elif checkpoint.name > f"step-{middle:08d}":
            shutil.rmtree(checkpoint)
    shutil.rmtree(target / "final")
    shutil.rmtree(target / "evaluations")


def write_run(
    folder: Path,
    config: Config,
    *,
    epochs: int = 4,
    val: float | None = None,
    test: float | None = None,
    dataset: str = "digits",
    fingerprint: str = "",
) -> Path:
    """Write a run of some one-step epochs and, with ``test``, the final evaluation; return its folder."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(config))
    (folder / ".lock").touch()
    facts = {"parameters": 12345, "steps_per_epoch": 1, "dataset": dataset, "fingerprint": fingerprint}
    (folder / "environment.json").write_text(json.dumps({"run": facts}))
    lines = b""
    for epoch in range(epochs):
        lines += Record(epoch + 1, epoch, "train", 1.0, 0.5, 10, 30.0, lr=0.1).to_line()
        if val is not None:
            lines += Record(epoch + 1, epoch, "val", 1.0, val, 10, 5.0).to_line()
    (folder / "metrics.jsonl").write_bytes(lines)
    if test is not None:
        (folder / "final").mkdir()
        (folder / "final" / "model.safetensors").touch()
        evaluation = folder / "evaluations" / f"{folder.name}_val_acc_0_model_final"
        evaluation.mkdir(parents=True)
        summary = {
            "checkpoint": "final",
            "accuracy": test,
            "samples": 10,
            "split": config.eval.split,
            "data": dataset,
            "tta": config.eval.tta,
        }
        (evaluation / "summary.json").write_text(json.dumps(summary))
    return folder


def cells(markdown: str) -> list[list[str]]:
    """Return the cells of each line of a table, stripped."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in markdown.splitlines()]
