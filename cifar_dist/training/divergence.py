"""The error of a training that has diverged: what is kept of it, and the settings that may help."""

from __future__ import annotations

from cifar_dist.config import Config
from cifar_dist.errors import TrainingFailedError
from cifar_dist.run_folder import RunFolder


def divergence_error(what: str, config: Config, folder: RunFolder, *, autocast: bool) -> TrainingFailedError:
    """Describe a training that has diverged.

    Args:
        what: what happened, to begin the message.
        config: the run's; a setting that it has already is not proposed.
        folder: the run's, of which the newest checkpoint is named.
        autocast: whether the run computes in bf16 or fp16.
    """
    newest = folder.newest_checkpoint()
    kept = f"{newest} is intact" if newest else "no checkpoint was saved before"
    remedies = ["a lower --optim.lr"]
    if not 0 < config.optim.clip_norm <= 1:
        remedies.append("--optim.clip_norm 1")
    if autocast:
        remedies.append("--train.precision no")
    return TrainingFailedError(f"{what}; {kept}. Try {', or '.join(remedies)}")
