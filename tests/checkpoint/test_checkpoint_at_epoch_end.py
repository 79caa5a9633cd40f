"""A checkpoint between an epoch's last step and its evaluation: the evaluation runs once and is recorded once."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from support.running import metrics, story, train


def test_a_kill_between_the_evaluation_and_its_checkpoint_leaves_one_record(tiny: Path, tmp_path: Path) -> None:
    words = [str(tiny), "--checkpoint.every_steps", "13"]  # 13 steps are an epoch
    assert train(*words, "--run.name", "whole")[0].returncode == 0
    assert train(*words, "--run.name", "killed")[0].returncode == 0
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"

    # As a kill leaves it that comes after the last evaluation's record and before the checkpoint that knows of it.
    newest = killed / "checkpoints" / "step-00000026"
    state = json.loads((newest / "state.json").read_text())
    state |= {"epochs_evaluated": 1, "val_accuracy": metrics(killed, "val")[0]["accuracy"]}
    (newest / "state.json").write_text(json.dumps(state))
    marker = json.loads((newest / "COMPLETE.json").read_text())
    marker["files"]["state.json"] = {
        "bytes": (newest / "state.json").stat().st_size,
        "sha256": hashlib.sha256((newest / "state.json").read_bytes()).hexdigest(),
    }
    (newest / "COMPLETE.json").write_text(json.dumps(marker))
    shutil.rmtree(killed / "final")

    assert train(*words, "--run.name", "killed")[0].returncode == 0
    assert [record["epoch"] for record in metrics(killed, "val")] == [0, 1]
    assert story(killed) == story(whole)
