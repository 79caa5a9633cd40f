"""The words of a command that are meant for Slurm, and what they ask for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cifar_dist.errors import UserError
from cifar_dist.files.checkout import HOME
from cifar_dist.launch.typed_command import SLURM_PROCESSES

RESUME: Final = "resume"
"""First word of a job that continues a run instead of training a recipe."""

PYXIS: Final = "--container-"
"""What the options of pyxis begin with: only srun enters the container, as the image may lack Slurm's commands."""

_FLAGS: Final = "HhkOQsuvVW"  # of sbatch, without a value: others may follow them in one word, as in -HN2

_VARIABLES: Final = {"--time": "TIMELIMIT"}  # SBATCH_NAME, where NAME is not that of the option


@dataclass(frozen=True)
class Options:
    """The words that are meant for Slurm.

    Attributes:
        sbatch: options of ``sbatch``, one string for each with its value, quoted for a shell.
        srun: words for ``srun`` alone, which a variable holds with spaces between them, so none has one.
    """

    sbatch: list[str]
    srun: list[str]

    @classmethod
    def parse(cls, words: Sequence[str]) -> Options:
        """Group options with their values, and separate those of pyxis.

        Raises:
            UserError: a word is not an option, or one of pyxis has a space.
        """
        grouped: list[list[str]] = []
        for word in words:
            if word.startswith("-"):
                grouped.append([word])
            elif not grouped or len(grouped[-1]) > 1 or "=" in grouped[-1][0]:
                raise UserError(f"unexpected '{word}'; sbatch options begin with -, settings are --section.field VALUE")
            else:
                grouped[-1].append(word)
        of_srun = [word for group in grouped if group[0].startswith(PYXIS) for word in group]
        for word in of_srun:
            if len(word.split()) > 1:
                raise UserError(f"a space or line break in {word!r} would split it for srun; use a path without")
        own = [" ".join(map(shlex.quote, group)) for group in grouped if not group[0].startswith(PYXIS)]
        return cls(own, of_srun)

    @classmethod
    def of_one_run(cls, words: Sequence[str], variables: Mapping[str, str]) -> Options:
        """Return the options of the job of one run.

        Args:
            words: of the command.
            variables: the environment, in which ``sbatch`` finds options, too.

        Raises:
            UserError: a word is not an option, or an array would run several jobs of one run at once.
        """
        parsed = cls.parse(words)
        array = parsed.array or variables.get("SBATCH_ARRAY_INX", "")
        if array and not array.endswith("%1"):
            raise UserError(
                f"--array={array} would run several jobs of one run at once; add %1 for a chain of jobs that continue "
                "it, or train many runs: cifar-dist sweep submit FILE"
            )
        return parsed

    @classmethod
    def of_script(cls, script: Path) -> Options:
        """Return the options in the ``#SBATCH`` lines of a script.

        Raises:
            UserError: it does not exist, as ``slurm/`` of the repository does not beside an installed package.
        """
        try:
            text = script.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(
                f"{script} does not exist; submit from the root of the repository, or set {HOME} to it"
            ) from None
        lines = re.findall(r"^#SBATCH\s(.*)$", text, re.M)
        return cls.parse([word for line in lines for word in shlex.split(line, comments=True)])

    @property
    def typed(self) -> str:
        """All of them, as one would type them; empty for none."""
        return " ".join([*self.sbatch, *map(shlex.quote, self.srun)])

    def without(self, *names: str) -> Options:
        """Return all but some options of ``sbatch``."""
        return Options([option for option in self.sbatch if _split(option)[0] not in names], self.srun)

    @property
    def array(self) -> str:
        """The tasks of a chain of jobs, as ``1-4%1``; empty for one job."""
        return self.value("-a", "--array")

    @property
    def words(self) -> list[str]:
        return [word for option in self.sbatch for word in shlex.split(option)]

    def processes(self, variables: Mapping[str, str]) -> int | None:
        """Return the number of processes of the job; None where the options alone do not say it."""
        others = ("SBATCH_GPUS", "SBATCH_GPUS_PER_TASK", "SBATCH_GPUS_PER_SOCKET")
        if self.value("-G", "--gpus", "--gpus-per-task", "--gpus-per-socket") or any(map(variables.get, others)):
            return None
        nodes = self.value("-N", "--nodes") or "1"
        gres = self.value("--gres") or variables.get("SBATCH_GRES", "")
        gpus = re.search(r"(?:^|,)gpu(?::(?!\d+(?:,|$))[^:,]+)?(?::(\d+))?(?:,|$)", gres)
        per_node = self.value("--gpus-per-node") or variables.get("SBATCH_GPUS_PER_NODE", "")
        on_node = variables.get(SLURM_PROCESSES) or per_node.rpartition(":")[2]
        on_node = on_node or ((gpus[1] or "1") if gpus else "1")
        if not (nodes.isdecimal() and on_node.isdecimal() and int(nodes)):  # sbatch refuses --nodes=0
            return None
        return int(nodes) * max(1, int(on_node))

    def value(self, *names: str) -> str:
        """Return the value of an option as ``sbatch`` reads it, the last one; empty where none is given.

        A long name may be shortened: ``sbatch`` itself refuses one that could be another option, too.

        Args:
            names: of the option, with their dashes; its own name before those that it begins.
        """
        for option in reversed(self.sbatch):
            name, value = _split(option)
            if name in names or (name.startswith("--") and any(full.startswith(name) for full in names)):
                return value
        return ""


def asked(names: tuple[str, ...], options: Options, variables: Mapping[str, str], script: Options) -> tuple[str, str]:
    """Return who asks for something, for a reader, and the value, as ``sbatch`` finds it; empty where nobody does.

    Args:
        names: of the option, with their dashes, the long one last; ``sbatch`` also reads it from a variable.
        options: on the command line.
        variables: the environment.
        script: the options in the script.
    """
    long = names[-1]
    variable = f"SBATCH_{_VARIABLES.get(long, long.strip('-').upper())}"
    if value := options.value(*names):
        return f"{long}={value}", value
    if value := variables.get(variable, ""):
        return f"{variable}={value}", value
    if value := script.value(*names):
        return f"{long}={value} of the script", value
    return "", ""


def _split(option: str) -> tuple[str, str]:
    """Return the name of an option and its value; of several in one word, such as ``-HN2``, the last one."""
    first, *rest = shlex.split(option)
    if first.startswith("--"):
        name, _, value = first.partition("=")
        return name, value or " ".join(rest)
    found = re.match(rf"-[{_FLAGS}]*(.?)", first)
    assert found is not None  # an option begins with -
    return f"-{found[1]}", first[found.end() :] or " ".join(rest)
