"""Weights into a freshly built network, for fine-tuning and feature extraction: from a file, or the published ones."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_dist.errors import UserError, first_line
from cifar_dist.models.transfer import last_layer

PUBLISHED = "published"
_TWINS = ("resnet18", "resnet34", "resnet50")  # ours, and key for key torchvision's
_TIMEOUT = 30  # seconds without a byte; torch would wait for a silent network for ever
_SIDE_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # GoogLeNet's and Inception's, which are not built


def load_pretrained(model: nn.Module, source: str | Path, name: str) -> list[str]:
    """Copy weights into ``model``; its last layer stays new where the classes differ.

    Args:
        model: the bare network, on the CPU.
        source: a ``.safetensors`` file, or a state dict saved by torch (``.pth``, ``.pt``), as torchvision's are; or
            ``published`` for what the model's library offers. That is fetched once into the library's cache, and
            read from there ever after: to be called on one process of a node first.
        name: the registered name that ``model`` was built by.

    Returns:
        the keys that were left as they were: the last layer's, or none.

    Raises:
        UserError: the file cannot be read or fetched, its keys or shapes are of another network, or there are none.
    """
    if source == PUBLISHED:
        weights, origin = _published(model, name), f"what is published for {name}"
    else:
        weights, origin = _read(Path(source)), str(source)
    own = model.state_dict()
    head = last_layer(model)[0]
    other_shape = [key for key, value in own.items() if key in weights and weights[key].shape != value.shape]
    skipped = [key for key in other_shape if key.rpartition(".")[0] == head]
    # Step counts of batch normalisation are younger than some files and used by nothing here.
    missing = [key for key in own if key not in weights and not key.endswith(".num_batches_tracked")]
    unknown = [key for key in weights if key not in own]
    wrong = [key for key in other_shape if key not in skipped]
    for keys, what in ((missing, "lacks"), (unknown, "has the unknown"), (wrong, "has in another shape")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"model.pretrained: {origin} is of another network: it {what} {keys[0]}{more}")
    model.load_state_dict({key: value for key, value in weights.items() if key not in skipped}, strict=False)
    return skipped


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"model.pretrained: there are no weights at {path}; give a .safetensors or a .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return _checked(load_file(path))
        # weights_only: an unpickler that knows tensors and containers and can call nothing else.
        return _checked(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged or hostile file fails in any of a dozen ways, all of them its own
        raise UserError(f"model.pretrained: cannot read weights from {path}: {first_line(error)}") from None


def _checked(weights: object) -> dict[str, Tensor]:
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError("it is not a state dict, a plain dictionary of tensors")
    return {str(key): value for key, value in weights.items()}


def _published(model: nn.Module, name: str) -> dict[str, Tensor]:
    library, _, of_library = name.partition(":")
    if name in _TWINS:
        if model.get_parameter("conv1.weight").shape != (64, 3, 7, 7):
            raise UserError(
                f"model.pretrained: {name} is published with the stem for ImageNet and for 3 channels; "
                "use --model.options.stem imagenet --model.image_size 224"
            )
        return _from_torchvision(name)
    if library == "torchvision":
        return _from_torchvision(of_library)
    if library == "timm":
        return _from_timm(of_library)
    raise _none(name)


def _from_torchvision(name: str) -> dict[str, Tensor]:
    """torchvision's default weights of one of its models, from torch's cache."""
    import torchvision

    default = torchvision.models.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir(), "checkpoints", default.url.rpartition("/")[2])
    try:
        with _impatient():
            # torchvision's own loading would unpickle whatever lies in the cache.
            published = _checked(
                default.get_state_dict(
                    progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
                )
            )
    except Exception as error:
        if cached.is_file():
            raise UserError(
                f"model.pretrained: cannot read weights from {cached}: {first_line(error)}; remove that file"
            ) from None
        raise UserError(
            f"model.pretrained: {default.url} cannot be fetched ({first_line(error)}); fetch it where there is a "
            f"network and put it at {cached}, or give a file: --model.pretrained FILE"
        ) from None
    # DenseNets are published under the names of an older torch, norm.1 for norm1.
    renamed = ((re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key), published[key]) for key in published)
    return {key: value for key, value in renamed if not key.startswith(_SIDE_HEADS)}


def _from_timm(name: str) -> dict[str, Tensor]:
    """timm's weights of one of its models, from the cache of the Hugging Face Hub."""
    import timm  # is there, or the model could not have been built
    from huggingface_hub.constants import HF_HUB_CACHE

    if not timm.models.is_model_pretrained(name):
        raise _none(f"timm:{name}")
    try:
        weights: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        raise UserError(
            f"model.pretrained: timm's weights of {name} cannot be fetched ({first_line(error)}); fetch them where "
            f"there is a network, into {HF_HUB_CACHE}, or give a file: --model.pretrained FILE"
        ) from None
    return weights


def _none(name: str) -> UserError:
    return UserError(f"model.pretrained: no weights are published for {name}; give a file: --model.pretrained FILE")


@contextmanager
def _impatient() -> Iterator[None]:
    """Inside, a connection that says nothing is given up."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
