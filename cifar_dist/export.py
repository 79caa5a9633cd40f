"""Export a trained network as one file that does not need this project: from stored images to probabilities."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from cifar_dist.data.normalize import Normalize, normalization_statistics
from cifar_dist.errors import UserError, first_line, quoted
from cifar_dist.evaluation.trained import Trained, build_trained
from cifar_dist.files.outputs import write_output

ABOUT = "about.json"  # stored in the file beside the program


class Exported(nn.Module):
    """Normalisation, network and softmax: uint8 [n, height, width, channels] to probabilities float32 [n, classes].

    It runs on the device that it is moved to, because its constants are buffers and no operation names a device, as a
    conversion of dtype would in a ``torch.export`` program.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, normalize: Normalize, width: int) -> None:
        super().__init__()
        self.network = network
        self._in_layout = normalize.in_layout
        for name, values in zip(("scale", "shift"), normalize.of_row(width), strict=True):
            self.register_buffer(name, values.view(width, -1))

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.network(self._in_layout(images * self.scale + self.shift)).softmax(dim=1)
        return probabilities


def export(trained: Trained, out: Path) -> str:
    """Write ``out``, read it back and compare; return a description of its input and output.

    The suffix selects the format: ``.pt2`` for ``torch.export``, ``.pt`` for TorchScript. Both contain ``about.json``:
    the run, the checkpoint, and the names of the classes.

    Raises:
        UserError: another suffix, a network that cannot be exported in this format, or a file that cannot be written.
    """
    if out.suffix not in _FORMS:
        raise UserError(
            f"{out} is not a valid export name; use one that ends with .pt2 (torch.export) or .pt (TorchScript)"
        )
    data, weights = trained.trained_on, trained.weights
    mean, std = normalization_statistics(trained.config.augment, data)
    normalize = Normalize(mean, std, torch.device("cpu"), trained.config.train.channels_last)
    module = Exported(build_trained(trained), normalize, data.shape[1]).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, *data.shape), dtype=torch.uint8, generator=generator)
    about = json.dumps(
        {"run": trained.run.name, "checkpoint": weights.name, "step": weights.step, "classes": data.classes}
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but some programs still load only that
        content = _converted(module, images, about, out.suffix)
        if isinstance(content, Exception):
            (other,) = _FORMS.keys() - {out.suffix}
            can = isinstance(_converted(module, images, about, other), bytes)
            advice = f"use --out {quoted(out.with_suffix(other))}" if can else f"nor can it as {other}"
            raise UserError(f"this network cannot be exported as {out.suffix} ({first_line(content)}); {advice}")
    try:
        write_output(out, content)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    height, width, channels = data.shape
    return (
        f"{weights.name} of {trained.run.name}: uint8 [n, {height}, {width}, {channels}] -> "
        f"probabilities float32 [n, {len(data.classes)}]"
    )


def _converted(module: nn.Module, images: Tensor, about: str, suffix: str) -> bytes | Exception:
    """Return the content of a file that predicts what ``module`` does, or why there is none."""
    write, read = _FORMS[suffix]
    wanted = module(images)
    try:
        content = write(module, images[:2], about)
        for count in (1, 3):  # batch sizes other than that of the example
            torch.testing.assert_close(read(content)(images[:count]), wanted[:count], rtol=1e-4, atol=1e-5)
    except Exception as error:  # a compiler raises many kinds
        return error
    return content


def _program(module: nn.Module, images: Tensor, about: str) -> bytes:
    shapes = {"images": {0: torch.export.Dim("n", min=1)}}
    program = torch.export.export(module, (images,), dynamic_shapes=shapes)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={ABOUT: about})
    return content.getvalue()


def _script(module: nn.Module, images: Tensor, about: str) -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.trace(module, images)), content, _extra_files={ABOUT: about})
    return content.getvalue()


_Write = Callable[[nn.Module, Tensor, str], bytes]
_Read = Callable[[bytes], Callable[[Tensor], Tensor]]
_FORMS: Final[dict[str, tuple[_Write, _Read]]] = {
    ".pt2": (_program, lambda content: torch.export.load(io.BytesIO(content)).module()),
    ".pt": (_script, lambda content: torch.jit.load(io.BytesIO(content))),
}
