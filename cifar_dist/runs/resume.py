"""The config of a run that is resumed from its folder alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.config.changes import OF_THE_FOLDER
from cifar_dist.config.overrides import parse_overrides
from cifar_dist.config.run import is_run_name
from cifar_dist.config.saved import read_config
from cifar_dist.errors import UserError, quoted
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import timeline
from cifar_dist.tracking.environment import is_of_earlier_attempt

OF_A_NEW_RUN: Final = (*OF_THE_FOLDER, "run.from")
"""Settings with which a run begins. A resume ignores ``run.fresh`` and refuses the others."""


def resumed_config(run: RunFolder, settings: Sequence[str]) -> Config:
    """Read the config that a run was started with, and apply ``settings`` to it.

    The folder's own place counts, because it may have been moved. Plug-in files that do not exist any more are imported
    from the copies in the folder; in a job that waited since it was submitted, or that has trained the run before, also
    those that have changed, perhaps for the next run.

    Raises:
        UserError: the folder has no name of a run, the config is damaged, a plug-in cannot be imported, or a setting is
            refused.
    """
    for key in parse_overrides(settings):
        if key in OF_A_NEW_RUN and key != "run.fresh":
            raise UserError(f"resume continues {run.path}; drop --{key}, or start another run: cifar-dist train --help")
    if not is_run_name(run.name):
        old, new = quoted(run.path), re.sub(r"[^A-Za-z0-9_.+=-]", "-", run.name).lstrip(".+=-") or "run"
        raise UserError(f"a run cannot have the name '{run.name}'; rename it: cifar-dist runs rename {old} {new}")
    read_config(run.config)  # which must be complete, as a recipe need not be
    here = ["--run.name", run.name, "--run.dir", str(run.path.parent), "--run.fresh", "false"]
    with_copies = is_submitted(run) or is_of_earlier_attempt(run.environment)
    return recipe.load(str(run.config), [*here, *settings], with_copies=with_copies)


def is_submitted(run: RunFolder) -> bool:
    """Whether a run waits as a job: no process has trained it yet."""
    return run.job_script.is_file() and timeline.last_of_a_process(timeline.read(run.timeline)) is None


def settings_of_resume(words: Sequence[str]) -> list[str]:
    """Return the words of the settings that a resume accepts, of those with which a recipe is trained."""
    kept: list[str] = []
    keeps = True
    for word in words:
        if word.startswith("--"):
            keeps = word[2:].partition("=")[0].replace("-", "_") not in OF_A_NEW_RUN
        if keeps:
            kept.append(word)
    return kept
