"""Open a trained run: its config, its data's manifest, and its network with the weights of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cifar_dist import checkpoint, models, recipe
from cifar_dist.config import Config
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.errors import UserError
from cifar_dist.evaluation.evaluate import CheckpointRef
from cifar_dist.run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """A run's config and data, and one of its checkpoints."""

    run: RunFolder
    config: Config
    trained_on: Manifest
    weights: CheckpointRef


def open_trained(run: Path, which: str) -> Trained:
    """Choose and verify a checkpoint: ``best``, ``latest`` or a step.

    Raises:
        UserError: no such checkpoint, or the run folder is incomplete.
    """
    folder = RunFolder(run)
    path = checkpoint.named(folder.checkpoints, which)
    state = checkpoint.read_state(path)
    weights = CheckpointRef(checkpoint.evaluated_weights(path), path.name, state.step, state.val_accuracy)
    return Trained(folder, recipe.read(folder.config), Manifest.load(run), weights)


def build_trained(trained: Trained) -> nn.Module:
    """Build the run's network and load its weights, on the CPU.

    Raises:
        UserError: the weights cannot be read or belong to another model.
    """
    data = trained.trained_on
    module = models.build_for(trained.config.model, shape=data.shape, classes=len(data.classes))
    try:
        weights = load_file(trained.weights.file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{trained.weights.file} cannot be read: {error}") from None
    checkpoint.load_weights(module, weights, trained.weights.file)
    return module


def load_model(engine: Engine, trained: Trained) -> InferenceModel:
    """Build the trained network on every rank's device, see :func:`build_trained`. Collective."""
    return engine.ranks.run_on_all(lambda: engine.prepare_for_inference(build_trained(trained)))
