"""Settings with which tests apply each shipped transform."""

from __future__ import annotations

from typing import Final

NEEDED: Final[dict[str, dict[str, object]]] = {"affine": {"rotation": 20}, "jitter": {"hue": 0.2}}
"""Settings without which a transform does nothing, and is refused; by its name."""
OTHER: Final[dict[str, dict[str, object]]] = {
    "affine": {"rotation": 30, "translate": 0.3, "scale": (0.5, 0.9), "shear": 20},
    "autoaugment": {},
    "crop": {"pad": 3, "fill": "constant"},
    "cutmix": {"p": 0.3, "alpha": 0.5},
    "cutout": {"side": 3},
    "erasing": {"p": 1.0, "area": (0.2, 0.3), "ratio": (1.0, 2.0)},
    "flip": {"kind": "alternating"},
    "gray": {"p": 0.9},
    "jitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.5},
    "mixup": {"p": 0.3, "alpha": 0.5},
    "perspective": {"p": 1.0, "distortion": 0.7},
    "randaugment": {"operations": 1, "magnitude": 5, "bins": 11},
    "trivialaugment": {"bins": 3},
}
"""Of each setting another value than that of its transform with the settings of :data:`NEEDED`."""


def toml(name: str, settings: dict[str, object]) -> str:
    """Write a transform as a recipe lists it."""
    pairs = [f"{key} = {list(value) if isinstance(value, tuple) else value!r}" for key, value in settings.items()]
    return f"{{ {', '.join([f'name = {name!r}', *pairs])} }}"
