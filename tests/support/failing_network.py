"""A network from outside the package that does something terrible in one step of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

LINE = 11
"""Of the file, in which it happens in ``forward``."""


def write_network(
    path: Path,
    act: str,
    *,
    step: int,
    inputs: str,
    during: Literal["forward", "state_dict"] = "forward",
    others: str = "pass",
) -> str:
    """Write a linear network, and return the ``model.name`` of it.

    Args:
        path: of the file, which is written.
        act: a statement, executed in training step ``step`` (the first is 1), on the last rank.
        inputs: an expression: the numbers of an image, which has ``channels`` channels.
        during: the method in which it is executed.
        others: a statement that the other ranks execute there.
    """
    last = "int(os.environ.get('RANK', 0)) + 1 == int(os.environ.get('WORLD_SIZE', 1))"
    training = "self.training and " if during == "forward" else ""
    when = (
        f"        if {training}self.seen == {step}:\n"
        f"            if {last}:\n                {act}\n            else:\n                {others}\n"
    )
    path.write_text(
        "import os, signal, threading, time\nfrom torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, classes, channels):\n"
        f"        super().__init__({inputs}, classes)\n"
        "        self.seen = 0\n"
        "    def forward(self, images):\n"
        "        self.seen += self.training\n"
        f"{when if during == 'forward' else ''}"
        "        return super().forward(images.flatten(1))\n"
        "    def state_dict(self, *args, **options):\n"
        f"{when if during == 'state_dict' else ''}"
        "        return super().state_dict(*args, **options)\n"
    )
    return f"{path}:Net"
