"""Read images to predict: the pickle or npz in which an unlabelled test set is distributed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_dist.data import npz, safe_pickle
from cifar_dist.data.arrays import as_images, as_integers, planes_note
from cifar_dist.data.source_suffixes import ARCHIVE_SUFFIXES, ARRAY_SUFFIXES, NPZ_SUFFIX, PICKLE_SUFFIXES
from cifar_dist.data.split_words import SPLITS
from cifar_dist.errors import UserError, quoted
from cifar_dist.formatting import counted, list_some

_LABELS = (*"label labels fine_labels coarse_labels target targets y".split(), *(f"y_{split}" for split in SPLITS))
_EXPECTED = (
    f"a folder or archive of images ({', '.join(ARCHIVE_SUFFIXES)}), or a file that ends in {', '.join(ARRAY_SUFFIXES)}"
)


@dataclass(frozen=True)
class Unlabelled:
    """Images without labels, in the file's order.

    Attributes:
        images: uint8 [samples, height, width, 3].
        ids: int64 [samples], unique.
        notes: what was passed over or assumed, one line each.
    """

    images: NDArray[np.uint8]
    ids: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """A one-line description."""
        samples, *shape = self.images.shape
        return describe_unlabelled(samples, [shape], f"{self.ids.min()} to {self.ids.max()}" if samples else "")


def describe_unlabelled(samples: int, shapes: Collection[Sequence[int]], ids: str) -> str:
    """Describe images without labels in one line.

    Args:
        samples: how many.
        shapes: the distinct ones: height, width and channels.
        ids: from the first to the last; empty for none.
    """
    height, width, channels = next(iter(shapes))
    size = f"{width}x{height}x{channels}" if len(shapes) == 1 else f"{len(shapes):,} sizes"
    return f"{counted(samples, 'image')} of {size}, with unique ids{f' from {ids}' if ids else ''}"


def read_unlabelled(path: str | Path) -> Unlabelled:
    """Read a pickle or npz with ``data``, the images, and ``ids``, one integer per image.

    Images are uint8 [samples, height, width, 3], or [samples, 3 * side * side] in the plane order of the CIFAR files.

    Raises:
        UserError: the file is anything else, has labels, an id occurs twice, or a pickle requests anything but data.
    """
    path = Path(path)
    arrays = _read(path)
    missing = [key for key in ("data", "ids") if key not in arrays]
    if missing:
        if path.suffix.lower() == NPZ_SUFFIX and any({f"x_{split}", f"y_{split}"} <= set(arrays) for split in SPLITS):
            packed = quoted(f"shards/{path.stem}")
            raise UserError(
                f"{path} has labels: cifar-dist pack {quoted(path)} {packed}, then cifar-dist evaluate RUN --data "
                f"{packed}"
            )
        keys = ", ".join(ascii(key[:40]) for key in list(arrays)[:8]) or "nothing"
        hint = f"; {npz.LABELLED_HINT}" if path.suffix.lower() == NPZ_SUFFIX or "labels" in arrays else ""
        hint += "; images to predict: np.savez('NAME.npz', data=images, ids=np.arange(len(images)))"
        raise UserError(
            f"{path} has no '{missing[0]}'; an unlabelled set requires 'data' and 'ids', found: {keys}{hint}"
        )
    found = [name for name in _LABELS if name in arrays]
    if found:
        raise UserError(
            f"{path} has '{found[0]}' beside 'data' and 'ids', and an unlabelled set has no labels; to predict it, "
            f"save it without them; {npz.LABELLED_HINT}"
        )
    images = as_images(arrays["data"], f"{path}: data")
    ids = as_integers(arrays["ids"], len(images), f"{path}: ids")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        raise UserError(f"{path}: the id {unique[counts > 1][0]} occurs more than once; give each image its own id")
    others = [name for name in arrays if name not in ("data", "ids")]
    notes = [f"passed over what is not data or ids: {list_some(others)}"] if others else []
    if isinstance(data := arrays["data"], np.ndarray) and data.ndim == 2:
        notes.append(planes_note(["data"]))
    return Unlabelled(images, ids, tuple(notes))


def _read(path: Path) -> dict[str, object]:
    if path.suffix.lower() == NPZ_SUFFIX:
        names = npz.array_names(path)
        return {**dict.fromkeys(names), **npz.read_npz(path, [name for name in names if name in ("data", "ids")])}
    if not path.exists():
        raise UserError(f"{path} does not exist; name {_EXPECTED}")
    if path.suffix.lower() not in PICKLE_SUFFIXES:
        raise UserError(f"{path} is not an unlabelled set; use {_EXPECTED}")
    try:
        if path.stat().st_size > safe_pickle.MAX_BYTES:
            raise UserError(f"{path} has more than {safe_pickle.MAX_BYTES:,} bytes; save it as .npz")
        return safe_pickle.read_pickle(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
