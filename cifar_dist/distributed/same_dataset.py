"""All ranks of a job read the same data, of which each machine may have its own copy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.errors import UserError
from cifar_dist.launch.launched import machine_name


def open_dataset(path: str | Path, ranks: Ranks) -> Manifest:
    """Read the dataset as rank 0 knows it, at the path of this process. Collective.

    Raises:
        UserError: there is none, or a machine has a copy of another one, in which rank 0's offsets lead elsewhere.
    """
    manifest = ranks.run_on_main(lambda: Manifest.load(path))

    def compare() -> None:
        own = Manifest.load(path).fingerprint
        if own != manifest.fingerprint:
            raise UserError(
                f"{path} on {machine_name()} is not the dataset of rank 0 ({own}, there {manifest.fingerprint}); "
                "copy that one to every machine"
            )

    ranks.run_on_all(compare if ranks.first_of_node and not ranks.is_main else lambda: None)
    return replace(manifest, root=Path(path))


def check_same_images(content: str, source: Path, ranks: Ranks) -> None:
    """Refuse ranks that have read different images. Collective.

    Args:
        content: a hash of what this rank has read.
        source: where from.
        ranks: this process among all of the job.

    Raises:
        UserError: they differ.
    """
    if len({*ranks.gather_objects(content)}) > 1:
        raise UserError(f"the ranks have read different images from {source}; copy that of rank 0 to every machine")
