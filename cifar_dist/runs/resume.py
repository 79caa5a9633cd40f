"""The config of a run that is resumed from its folder alone, or that words on the command line start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cifar_dist import recipe
from cifar_dist.config import Config, RunConfig
from cifar_dist.config.overrides import parse_overrides, split_settings
from cifar_dist.config.run import is_run_name
from cifar_dist.config.saved import read_config
from cifar_dist.errors import UserError, quoted
from cifar_dist.run_folder import RunFolder, find_run


def resumed_config(path: Path, settings: Sequence[str]) -> Config:
    """Read the config that a run was started with, and apply ``settings`` to it.

    The folder's own place counts, because it may have been moved. Plug-in files that do not exist any more are imported
    from the copies in the folder.

    Raises:
        UserError: the folder has no name of a run, the config is damaged, a plug-in cannot be imported, or a setting is
            refused.
    """
    for key in parse_overrides(settings):
        if key in ("run.name", "run.dir", "run.from"):
            raise UserError(f"resume continues {path}; drop --{key}, or start another run: cifar-dist train --help")
    if not is_run_name(path.name):
        old, new = quoted(path), re.sub(r"[^A-Za-z0-9_.+=-]", "-", path.name).lstrip(".+=-") or "run"
        raise UserError(f"a run cannot have the name '{path.name}'; rename it: cifar-dist runs rename {old} {new}")
    folder = RunFolder(path)
    read_config(folder.config)  # which must be complete, as a recipe need not be
    here = ["--run.name", path.name, "--run.dir", str(path.parent), "--run.fresh", "false"]
    return recipe.load(str(folder.config), [*here, *settings])


def launched_run(words: Sequence[str]) -> RunConfig:
    """Return the settings of the run that the words of a collective verb start; the defaults for another verb.

    Of words that the verb will refuse, or answer with its help, they are the defaults as well.

    Raises:
        UserError: the recipe, the run or a setting is invalid.
    """
    verb, *rest = words
    settings, others = split_settings(rest)
    if verb not in ("train", "resume") or len(others) != 1 or others[0].startswith("-"):
        return RunConfig()
    config = recipe.load(others[0], settings) if verb == "train" else resumed_config(find_run(others[0]), settings)
    return config.run


def is_finished(words: Sequence[str]) -> bool:
    """Whether the run is finished that the words of a collective verb start; False for a verb that trains none."""
    run = launched_run(words)
    return bool(run.name) and RunFolder(Path(run.dir) / run.name).is_finished()
