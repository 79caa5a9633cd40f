"""Whether a run has anything that could be lost."""

from __future__ import annotations

from cifar_dist.files.folders import list_complete
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline


def has_begun(folder: RunFolder) -> bool:
    """Whether a step of the run was ever done, or a range test: by what is left of it, whatever was deleted."""
    return folder.lr_curve.exists() or has_trained(folder)


def has_trained(folder: RunFolder) -> bool:
    """Whether a step of the run was ever done, by what is left of it, whatever was deleted.

    A run that began as a copy of another one's checkpoint has trained.
    """
    results = (folder.saved, folder.final)
    if any(path.exists() for path in results) or any(map(list_complete, (folder.checkpoints, folder.evaluations))):
        return True
    has_metrics = folder.metrics.is_file() and folder.metrics.stat().st_size > 0
    return has_metrics or any(event.step > 0 for event in timeline.read(folder.timeline))
