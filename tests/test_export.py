"""An exported network, read without this project: it predicts what the run predicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.running import PATIENCE, environment, train

from cifar_dist import cli
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.read import ShardReader
from cifar_dist.errors import UserError

READ = """
import json, sys
import numpy as np, torch
path, images, out = sys.argv[1:]
images = torch.from_numpy(np.load(images))
about = {"about.json": ""}
if path.endswith(".pt2"):
    program = torch.export.load(path, extra_files=about)
    answer = program.module()
else:
    answer = torch.jit.load(path, _extra_files=about)
np.save(out, answer(images).numpy())  # it asks for no gradients

# On another device. meta does not refuse what names the CPU, and TorchScript cannot load to it.
if path.endswith(".pt2"):
    assert "cpu" not in program.graph_module.code
    assert answer.to("meta")(images.to("meta")).device.type == "meta"
else:
    assert "cpu" not in answer.code
about = about["about.json"]
print(about if isinstance(about, str) else about.decode())
assert "cifar_dist" not in sys.modules
"""


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    words = ["--data.path", str(digits), "--model.name", "tiny-resnet", "--model.options.widths=[8,16]"]
    words += ["--train.epochs", "2", "--schedule.warmup", "0.5", "--eval.tta", "0", "--run.dir", str(folder)]
    words += ["--train.precision", "no"]  # an export computes in fp32
    assert train("demo", *words, "--run.name", "it")[0].returncode == 0
    return folder / "it"


@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_an_export_predicts_what_the_run_predicts(run: Path, digits: Path, tmp_path: Path, suffix: str) -> None:
    out, images, answers = tmp_path / f"it{suffix}", tmp_path / "images.npy", tmp_path / "answers.npy"
    assert cli.run(["export", str(run), "--checkpoint", "latest", "--out", str(out)]) == 0
    np.save(images, ShardReader(Manifest.load(digits), "test").all().numpy())
    words = [sys.executable, "-c", READ, str(out), str(images), str(answers)]
    done = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "run": "it",
        "checkpoint": "step-00000008",
        "step": 8,
        "classes": [str(digit) for digit in range(10)],
    }
    (evaluation,) = run.glob("evaluations/*_model_final")
    wanted = np.load(evaluation / "probabilities.npz")["probabilities"]
    np.testing.assert_allclose(np.load(answers), wanted, rtol=1e-3, atol=1e-5)


NETWORKS = """
import torch
from torch import nn

class Branches(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.head = nn.Linear(32 * 32 * channels, classes)

    def forward(self, x):
        x = self.head(x.flatten(1))
        return x if x.abs().sum() < 1e9 else -x

class Counts(Branches):
    def forward(self, x):
        return torch.cat([self.head(one.flatten()[None]) for one in x])
"""


@pytest.mark.parametrize(
    ("network", "advice"), [("Branches", "use --out {out}/it.pt"), ("Counts", "nor can it as .pt")]
)
def test_a_network_that_a_format_cannot_express(digits: Path, tmp_path: Path, network: str, advice: str) -> None:
    """A branch on values is traced as it went; a loop over images has as many turns as the example."""
    plugin = tmp_path / "networks.py"
    plugin.write_text(NETWORKS)
    words = ["--data.path", str(digits), "--model.name", f"{plugin}:{network}", "--model.options={}"]
    words += ["--train.epochs", "1", "--schedule.warmup", "0", "--eval.tta", "0", "--run.dir", str(tmp_path)]
    assert train("demo", *words, "--run.name", "it")[0].returncode == 0
    with pytest.raises(UserError, match=r"cannot be exported as \.pt2 \(") as error:
        cli.run(["export", str(tmp_path / "it"), "--out", str(tmp_path / "it.pt2")])
    assert str(error.value).endswith(advice.format(out=tmp_path))
    assert not (tmp_path / "it.pt2").exists()


def test_what_cannot_be_is_one_line(run: Path, tmp_path: Path) -> None:
    for words, says in (
        (["nothing"], "run 'nothing' does not exist"),
        (
            [str(run), "--out", "it.onnx"],
            r"it\.onnx is not a valid export name; use one that ends with \.pt2 .*or \.pt ",
        ),
        ([str(run), "--out", f"{tmp_path}/no/it.pt"], r"no/it\.pt cannot be written: the folder .*/no does not exist"),
        ([str(run), "--checkpoint", "7"], "has no checkpoint of step 7"),
    ):
        with pytest.raises(UserError, match=says) as error:
            cli.run(["export", *words])
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
