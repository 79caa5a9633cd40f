"""Read a file of weights that any program may have written."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_dist.errors import first_line
from cifar_dist.files.reading import load_safetensors
from cifar_dist.formatting import list_some

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
"""Keys under which training checkpoints keep the weights; the first that is found is used."""
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""Prefixes that DataParallel and DDP, torch.compile, and modules that hold the network add to its keys."""
_AVERAGE_COUNT = "n_averaged"  # of torch.optim.swa_utils.AveragedModel


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read a state dict, with the keys that ``model`` gives its weights.

    Args:
        path: a ``.safetensors`` file, or a state dict saved by torch (``.pth``, ``.pt``), alone or in a training
            checkpoint, with or without the prefix of a wrapper.
        model: the unwrapped network.

    Raises:
        ValueError: the file cannot be read; the message says why.
    """
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                _refuse_stand_in(file.read(100))
            weights = require_state_dict(load_safetensors(path))
        else:
            # weights_only: an unpickler that builds tensors and containers and calls nothing else.
            weights = _find_state_dict(_load_checked(path))
    except ValueError as error:
        raise ValueError(first_line(error)) from None
    except pickle.UnpicklingError as error:  # its text advises to execute the file
        raise ValueError(_describe_refused(path, str(error))) from None
    except Exception as error:  # a corrupt or hostile file can raise almost anything
        reason = first_line(error)
        said = reason if " " in reason else f"it is not a file of weights ({type(error).__name__})"
        raise ValueError(said) from None
    return _without_wrapper(weights, model.state_dict())


def _load_checked(path: Path) -> object:
    """Load a file of torch that holds data only, and whose parts have the checksums that were written with them.

    Raises:
        ValueError: it is damaged, or a file of another kind.
    """
    with path.open("rb") as file:
        begin = file.read(100)
    if begin[8:9] == b"{":  # the length of a JSON header, and the header
        raise ValueError("it is a safetensors file; give it the suffix .safetensors")
    _refuse_stand_in(begin)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for part, program in (("constants.pkl", "TorchScript program"), ("archive_format", "torch.export program")):
                if any(name.endswith(f"/{part}") for name in names):
                    raise ValueError(f"it is a {program}; give the weights it was made from")
            if not any(name.endswith("/data.pkl") for name in names):
                raise ValueError(f"it is an archive of other files: {list_some(names)}")
            if damaged := archive.testzip():  # torch does not verify the checksums
                raise ValueError(f"it is damaged, in {damaged}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Validating sparse tensor")  # they are refused afterwards
        return torch.load(path, map_location="cpu", weights_only=True)


def _refuse_stand_in(begin: bytes) -> None:
    """Raise ValueError for what is often downloaded instead of a file, by its first bytes."""
    if begin.startswith(b"version https://git-lfs"):
        raise ValueError("it is a pointer of Git LFS and not the file itself; run git lfs pull in its repository")
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError("it is a web page and not the file itself; download it again, from the link to the raw file")


def _describe_refused(path: Path, error: str) -> str:
    """Say what torch refused to read in a file, and how one who trusts it saves the weights alone."""
    named = re.search(r"GLOBAL ([\w.]+)", error)
    if named is None:
        return "it is not a file of torch.save; save one with torch.save(net.state_dict(), FILE)"
    content = f"torch.load({str(path)!r}, 'cpu', weights_only=False)"
    return (
        f"it holds more than weights ({named[1]}), and to read that may run code; if you trust its source, save its "
        f"weights alone, of a checkpoint: torch.save({content}['state_dict'], 'weights.pth'), or with the key that it "
        f"has; of an entire network: torch.save({content}.state_dict(), 'weights.pth')"
    )


def _find_state_dict(content: object) -> dict[str, Tensor]:
    """Return the state dict that a file of torch contains, on its own or in a training checkpoint."""
    if not isinstance(content, dict) or _is_state_dict(content):
        return require_state_dict(content)
    for key in _STATE_DICTS:
        if _is_state_dict(content.get(key)) and content[key]:
            return require_state_dict(content[key])
    inside = [str(key) for key, value in content.items() if _is_state_dict(value) and value]
    keys = ", ".join(ascii(str(key)[:40]) for key in list(content)[:8])
    way = f"; save one of them alone: torch.save(checkpoint[{inside[0]!r}], 'weights.pth')" if inside else ""
    raise ValueError(f"it has no state dict under {' or '.join(map(repr, _STATE_DICTS[:3]))}, but {keys}{way}")


def _without_wrapper(weights: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers from keys that the network does not have.

    Raises:
        ValueError: the network's keys have a prefix that not all keys have, or that no wrapper adds.
    """
    stored = weights
    while not any(key in own for key in weights):
        inner = {key: value for key, value in weights.items() if key != _AVERAGE_COUNT}
        prefix = next((prefix for prefix in _WRAPPERS if inner and all(key.startswith(prefix) for key in inner)), None)
        if prefix is None:
            _refuse_hidden_network(stored, own)
            break
        weights = {key.removeprefix(prefix): value for key, value in inner.items()}
    return weights


def _refuse_hidden_network(weights: dict[str, Tensor], own: Collection[str]) -> None:
    """Raise ValueError if all keys of the network exist in ``weights`` behind one prefix; say how to save them."""
    required = [key for key in own if not key.endswith(".num_batches_tracked")]
    prefixes = [key.removesuffix(required[0]) for key in weights if key.endswith(f".{required[0]}")]
    wrappers = tuple(f".{prefix}" for prefix in _WRAPPERS)
    prefixes.sort(key=lambda prefix: not f".{prefix}".endswith(wrappers))  # an average or a teacher comes later
    prefix = next((prefix for prefix in prefixes if all(f"{prefix}{key}" in weights for key in required)), None)
    if prefix is not None:
        others = [key for key in weights if not key.startswith(prefix)]
        beside = f", beside others such as {others[0]!r}" if others else ""
        raise ValueError(
            f"the keys of the network begin with {prefix!r}{beside}; save it alone: torch.save("
            f"{{k.removeprefix({prefix!r}): v for k, v in weights.items() if k.startswith({prefix!r})}}, 'weights.pth')"
        )


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(tensor, Tensor) for tensor in value.values())


def require_state_dict(weights: object) -> dict[str, Tensor]:
    """Return weights that a network can load.

    Raises:
        ValueError: they are anything else.
    """
    if not isinstance(weights, dict) or not _is_state_dict(weights):
        raise ValueError("it is not a state dict (a plain dictionary of tensors)")
    for key, weight in weights.items():
        if problem := _unusable(weight):
            raise ValueError(f"{key} {problem}")
    return {str(key): value for key, value in weights.items()}


def _unusable(weight: Tensor) -> str:
    """Say why no network can load a weight, and what to save instead; empty if one can."""
    if weight.is_meta:
        return "is a meta tensor, which has no values; save the weights of a network on a device"
    if weight.layout != torch.strided or weight.is_nested:
        return "is sparse; save dense weights: torch.save({k: v.to_dense() for k, v in weights.items()}, FILE)"
    if weight.is_complex():
        return f"is complex ({weight.dtype}); save real weights"
    return ""
