"""A package of plug-ins, as it is installed: its module imports another one of the package."""

from __future__ import annotations

from pathlib import Path

_NETS = """
from .deep.layers import activation
from torch import nn

def net(classes: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), activation(), nn.Linear(16 * channels, classes))
"""
NET = "plugpkg.nets:net"


def write_package(site: Path, *, version: str = "1.0", activation: str = "ReLU") -> Path:
    """Write or replace ``plugpkg`` and the metadata of its distribution in ``site``; return ``site``.

    Within a second, Python takes a file of the same length for the one that it has compiled.
    """
    layers = site / "plugpkg" / "deep" / "layers.py"
    layers.parent.mkdir(parents=True, exist_ok=True)
    layers.write_text(f"from torch.nn import {activation} as activation\n")
    for folder in (layers.parent, site / "plugpkg"):
        (folder / "__init__.py").touch()
    (site / "plugpkg" / "nets.py").write_text(_NETS)
    metadata = site / "plug_ins_of_others.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plug-ins-of-others\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text("plugpkg\n")
    return site
