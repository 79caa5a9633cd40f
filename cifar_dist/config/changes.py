"""Which settings a resume may change, and how configs differ: in words, as the words of a command line, and as a table.

A config is given as its settings by dotted key, as :func:`.settings.settings_of` returns them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from cifar_dist.config.named_items import items_of_settings
from cifar_dist.config.toml_text import as_typed, inline_toml, typed_value

CHANGEABLE_ON_RESUME: Final = (
    "run.name",
    "run.dir",
    "run.fresh",
    "run.processes",
    "run.join_timeout",
    "run.collective_timeout",
    "run.stall_timeout",
    "run.stall_factor",
    "run.max_time",
    "data.path",
    "data.resident_mb",
    "data.read_ahead",
    "train.compile",
    "train.engine",
    "train.even_batches",
    "train.profile",
    "train.threads",
    "eval",
    "checkpoint",
    "tracking",
)
"""Keys and sections that a resume may change: they affect how a run is tracked and stored, not what it computes."""

LENGTH: Final = ("train.epochs", "train.max_steps", "train.patience", "train.monitor", "train.min_delta")
"""Keys that say when a run is complete: a resume that changes them extends it, if the steps done stay the same."""

NOT_RANGE_TESTED: Final = (*LENGTH, "optim.lr", "schedule")
"""Keys and sections without an effect on a range test: a recipe that differs in them only has the same curve."""

KEPT_BY_A_BRANCH: Final = ("model.name", "model.pretrained", "model.freeze", "optim.name", "optim.rest", "average.name")
"""Settings that decide which tensors a checkpoint has; a branch cannot change them."""

OF_THE_FOLDER: Final = ("run.name", "run.dir", "run.fresh")
"""Settings that say which folder a run has, and whether it may exist: no command that names the folder has them."""

_OF_ONE_START: Final = (*OF_THE_FOLDER, "run.processes")
"""Settings of one start of one run, which a command for another one does not repeat."""

_WITHOUT_COUNT: Final = ("none", "ema", "lookahead")
"""Averages whose weights do not depend on how many updates came before; a plug-in's may."""

_LIST: Final = "augment.transforms"
"""A list whose items have settings of their own, as ``augment.crop.pad``; an item is added with the whole list only."""
_OF_ITEMS: Final = re.compile(r"augment\..+\.")

_SHOWN: Final = ("data.path", "train.", "eval.")
"""Settings that are compared though a resume may change them: of the data, the speed and the evaluation."""

Settings = Mapping[str, object]


def contradiction(
    started: Settings, asked: Settings, besides: Sequence[str] = (), where: str = "this command"
) -> tuple[str, str] | None:
    """Return the first setting that a resume may not change but does, and the difference in words; None for none.

    Args:
        started: the run's settings.
        asked: those of the command.
        besides: keys and sections that may differ too.
        where: what asks for them.
    """
    # Settings that both configs have come first: with another optimizer, its name precedes the settings it brings.
    for key in sorted(started.keys() | asked.keys(), key=lambda key: (key not in started or key not in asked, key)):
        if started.get(key) != asked.get(key) and not _is_among(key, besides) and not may_change(key):
            return key, f"{key} = {in_words(started.get(key))} and {where} says {in_words(asked.get(key))}"
    return None


def can_branch(started: Settings, asked: Settings) -> bool:
    """Whether a run of other settings can begin with a checkpoint of this one, as far as its settings tell."""
    kept = [*KEPT_BY_A_BRANCH, "average.start"]  # a branch from before it begins could change it
    if started.get("average.name") not in _WITHOUT_COUNT:
        kept += ["average.every"]  # of a mean, whose weight is one part in the number of its updates
    kept += ["train.batch_size", "data.hold_out"]  # which decide the steps of an epoch
    kept += [key for key in started.keys() | asked.keys() if key.startswith("model.options.")]
    return all(started.get(key) == asked.get(key) for key in kept)


def words_of_changes(started: Settings, asked: Settings, keys: Sequence[str] = ()) -> list[str] | None:
    """Return the words that turn one config's settings into the other's, of ``keys`` or of all but the run's place.

    They are not quoted for a shell. None: the command line has no short words for it, because ``asked`` lacks a setting
    of ``started``.
    """
    differ = [key for key in sorted(started.keys() | asked.keys()) if started.get(key) != asked.get(key)]
    values = {key: asked.get(key) for key in differ if (key in keys if keys else key not in _OF_ONE_START)}
    if any(key.startswith(_LIST) for key in values):  # the list, or an item that only its place in it names
        values = {key: value for key, value in values.items() if not _OF_ITEMS.match(key)}
        values[_LIST] = items_of_settings(asked, _LIST)
    if any(value is None or isinstance(value, dict) for value in values.values()):
        return None
    return [word for key, value in values.items() for word in (f"--{key}", typed_value(key, value))]


def in_words(value: object) -> str:
    """Return a setting's value as TOML; ``nothing`` where it is not set."""
    return "nothing" if value is None else inline_toml(value)


def may_change(key: str) -> bool:
    """Whether a resume may change a setting, see :data:`CHANGEABLE_ON_RESUME`."""
    return _is_among(key, CHANGEABLE_ON_RESUME)


def _is_among(key: str, free: Sequence[str]) -> bool:
    """Whether a setting is one of some keys and sections."""
    return any(key == one or key.startswith(f"{one}.") for one in free)


def differences(configs: Sequence[Settings]) -> dict[str, list[str]]:
    """Return each setting that differs, with its value in every config as one types it.

    An option that a model does not have is empty. Settings that say where and how a run is kept are omitted.
    """
    keys = dict.fromkeys(key for one in configs for key in one if key.startswith(_SHOWN) or not may_change(key))
    differ = [key for key in keys if any(one.get(key) != configs[0].get(key) for one in configs)]
    return {key: ["" if one.get(key) is None else as_typed(one[key]) for one in configs] for key in differ}


def short_key(key: str, keys: Collection[str]) -> str:
    """Return the last part of a key if that is unambiguous; ``name`` always keeps its section."""
    last = key.rpartition(".")[2]
    return last if last != "name" and [other.rpartition(".")[2] for other in keys].count(last) == 1 else key
