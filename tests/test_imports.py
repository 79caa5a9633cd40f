"""Imports: help and typos do not wait for torch, and every imported package is a declared dependency."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from support.running import PATIENCE, ROOT, environment

SLOW = (
    "torch",
    "torchvision",
    "numpy",
    "accelerate",
    "deepspeed",
    "wandb",
    "matplotlib",
    "sklearn",
    "webdataset",
    "PIL",
)

WITH_ANOTHER = ("pydantic_core", "huggingface_hub")
"""Packages that a declared one, pydantic and timm, always brings."""

# Runs a command line and ends with what it printed, then the slow modules that it loaded.
PROBE = """
import sys
from cifar_dist.cli import run
from cifar_dist.errors import UserError
try:
    run(sys.argv[1:])
except (SystemExit, UserError) as end:
    print("ended with", end)
print("loaded:", *sorted(set({slow!r}) & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "pack a dataset into WebDataset shards"),
        (["pack", "--help"], "--samples-per-shard"),
        (["evaluate", "--help"], "--checkpoint"),
        (["train", "demo", "--help"], "--optim.lr"),
        (["train", "demo", "--help", "optim"], "Nesterov momentum"),
        (["train", "--help", "demo"], "--data.path shards/digits"),
        (["train", "--help", "schedule.name"], "onecycle | cosine"),
        (["recipes"], "custom-resnet"),
        (["completion", "candidates", "bash", "cifar-dist train demo --optim."], "--optim.lr"),
        (["trian"], "did you mean 'train'?"),
        (["evaluate"], "the following arguments are required: RUN"),
        (["train", "dmeo"], "did you mean 'demo'?"),
        (["train", "demo", "--optim.rl", "1"], "did you mean '--optim.lr'?"),
        (["train", "demo", "--train.batch_size", "big"], "train.batch_size"),
    ],
    ids=" ".join,
)
def test_help_and_mistakes_load_nothing_slow(words: list[str], said: str) -> None:
    command = [sys.executable, "-c", PROBE.format(slow=SLOW), *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_torch_is_not_loaded_by_importing() -> None:
    code = "import sys, importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(f'cifar_dist.{name}')\n"
    code += "    assert 'torch' not in sys.modules, name"
    modules = ["cli", "config", "models", "optim", "recipe", "run_folder", "launch.launched"]
    command = [sys.executable, "-c", code, *modules]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def test_what_only_predicts_does_not_load_the_compiler_of_torch() -> None:
    """It takes as long to import as the rest of torch; optimizers and DDP load it."""
    code = """
import sys
from cifar_dist.config import TrainConfig
from cifar_dist.distributed.start import set_arithmetic
set_arithmetic(TrainConfig())
assert "torch._dynamo" not in sys.modules
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def test_every_imported_package_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["timm"]]
    declared = {re.split(r"[^\w-]", text)[0].lower() for text in required}
    known = {*sys.stdlib_module_names, "cifar_dist", *WITH_ANOTHER, "_typeshed"}  # the last one is for mypy only
    providers = packages_distributions()
    missing = {
        (name, str(path.relative_to(ROOT)))
        for path in (ROOT / "cifar_dist").rglob("*.py")
        for name in imported(path) - known
        if not declared & {distribution.lower().replace("_", "-") for distribution in providers.get(name, [])}
    }
    assert not missing


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in names}
