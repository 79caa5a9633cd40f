"""A run folder with invented numbers and hostile names, to draw a report of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from cifar_dist import recipe
from cifar_dist.checkpoint.tensor_files import WeightsCopy
from cifar_dist.config.tree import to_toml
from cifar_dist.data.manifest import Manifest
from cifar_dist.evaluation.folder import write_evaluation
from cifar_dist.evaluation.predict import Predictions
from cifar_dist.run_folder import EvaluationSummary
from cifar_dist.tracking import timeline
from cifar_dist.tracking.metrics import MetricsLog, Record
from cifar_dist.tracking.usage import Usage

HOSTILE = '<script>alert("x")</script>&"'
CONTROL = "\x1b[2J\x07\u202e\x85"


def make_run(folder: Path, digits: Path, *, epochs: int = 3, classes: tuple[str, ...] | None = None) -> Path:
    """Create a run folder as the trainer leaves it, with invented numbers."""
    run = folder / "some-run"
    run.mkdir()
    config = recipe.load("demo", ["--data.path", str(digits), "--run.name", "some-run"])
    (run / "config.toml").write_text(to_toml(config))
    shutil.copy(digits / "manifest.json", run)
    log = MetricsLog(run / "metrics.jsonl")
    usage = Usage.of({"forward": 0.3, "backward": 0.6, "evaluation": 0.2}, 123_000_000, 0.31)
    for step in range(1, 10 * epochs + 1):
        epoch, seconds = (step - 1) // 10, 0.1
        log.append([Record(step, epoch, "train", 2 / step, 1 - 1 / step, 100, seconds, 0.1 / step)])
        if step % 10 == 0:
            log.append([Record(step, epoch, "val", 3 / step, 1 - 2 / step, 50, seconds, usage=usage)])
    log.close()
    kinds: list[tuple[timeline.Kind, int]] = [
        ("started", 0),
        ("killed", 12),
        ("resumed", 10),
        ("finished", 10 * epochs),
    ]
    for kind, step in kinds:
        timeline.append(run / "timeline.jsonl", timeline.Event(timeline.utc(0), kind, step, 2, HOSTILE, HOSTILE))
    environment = {"run": {"model": HOSTILE, "dataset": CONTROL}, "command": [HOSTILE]}
    (run / "environment.json").write_text(json.dumps(environment))
    manifest = Manifest.load(digits)
    labels = torch.from_numpy(manifest.labels("test"))
    logits = torch.nn.functional.one_hot(labels, 10).float() * 3
    logits[::7] = logits[::7].roll(1, dims=1)  # one in seven is wrong
    names = classes or manifest.classes
    summary = EvaluationSummary(
        "some-run", "final", 30, "test", manifest.name, len(labels), names, "0", 0.857, 0.5, 0.9, 1.0, 2, 0.857, 0
    )
    weights = run / "model.safetensors"
    weights.write_bytes(b"weights")
    predictions = Predictions(logits, labels, logits)
    predicted = predictions.classes.tolist()
    write_evaluation(run / "evaluations", summary, predictions, range(len(labels)), WeightsCopy([weights]), predicted)
    return run
