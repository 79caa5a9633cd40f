"""Build the config from plain values; an error names the setting, and the file or command line that it comes from."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from cifar_dist.config import Config
from cifar_dist.config.choice import UnknownSettingError, validate
from cifar_dist.config.keys import list_of_items, unknown_setting
from cifar_dist.config.named_items import item_keys
from cifar_dist.config.tree import Tree
from cifar_dist.errors import UserError

_OPTIONS = "model.options."


def build_config(tree: Tree, *, where: str, given: Sequence[str] = (), import_plugins: bool = True) -> Config:
    """Validate a nested dictionary and build the config.

    Args:
        tree: sections of fields.
        where: the file that it was read from, for errors.
        given: dotted keys that the command line set, for errors.
        import_plugins: whether code that a ``name`` locates may run; if false, its settings are not validated.

    Raises:
        UserError: a value has the wrong type, is out of range or has no effect; the message names the first.
    """
    try:
        config = validate(Config, tree, {"import_plugins": import_plugins})
        assert isinstance(config, Config)
        return config
    except ValidationError as error:
        first = error.errors()[0]
    key, section = _key(first["loc"], tree)
    owner = section.partition(".")[0]
    of_item = section == f"{owner}.{list_of_items(owner)}"  # which a name on the command line may have replaced
    # An error of a section as a whole names the section; any of its keys may be the cause.
    blames_command_line = any(
        not key
        or name in (section, key)
        or name.startswith((f"{section}.", f"{key}."))
        or (of_item and name.startswith(f"{owner}.") and name.endswith(".name"))
        for name in given
    )
    where = "the command line" if blames_command_line else where
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UnknownSettingError):
        prefix = "--" if f"{key}.{cause.field}" in given else ""
        raise UserError(f"{where}: {unknown_setting(f'{prefix}{key}.', cause.field, cause.known)}")
    if isinstance(cause, ValueError):  # the section's own message, which begins with the field
        raise UserError(f"{where}: {key}{'.' if key else ''}{cause}")
    if section.startswith(_OPTIONS):
        raise UserError(f"{where}: {key} must be true or false, a number, a text, or a list of one of these")
    what, value = first["msg"].partition(", unable to")[0].replace("valid tuple", "list"), first.get("input")
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
