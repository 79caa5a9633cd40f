"""Read what W&B wrote offline: protobuf messages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.tracking.wandb_segment import read_messages


@dataclass
class Segment:
    """One attempt of a run, as ``wandb sync`` would send it."""

    run_id: str
    project: str
    entity: str
    config: dict[str, dict[str, object]]
    rows: list[dict[str, object]]
    step_metric: dict[str, str]  # of a metric's name or pattern
    exit_code: int | None


def segments(folder: Path) -> list[Segment]:
    """Return the offline segments in a run folder, oldest first."""
    paths = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [_segment(path) for path in paths]


def _segment(path: Path) -> Segment:
    from wandb.proto import wandb_internal_pb2

    found = Segment("", "", "", {}, [], {}, None)
    for message in read_messages(path):
        record = wandb_internal_pb2.Record.FromString(message)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run_id, found.project, found.entity = record.run.run_id, record.run.project, record.run.entity
            found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            found.rows.append({key: json.loads(value) for key, value in items.items()})
        elif kind == "metric":
            found.step_metric[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found
