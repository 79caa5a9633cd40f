"""The run that a launched job trains, as the words on its command line say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from cifar_dist import recipe
from cifar_dist.config import Config, RunConfig
from cifar_dist.config.overrides import split_settings
from cifar_dist.run_folder import RunFolder, find_run
from cifar_dist.runs.resume import resumed_config, settings_of_resume


class LaunchedRun:
    """What a launcher of several machines asks of the run that its words start; see :class:`cifar_dist.launch.job.Job`.

    Its recipe is read once, when it is asked first.

    Args:
        words: a collective verb and its arguments.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    @property
    def join_timeout(self) -> float:
        """``run.join_timeout``; its default where no run is trained.

        Raises:
            UserError: the recipe, the run or a setting is invalid.
        """
        return (self._config.run if self._config else RunConfig()).join_timeout

    def is_finished(self) -> bool:
        """Whether the run is finished, with the length that the words ask for; False where none is trained."""
        from cifar_dist.training.continuation import is_finished

        config = self._config  # with run.fresh, this job has created the folder
        return config is not None and is_finished(config.with_run(fresh=False))

    def words_to_continue(self) -> list[str]:
        """Return the words with which ranks that start again continue the run.

        They do not read its recipe again, which may have been edited for another run.
        """
        if self._config is None or not RunFolder.of(self._config).exists():
            return self.words
        settings, _ = split_settings(self.words[1:])
        return ["resume", str(RunFolder.of(self._config).path), *settings_of_resume(settings)]

    @cached_property
    def _config(self) -> Config | None:
        """The config; None for a verb that trains none, and for words that the verb will refuse or answer with help."""
        verb, *rest = self.words
        settings, others = split_settings(rest)
        if verb not in ("train", "resume") or len(others) != 1 or others[0].startswith("-"):
            return None
        return recipe.load(others[0], settings) if verb == "train" else resumed_config(find_run(others[0]), settings)
