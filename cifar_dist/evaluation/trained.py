"""Open a trained run: its config, its data's manifest, and its network with the weights of a checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cifar_dist import checkpoint, models, recipe
from cifar_dist.config import Config
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.errors import UserError, nearest
from cifar_dist.evaluation.evaluate import CheckpointRef
from cifar_dist.models.pretrained import WEIGHT_SUFFIXES, read_weights
from cifar_dist.run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A run's config and data, and one of its checkpoints."""

    run: RunFolder
    config: Config
    trained_on: Manifest
    weights: CheckpointRef


def find_run(run: str, parent: Path = Path("runs")) -> Path:
    """Return the folder of a run, given by name or path.

    Raises:
        UserError: it does not exist; the message suggests the nearest name.
    """
    for path in (parent / run, Path(run).expanduser()):
        if RunFolder(path).exists():
            return path
    known = [path.name for path in parent.glob("*") if RunFolder(path).exists()]
    hint = nearest(run, known) if known else f"{parent} has no run yet; train one first"
    raise UserError(f"run '{run}' does not exist; {hint}")


def open_trained(run: Path, which: str) -> Trained:
    """Choose and verify weights: of the run's checkpoint ``best``, ``latest`` or of a step, or those at a path.

    A path is that of any checkpoint folder, or of any file that ``model.pretrained`` takes. Whether they fit the run's
    network shows when it is built.

    Raises:
        UserError: no such weights, or the run folder is incomplete.
    """
    folder = RunFolder(run)
    config, trained_on = recipe.read(folder.config), Manifest.load(run)
    given = Path(which).expanduser()
    if given.is_file():
        name = re.sub(r"[^\w.+=-]", "-", given.name)  # part of a folder's name
        return Trained(folder, config, trained_on, CheckpointRef(given, name, None, None))
    if given.suffix in WEIGHT_SUFFIXES or (len(given.parts) > 1 and not given.is_dir()):
        raise UserError(f"--checkpoint: {given} does not exist; give a .safetensors or .pth file, or a checkpoint")
    try:
        path = given.resolve() if len(given.parts) > 1 else checkpoint.named(folder.checkpoints, which)
        checkpoint.verify(path)
        state = checkpoint.read_state(path)
        weights = CheckpointRef(checkpoint.evaluated_weights(path), path.name, state.step, state.val_accuracy)
    except checkpoint.CheckpointError as error:
        raise UserError(f"--checkpoint: {error}; give a complete checkpoint or a file of weights") from None
    return Trained(folder, config, trained_on, weights)


def build_trained(trained: Trained) -> nn.Module:
    """Build the run's network and load its weights, on the CPU.

    Raises:
        UserError: the weights cannot be read or belong to another model.
    """
    data = trained.trained_on
    module = models.build_for(trained.config.model, shape=data.shape, classes=len(data.classes))
    try:
        weights = read_weights(trained.weights.file, module)
    except ValueError as error:
        raise UserError(f"{trained.weights.file} cannot be read: {error}") from None
    checkpoint.load_weights(module, weights, trained.weights.file)
    return module


def load_model(engine: Engine, trained: Trained) -> InferenceModel:
    """Build the trained network on every rank's device, see :func:`build_trained`. Collective."""
    return engine.ranks.run_on_all(lambda: engine.prepare_for_inference(build_trained(trained)))
