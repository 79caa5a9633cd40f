"""Weights from a file into a freshly built network, for fine-tuning and feature extraction."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_dist.errors import UserError


def load_pretrained(model: nn.Module, path: str | Path) -> list[str]:
    """Copy the weights in ``path`` into ``model``; the last linear layer stays new where the classes differ.

    Args:
        path: a ``.safetensors`` file, or a state dict saved by torch (``.pth``, ``.pt``), as torchvision's are.

    Returns:
        the keys that were left as they were: the last layer's, or none.

    Raises:
        UserError: the file cannot be read, or its keys or shapes are of another network.
    """
    weights = _read(Path(path))
    own = model.state_dict()
    head = next((name for name, module in reversed(list(model.named_modules())) if isinstance(module, nn.Linear)), "")
    other_shape = [key for key, value in own.items() if key in weights and weights[key].shape != value.shape]
    skipped = [key for key in other_shape if key.rpartition(".")[0] == head]
    # Step counts of batch normalisation are younger than some files and used by nothing here.
    missing = [key for key in own if key not in weights and not key.endswith(".num_batches_tracked")]
    unknown = [key for key in weights if key not in own]
    wrong = [key for key in other_shape if key not in skipped]
    for keys, what in ((missing, "lacks"), (unknown, "has the unknown"), (wrong, "has in another shape")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UserError(f"{path} holds weights of another network: it {what} {keys[0]}{more}")
    model.load_state_dict({key: value for key, value in weights.items() if key not in skipped}, strict=False)
    return skipped


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"there are no weights at {path}; give a .safetensors or a .pth file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            weights: object = load_file(path)
        else:
            # weights_only: an unpickler that knows tensors and containers and can call nothing else.
            weights = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
            raise ValueError("it is not a state dict, a plain dictionary of tensors")
    except Exception as error:  # a damaged or hostile file fails in any of a dozen ways, all of them its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"cannot read weights from {path}: {reason}") from None
    return {str(key): value for key, value in weights.items()}
