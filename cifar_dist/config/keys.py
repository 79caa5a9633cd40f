"""Which keys there are: an unknown one is refused, with a suggestion of what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cifar_dist.config import Config
from cifar_dist.config.choice import field_names, is_root, keys_of, leaves
from cifar_dist.config.named_items import item_root
from cifar_dist.config.section import Section, key_of
from cifar_dist.config.tree import Tree, flatten
from cifar_dist.errors import UserError, nearest


def check_keys(tree: Tree, *, where: str, prefix: str = "", owner: type = Config, path: str = "") -> None:
    """Refuse a key that no section has, and suggest the nearest known one.

    The keys of a choice depend on the variant, which may be a plug-in, so :func:`.build.build_config` checks those.

    Raises:
        UserError: the message begins with ``where``.
    """
    known = field_names(owner)
    hints = {key_of(name): hint for name, hint in get_type_hints(owner).items()}
    for key, value in tree.items():
        dotted = f"{path}{key}"
        if key not in known:
            if not path:
                raise UserError(f"{where}: {_unknown_section(prefix, key, value)}")
            _check_item(key, value, where=where, path=f"{prefix}{path}", owner=owner)
            continue
        if is_dataclass(hints[key]):
            if not isinstance(value, dict):
                example = fields(hints[key])[0].name
                raise UserError(
                    f"{where}: {prefix}{dotted} is a section; set one of its keys, as {prefix}{dotted}.{example}"
                )
            if not is_root(hints[key]):
                check_keys(value, where=where, prefix=prefix, owner=hints[key], path=f"{dotted}.")
        elif isinstance(value, dict) and get_origin(hints[key]) is not dict:
            right = _item_setting(dotted, value, owner) if key == getattr(owner, "named_items", "") else ""
            way = f"did you mean '{prefix}{right}'?" if right else f"set it as a whole, as {prefix}{dotted}"
            raise UserError(f"{where}: {prefix}{dotted} is not a section; {way}")


def _item_setting(listed: str, table: Tree, owner: type[Section]) -> str:
    """Return the key of the setting that a table under a list's own key means; empty if it names no item."""
    name, settings = next(iter(table.items()), ("", None))
    if name not in (items := item_root(owner).variants):
        return ""
    known = [field for field in field_names(items[name]) if field != "name"]
    field = next(iter(settings), "") if isinstance(settings, dict) else ""
    return ".".join([listed.rpartition(".")[0], name, field if field in known else [*known, "name"][0]])


def _check_item(key: str, value: object, *, where: str, path: str, owner: type) -> None:
    """Refuse a key that is not a field of its section, unless it may be an item of the section's list.

    Whether the list has such an item is known only after all layers are merged: see :func:`merge_items`.
    """
    items = item_root(owner).variants if issubclass(owner, Section) and owner.named_items else {}
    if items and isinstance(value, dict):
        return
    if key not in items:
        raise UserError(f"{where}: {unknown_setting(path, key, [*field_names(owner), *items])}")
    first = next((name for name in field_names(items[key]) if name != "name"), "name")
    raise UserError(f"{where}: {path}{key} has settings of its own; set one of them, as {path}{key}.{first}")


_CLASSES = ("num_classes", "classes", "n_classes")
# Options of other programs, and what does the same here.
_FOREIGN = {
    "resume": "the same command resumes its run, without an option",
    "config": "the recipe comes first: cifar-dist train RECIPE",
    "gpus": "the launcher starts the processes: cifar-dist launch ddp --num_processes=N RECIPE",
    "num_processes": "the launcher starts the processes: cifar-dist launch ddp --num_processes=N RECIPE",
    "nproc": "the launcher starts the processes: cifar-dist launch ddp --num_processes=N RECIPE",
    "device": "the launch config chooses it: cifar-dist launch cpu RECIPE, or ddp",
    "workers": "images are decoded in advance by themselves; see --data.read_ahead",
    **dict.fromkeys(_CLASSES, "the dataset says how many classes there are; remove it"),
    "output": "a run is written to the folder that --run.dir and --run.name give",
}

# Names that other programs give to settings.
_SYNONYMS = {
    "learning_rate": "lr",
    "bs": "batch_size",
    "batchsize": "batch_size",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "wd": "weight_decay",
}


def all_keys() -> list[str]:
    """List every setting of every variant by its dotted key."""
    found = []
    for section, kind in get_type_hints(Config).items():
        if section in field_names(Config):
            found += [f"{section}.{key}" for key in keys_of(kind)]
            items = item_root(kind).variants.items() if kind.named_items else ()
            found += [f"{section}.{name}.{key}" for name, item in items for key in field_names(item)[1:]]
    return found


def list_of_items(section: str) -> str:
    """Return the key of a section's list of named items; empty if it has none."""
    found: str = getattr(get_type_hints(Config).get(section), "named_items", "")
    return found


def is_part_of(key: str, whole: str) -> bool:
    """Whether setting ``whole`` replaces ``key``, as ``augment.transforms`` does ``augment.crop.pad`` and itself."""
    section, _, field = whole.partition(".")
    if field == list_of_items(section) and key.count(".") > 1:
        return key.startswith(f"{section}.")
    return f"{key}.".startswith(f"{whole}.")


def types_of(key: str) -> list[Any]:
    """Return the declared types of a setting, annotations included, one for each variant that has it; empty if none is.

    The options of a model have none.
    """
    parts = key.split(".")
    section = get_type_hints(Config).get(parts[0])
    if section is None or len(parts) < 2:
        return []
    owners: list[type] = [section, *(leaf for _, leaf in leaves(section))] if is_root(section) else [section]
    if len(parts) == 3 and section.named_items:
        owners = [item_root(section).variants[parts[1]]] if parts[1] in item_root(section).variants else []
    elif len(parts) == 3 or parts[1] == section.named_items:
        return []
    hints = [get_type_hints(owner, include_extras=True) for owner in owners if parts[-1] in field_names(owner)]
    return [hint for found in hints for name, hint in found.items() if key_of(name) == parts[-1]]


def may_be_of_plugin(key: str) -> bool:
    """Whether a plug-in may declare a setting, even with another type than a built-in variant that has it too."""
    section, _, below = key.partition(".")
    if section not in field_names(Config):
        return False
    kind = get_type_hints(Config)[section]
    if "." in below:
        return bool(kind.named_items) and below.partition(".")[0] not in item_root(kind).variants
    return is_root(kind) and kind.picked_by == "name"


def values_of(key: str) -> list[str]:
    """Return the values of a setting that has few of them, as one types them; empty for all other settings."""
    section, _, field = key.partition(".")
    root = get_type_hints(Config).get(section) if section in field_names(Config) else None
    found = [picks[field] for picks, _ in leaves(root) if field in picks] if root and is_root(root) else []
    for kind in types_of(key):
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if plain is bool:
            found += ["true", "false"]
        elif get_origin(plain) is Literal:
            found += map(str, get_args(plain))
    return list(dict.fromkeys(found))


def _unknown_section(prefix: str, key: str, value: object) -> str:
    """Report a key outside all sections; what is suggested is a setting, because a section alone is refused."""
    typed = next((f"{key}.{rest}" for rest, _ in flatten(value)), key) if isinstance(value, dict) else key
    keys = all_keys()
    if not prefix and key in keys:  # a quoted key of TOML
        section, _, field = key.partition(".")
        return f'the key "{key}" has quotes; remove them, or write {field} in the section [{section}]'
    same = [known for known in keys if known.rpartition(".")[2] == _SYNONYMS.get(typed, typed)]
    near = same or difflib.get_close_matches(typed, keys, n=1, cutoff=0.7)
    if not near and "." not in typed:
        names = difflib.get_close_matches(typed, [known.rpartition(".")[2] for known in keys], n=1, cutoff=0.7)
        near = [known for known in keys if known.rpartition(".")[2] in names]
    foreign = next((text for name, text in _FOREIGN.items() if prefix and typed.startswith(name)), "")
    listed = "settings are section.field; list them with: cifar-dist train RECIPE --help"
    return f"unknown setting {prefix}{typed}; " + (
        foreign or (f"did you mean '{prefix}{near[0]}'?" if near else listed)
    )


def unknown_setting(path: str, key: str, known: Sequence[str]) -> str:
    """Report an unknown setting; suggest the same key in another section, or else the nearest key."""
    prefix = "--" if path.startswith("--") else ""
    if key.removeprefix("no_") in known and key not in known:
        positive = f"{path}{key.removeprefix('no_')}"
        return f"unknown setting {path}{key}; write {positive}{' ' if prefix else ' = '}false"
    if key in _CLASSES:
        return f"unknown setting {path}{key}; {_FOREIGN[key]}"
    meant = _SYNONYMS.get(key, key)
    found = [known for known in all_keys() if known.rpartition(".")[2] == meant]
    right = f"did you mean '{prefix}{found[0]}'?" if found else ""
    right = right or nearest(f"{path}{key}", [f"{path}{name}" for name in known])
    return f"unknown setting {path}{key}; {right}"
