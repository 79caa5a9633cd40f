"""``cifar-dist launch CONFIG RECIPE``: train, or run another collective verb, on many processes of this machine."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Sequence

from cifar_dist.errors import UserError, quoted
from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.launch.typed_command import VARIABLE, launcher_command
from cifar_dist.verbs.arguments import RECIPE_NAME, Name

HELP = "train a recipe on many processes of this machine: launch CONFIG RECIPE [--section.field VALUE ...]"
COLLECTIVE = False
USAGE = "usage: cifar-dist launch CONFIG [--ACCELERATE_OPTION=VALUE ...] RECIPE [--section.field VALUE ...]"
_CHOSEN_BY_CONFIG = {"cpu": "cpu", "use_cpu": "cpu", "multi_gpu": "ddp", "use_deepspeed": "zero2", "use_fsdp": "fsdp"}
_NUM_PROCESSES = ("n", "np", "processes", "procs", "num_procs", "nproc", "nprocs", "nproc_per_node", "gpus", "num_gpus")
"""What other launchers call ``--num_processes``."""
_PRECEDES = "'{}' precedes the recipe, where options of accelerate launch are"

_HELP_TEXT = """\
{usage}

{configs}

cpu is two CPU processes, single one process, ddp the GPUs of this machine,
zero1 to zero3 and zero2-offload DeepSpeed ZeRO on them, fsdp FSDP. Or give the
path of an Accelerate config. Options before the recipe belong to accelerate
launch and are written with =, for example --num_processes=4.

On machines that come and go, type the same on each, with --nnodes=MIN:MAX
--rdzv_endpoint=HOST:PORT, HOST being one of them. Instead of a recipe, give a
command that runs on many processes, with its arguments:
{verbs}.

TERM, USR1, USR2, HUP and Ctrl-C finish the step, save and end with exit code
75; launch CONFIG resume RUN continues. A second Ctrl-C ends the job at once.
The exit code is that of the ranks: 0 done, 2 invalid input, 69 the run is in
use, 75 stopped on request, 124 a rank hung."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("config", type=Name(_config_names, ".yaml"))  # for tab completion only, as the next one
    verb.add_argument("job", type=Name(_jobs, ".toml"))
    verb.set_defaults(words=[], settings=[])


def run(arguments: argparse.Namespace) -> int:
    from cifar_dist.launch.configs import find_config

    words: list[str] = arguments.words
    options_first = itertools.takewhile(lambda word: word.startswith("-"), words[1:])  # later ones are the verb's
    if {"-h", "--help"} & {*words[:1], *options_first}:
        print(_HELP_TEXT.format(usage=USAGE, configs=_known_configs(), verbs=", ".join(_collective_verbs())))
        return EXIT_DONE
    if not words:
        raise UserError(f"name a config; {_known_configs()}; {USAGE}")
    if words[0] in RECIPE_NAME.known() or words[0].endswith(RECIPE_NAME.suffix):
        raise UserError(
            f"name a config before the recipe: cifar-dist launch cpu {quoted(words[0])}; {_known_configs()}"
        )
    if words[0].startswith("-"):
        option = quoted(_as_taken(words[0], words[1:]))
        raise UserError(
            f"CONFIG must come first, then its options: cifar-dist launch CONFIG {option} RECIPE; {_known_configs()}"
        )
    config = find_config(words[0])
    options, rest = split_options(words[1:])

    from cifar_dist.launch.agent import run_launcher
    from cifar_dist.runs.launched_run import LaunchedRun

    os.environ[VARIABLE] = launcher_command(words[0], options)
    return run_launcher(config, options, LaunchedRun(_verb_words(rest)))


def split_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words into the options of ``accelerate launch`` and what follows them.

    Raises:
        UserError: an option that is not written ``--NAME=VALUE``, or nothing follows.
    """
    count = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    for index, option in enumerate(words[:count]):
        if (taken := _as_taken(option, words[index + 1 :])) != option:
            raise UserError(f"{_PRECEDES.format(option)}; write it as {quoted(taken)}")
    if count == len(words):
        raise UserError(f"name a recipe; {USAGE}")
    return list(words[:count]), list(words[count:])


def _as_taken(option: str, following: Sequence[str]) -> str:
    """Return an option of ``accelerate launch`` as it is to be written here, ``--NAME=VALUE``.

    Args:
        option: as it was written.
        following: the words after it, of which the first may be its value.

    Raises:
        UserError: it is no such option, or one that has no value.
    """
    written, equals, value = option.partition("=")
    name = written.lstrip("-").replace("-", "_")
    if name in _CHOSEN_BY_CONFIG:
        raise UserError(f"'{option}' is what CONFIG chooses; use: cifar-dist launch {_CHOSEN_BY_CONFIG[name]} RECIPE")
    if "." in name:
        is_value = not equals and len(following) > 1 and not any(word.startswith("-") for word in following[:2])
        setting = " ".join([option, *following[:is_value]])
        way = f"a setting follows the recipe: cifar-dist launch CONFIG RECIPE {setting}"
        raise UserError(f"{_PRECEDES.format(option)}; {way}")
    if not equals:
        value = following[0] if len(following) > 1 and not following[0].startswith("-") else "VALUE"
    if name in _NUM_PROCESSES:
        return f"--num_processes={value}"
    if equals and written.startswith("--"):
        return option  # the launcher checks it
    from cifar_dist.launch.launcher import options_of_accelerate

    known = options_of_accelerate()
    if name not in known:
        way = "write it after the recipe if it belongs there, or see: accelerate launch --help"
        raise UserError(f"{_PRECEDES.format(option)}, and is none of them; {way}")
    if not known[name]:
        way = "leave it out, or give the path of an Accelerate config that has it"
        raise UserError(f"{_PRECEDES.format(option)}, and only those with a value are taken; {way}")
    return f"--{known[name]}={value}"


def _verb_words(words: list[str]) -> list[str]:
    """Prepend ``train`` to a recipe and its settings; leave a collective verb as it is."""
    from cifar_dist.verbs.registry import VERBS

    if words[0] not in VERBS:
        return ["train", *words]
    if not VERBS[words[0]].COLLECTIVE:
        raise UserError(f"{words[0]} runs in one process; use: cifar-dist {' '.join(words)}")
    return words


def _config_names() -> list[str]:
    from cifar_dist.launch.configs import config_names

    return config_names()


def _jobs() -> list[str]:
    return [*RECIPE_NAME.known(), *_collective_verbs()]


def _collective_verbs() -> list[str]:
    from cifar_dist.verbs.registry import VERBS

    return [name for name, verb in VERBS.items() if verb.COLLECTIVE]


def _known_configs() -> str:
    return f"configs: {' '.join(_config_names())}"
