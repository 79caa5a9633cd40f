"""The outline of a pickled file: which classes it names and where its weights are, without running any code of it.

A file that holds more than weights is refused; its outline says with which expression its owner saves the weights.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO

_LEGACY_HEADERS = 3  # pickles before the content in a file that is not a zip: magic number, version, system


class _Unread:
    """Stands for any object of a file: it takes all that a pickle does to it, and keeps only its state."""

    state: object = None

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        """A list's."""

    @property
    def is_network(self) -> bool:
        """Whether it is a torch.nn.Module, by what one keeps."""
        return isinstance(self.state, Mapping) and {"_parameters", "_modules"} <= self.state.keys()


class _Outliner(pickle.Unpickler):
    """Builds containers and numbers, and :class:`_Unread` for all else: nothing that a file names is imported."""

    def find_class(self, module: str, name: str) -> type:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else type(name, (_Unread,), {})

    def persistent_load(self, pid: object) -> object:
        """The class of a network, in a file that is not a zip; nothing for the values of a tensor."""
        return pid[1] if isinstance(pid, tuple) and pid[:1] == ("module",) else None


def expression_of_weights(path: Path, keys: Collection[str]) -> str:
    """Return what to append to ``torch.load(...)`` of a file for the state dict in it; empty if that is not known.

    Args:
        path: a file of torch.save.
        keys: under which training checkpoints keep the weights, the likeliest first.
    """
    try:
        content = _outline(path)
    except Exception:  # a corrupt or hostile file can raise almost anything
        return ""
    if isinstance(content, _Unread) and content.is_network:
        return ".state_dict()"
    if not isinstance(content, Mapping):
        return ""
    likely = [key for key in keys if key in content]
    for key in dict.fromkeys([*likely, *(key for key in content if isinstance(key, str))]):
        value = content[key]
        if isinstance(value, _Unread) and value.is_network:
            return f"[{key!r}].state_dict()"
        if isinstance(value, Mapping) and value and all(isinstance(one, _Unread) for one in value.values()):
            return f"[{key!r}]"
    return ""


def _outline(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            return _read(io.BytesIO(archive.read(name)))
    with path.open("rb") as file:
        for _ in range(_LEGACY_HEADERS):
            _read(file)
        return _read(file)


def _read(file: IO[bytes]) -> object:
    content: object = _Outliner(file).load()
    return content
