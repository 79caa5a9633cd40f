"""Open a trained run: its config, its data's manifest, and its network with the weights of a checkpoint."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from cifar_dist import checkpoint, models
from cifar_dist.config import Config
from cifar_dist.config.section import expand_existing
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.errors import UserError
from cifar_dist.evaluation.checkpoint_ref import CheckpointRef
from cifar_dist.launch.launched import is_main_process
from cifar_dist.models.pretrained import find_weights, is_part_of_checkpoint
from cifar_dist.models.weight_files import WEIGHT_SUFFIXES, read_weights
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.settings import read_settings_with_plugins
from cifar_dist.terminal.notice import notice
from cifar_dist.tracking.metrics import val_accuracies, val_accuracy_of


@dataclass(frozen=True)
class Trained:
    """A run's config and data, and one of its checkpoints.

    Attributes:
        run: its folder.
        config: its settings; those of sections that only training computes with are defaults.
        trained_on: the manifest of its training data.
        weights: of one of its checkpoints, or of a file.
    """

    run: RunFolder
    config: Config
    trained_on: Manifest
    weights: CheckpointRef


def open_trained(run: RunFolder, which: str) -> Trained:
    """Choose and verify weights: of the run's checkpoint ``best``, ``latest`` or of a step, or those at a path.

    A path is that of any checkpoint folder, or of any file that ``model.pretrained`` takes; that of a file called
    ``best`` is ``./best``. Whether they fit the run's network shows when it is built. Says so if the newest checkpoint
    stands for the best, or a copy for a plug-in.

    Raises:
        UserError: no such weights, or the run folder is incomplete.
    """
    config, trained_on = read_settings_with_plugins(run, trains=False), run.read_manifest()
    given = expand_existing(which)
    if is_part_of_checkpoint(given):
        raise UserError(f"--checkpoint: {given} is a part of a checkpoint; give its folder, {given.parent}")
    if given.is_file() and not checkpoint.is_name(which):
        return Trained(run, config, trained_on, CheckpointRef((given,), _as_folder_name(given.name), None, None))
    if given.suffix in WEIGHT_SUFFIXES or (len(given.parts) > 1 and not given.is_dir()):
        raise UserError(f"--checkpoint: {given} does not exist; give a .safetensors or .pth file, or a checkpoint")
    try:
        if len(given.parts) > 1:
            path = given.resolve()
            checkpoint.verify(path)
        else:
            path = checkpoint.named(run.checkpoints, which)
        state = checkpoint.read_state(path)
        if which == "best" and state.best_val_accuracy is None and is_main_process():
            notice(f"{run.path} has no evaluation on val; best is its newest checkpoint, {path.name}")
        name = _name_of(path, run)
        accuracy = val_accuracy_of(state, val_accuracies(RunFolder(path.parent.parent)))
        weights = CheckpointRef(checkpoint.evaluated_weights(path), name, state.step, accuracy)
    except checkpoint.CheckpointError as error:
        where = f"{given}: " if len(given.parts) > 1 else ""
        file = find_weights(given)
        way = f"its weights are {file}" if file else "give a complete checkpoint or a file of weights"
        raise UserError(f"--checkpoint: {where}{error}; {way}") from None
    return Trained(run, config, trained_on, weights)


def _name_of(path: Path, folder: RunFolder) -> str:
    """Name a checkpoint: that of another run or place with that before its own, which this run may have too."""
    if path.parent == folder.checkpoints.resolve() or path.parent == folder.checkpoints:
        return path.name
    place = path.parent.parent if path.parent.name == folder.checkpoints.name else path.parent
    return _as_folder_name(f"{place.name}-{path.name}")


def _as_folder_name(text: str) -> str:
    return re.sub(r"[^\w.+=-]", "-", text)


def build_trained(trained: Trained) -> nn.Module:
    """Build the run's network and load its weights, on the CPU.

    Raises:
        UserError: the weights cannot be read or belong to another model.
    """
    data = trained.trained_on
    module = models.build_for(trained.config.model, shape=data.shape, classes=len(data.classes))
    try:
        parts = [read_weights(file, module) for file in trained.weights.files]
    except ValueError as error:
        gone = "" if trained.weights.path.exists() else "; if the run deleted it just now, run the same command again"
        raise UserError(f"{trained.weights.path} cannot be read: {error}{gone}") from None
    weights = {name: value for part in parts for name, value in part.items()}
    checkpoint.load_weights(module, weights, trained.weights.path)
    return module


def load_model(engine: Engine, trained: Trained) -> InferenceModel:
    """Build the trained network on every rank's device, see :func:`build_trained`. Collective.

    Raises:
        UserError: also, the ranks have read different weights: their machines share no file system.
    """
    module = engine.ranks.run_on_all(lambda: build_trained(trained))
    if len({*engine.ranks.gather_objects(_checksum(module))}) > 1:
        raise UserError(f"the ranks have read different weights from {trained.weights.path}; share that folder")
    return engine.prepare_for_inference(module)


def agree_on_weights(trained: Trained, ranks: Ranks) -> Trained:
    """Return what rank 0 has opened, because a run that is training may save while the ranks start. Collective."""
    return replace(trained, weights=ranks.run_on_main(lambda: trained.weights))


def _checksum(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
