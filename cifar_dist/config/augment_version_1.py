"""Convert the augmentation of version 1, whose transforms were fixed keys in a fixed order, to a list."""

from __future__ import annotations

from cifar_dist.config.tree import Tree

_POLICY_SETTINGS = {"randaugment": ("operations", "magnitude")}


def upgraded_augment(table: Tree) -> Tree:
    """Return the table ``augment`` with the list of transforms that produces the same pixels.

    Missing keys have the defaults of version 1. A table that already has a list, or is damaged, is returned unchanged.
    """
    if "transforms" in table:
        return table
    try:
        transforms = [*_pixels(table), *_mixing(table)]
    except (TypeError, ValueError):
        return table  # damaged: building the config reports it
    return {"transforms": transforms, **{key: table[key] for key in ("mean", "std") if key in table}}


def _pixels(table: Tree) -> list[Tree]:
    """Return the transforms of single images, in the order in which version 1 applied them."""
    flip, pad, policy = table.get("flip", "random"), table.get("crop", 4), table.get("policy", "none")
    brightness, contrast, saturation, hue = jitter = table.get("jitter", (0.0, 0.0, 0.0, 0.0))
    affine = _changed(table, rotation=0, translate=0, scale=[1, 1], shear=0)
    gray, erasing, side = (table.get(key, 0) for key in ("gray", "erasing", "cutout"))
    perspective = table.get("perspective", 0)
    named = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    settings = {key: table[key] for key in _POLICY_SETTINGS.get(policy, ()) if key in table}
    found: list[tuple[bool, Tree]] = [
        (pad > 0, {"name": "crop", "pad": pad, "fill": table.get("crop_fill", "reflect")}),
        (flip != "none", {"name": "flip", "kind": flip}),
        (policy != "none", {"name": policy, **settings}),
        (bool(affine), {"name": "affine", **affine}),
        (perspective > 0, {"name": "perspective", "p": perspective}),
        (any(jitter), {"name": "jitter", **named}),
        (gray > 0, {"name": "gray", "p": gray}),
        (erasing > 0, {"name": "erasing", "p": erasing}),
        (side > 0, {"name": "cutout", "side": side}),
    ]
    return [transform for is_on, transform in found if is_on]


def _mixing(table: Tree) -> list[Tree]:
    alpha = table.get("mix_alpha", 1.0)
    return [{"name": name, "p": table[name], "alpha": alpha} for name in ("mixup", "cutmix") if table.get(name, 0) > 0]


def _changed(table: Tree, **off: object) -> Tree:
    """Return the keys of ``off`` whose value in ``table`` differs."""
    return {key: table[key] for key, value in off.items() if key in table and table[key] != value}
