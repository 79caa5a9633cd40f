"""A golden curve: a refactoring must change neither order, augmentation, initialisation, schedule nor update.

If runs change on purpose (it changes everybody's runs), update the curve with

    python tests/training/test_golden.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
from support.running import ROOT, metrics, train

GOLDEN = Path(__file__).parent / "golden" / "tiny-cnn.json"
RECIPE = """
[run]
dir = "{runs}"
[data]
path = "{data}"
[augment]
transforms = [
    {{ name = "crop", pad = 2 }},
    {{ name = "flip", kind = "alternating" }},
    {{ name = "cutout", side = 4 }},
]
[model]
name = "tiny-cnn"
[optim]
lr = 0.1
[schedule]
warmup = 0.5
[train]
epochs = 2
batch_size = 100
label_smoothing = 0.1
accumulate = 2
threads = 1
"""


def curve(data: Path, folder: Path) -> list[list[float]]:
    """[loss, accuracy, lr] of each step of a run of one process."""
    recipe = folder / "golden.toml"
    recipe.write_text(RECIPE.format(data=data, runs=folder / "runs"))
    (done,) = train(str(recipe))
    assert done.returncode == 0, done.stderr
    return [[r["loss"], r["accuracy"], r["lr"]] for r in metrics(folder / "runs" / "golden")]


def test_the_curve_equals_the_golden_one(all_digits: Path, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    now = curve(all_digits, tmp_path)
    # Processors differ in the last digits of float32, and steps amplify them; a changed order changes the first digit.
    assert [row[0] for row in now] == pytest.approx([row[0] for row in golden], rel=1e-3)
    assert [row[1] for row in now] == pytest.approx([row[1] for row in golden], abs=0.021)
    assert [row[2] for row in now] == pytest.approx([row[2] for row in golden], rel=1e-9)


if __name__ == "__main__":
    from cifar_dist.data.pack import pack

    with tempfile.TemporaryDirectory() as scratch:
        pack(str(ROOT / "shards" / "digits.toml"), Path(scratch) / "digits", samples_per_shard=200)
        GOLDEN.write_text(json.dumps(curve(Path(scratch) / "digits", Path(scratch))).replace("],", "],\n") + "\n")
    print(f"wrote {GOLDEN}", file=sys.stderr)
