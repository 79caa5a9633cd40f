"""Build the config from plain values; an error names the setting."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from cifar_dist.config import Config
from cifar_dist.config.choice import UnknownSettingError, validate
from cifar_dist.config.keys import list_of_items, unknown_setting
from cifar_dist.config.named_items import item_keys
from cifar_dist.config.plugins import with_plain_paths
from cifar_dist.config.tree import Tree
from cifar_dist.errors import UserError

_OPTIONS = "model.options."


def build_config(tree: Tree, *, where: str, prefix: str = "", import_plugins: bool = True) -> Config:
    """Validate a nested dictionary and build the config.

    Args:
        tree: sections of fields.
        where: what it comes from, for errors.
        prefix: printed before an unknown key in errors: ``--`` for a command line.
        import_plugins: whether code that a ``name`` locates may run; if false, its settings are not validated, and
            its section raises RuntimeError when it is to compute.

    Raises:
        UserError: a value has the wrong type, is out of range or has no effect; the message names the first.
    """
    try:
        config = validate(Config, with_plain_paths(tree), {"import_plugins": import_plugins})
        assert isinstance(config, Config)
        return config
    except ValidationError as error:
        first = error.errors()[0]
    key, setting = _key(first["loc"], tree)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UnknownSettingError):
        raise UserError(f"{where}: {unknown_setting(f'{prefix}{key}.', cause.field, cause.known)}")
    if isinstance(cause, ValueError):  # the section's own message, which begins with the field
        raise UserError(f"{where}: {key}{'.' if key else ''}{cause}")
    if setting.startswith(_OPTIONS):
        raise UserError(f"{where}: {key} must be true or false, a number, a text, or a list of one of these")
    what, value = first["msg"].partition(", unable to")[0], first.get("input")
    what = what.replace("valid tuple", "list").replace("valid dictionary", "table")
    if not what.startswith("Input should"):
        raise UserError(f"{where}: {key}: {what[:1].lower()}{what[1:]}")
    shown = "" if isinstance(value, dict) else f" {value!r}"
    raise UserError(f"{where}: {key}{shown} {what.replace('Input should', 'must', 1)}")


def _key(place: Sequence[str | int], tree: Tree) -> tuple[str, str]:
    """Return the dotted key of a place in ``tree``, list items by name, and the key of the setting that contains it."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place]
    item = next((depth for depth, part in enumerate(place) if isinstance(part, int)), len(place))
    setting = "".join(parts[:item])[1:]
    if setting.startswith(_OPTIONS):  # an option, and the type that its value was last compared with
        option = "".join(parts[:3])[1:]
        return option, option
    if item == 2 < len(place) and place[1] == list_of_items(str(place[0])):
        section, field, number = str(place[0]), str(place[1]), int(place[2])
        parts[1:3] = [f".{item_keys(tree[section][field], field)[number]}"]
    return "".join(parts)[1:], setting
