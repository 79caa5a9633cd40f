"""A trained run opened again: its config, its data's manifest, its network with the weights of a checkpoint."""

from __future__ import annotations

import os
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
from cifar_dist.errors import UserError, nearest
from cifar_dist.evaluation.evaluate import Weights


@dataclass(frozen=True)
class Trained:
    """A run's config and data, and one of its checkpoints."""

    run: Path
    config: Config
    trained_on: Manifest
    weights: Weights


def find_run(run: str, parent: Path = Path("runs")) -> Path:
    """The folder of a run given by name or by path.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    for path in (parent / run, Path(run)):
        if os.path.isfile(path / "config.toml"):  # unlike Path's, never an error: any words may be asked for
            return path
    known = [path.parent.name for path in parent.glob("*/config.toml")]
    hint = nearest(run, known) if known else f"{parent} holds none yet; train one first"
    raise UserError(f"there is no run '{run}'; {hint}")


def open_trained(run: Path, which: str) -> Trained:
    """Choose and verify a checkpoint: ``best``, ``latest`` or a step.

    Raises:
        UserError: no such checkpoint, or a run folder that is not whole.
    """
    path = checkpoint.named(run / "checkpoints", which)
    state = checkpoint.read_state(path)
    weights = Weights(path / checkpoint.MODEL, path.name, state["step"], state["val_accuracy"])
    return Trained(run, recipe.read(run / "config.toml"), Manifest.load(run), weights)


def build_trained(trained: Trained) -> nn.Module:
    """The run's network with its weights, on the CPU.

    Raises:
        UserError: the weights cannot be read or are of another model.
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
    """:func:`build_trained` on every rank's device. Collective."""
    return engine.ranks.run_on_all(lambda: engine.prepare_for_inference(build_trained(trained)))
