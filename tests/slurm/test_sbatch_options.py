"""Slurm's options: the array, the time limit and the number of processes that they ask for."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path

import pytest

from cifar_dist.errors import UserError
from cifar_dist.slurm.before_queue import check_options, seconds_of_limit
from cifar_dist.slurm.options import Options


def test_an_array_of_the_environment_is_one_of_the_options() -> None:
    with pytest.raises(UserError, match=r"^--array=0-3 would run several jobs of one run at once"):
        Options.of_one_run([], {"SBATCH_ARRAY_INX": "0-3"})


def test_of_arrays_only_a_chain_is_that_of_one_run() -> None:
    assert Options.of_one_run([], {}).array == ""
    for words in (["--array=1-4%1"], ["-a", "1-4%1"]):
        assert Options.of_one_run(words, {"SBATCH_ARRAY_INX": "0-3"}).array == "1-4%1"
    with pytest.raises(UserError, match=r"^--array=1-4 would run several jobs of one run at once"):
        Options.of_one_run(["-a1-4"], {"SBATCH_ARRAY_INX": "0-3%1"})


def test_of_an_option_given_twice_the_last_counts_whatever_its_form() -> None:
    words = ["--nodes=2", "-N3"]
    assert Options.parse(words).value("-N", "--nodes") == "3"
    assert Options.parse([*words, "--node", "4"]).value("-N", "--nodes") == "4"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 60),
        ("1:30", 120),
        ("2:00:00", 7200),
        ("1-0", 86_400),
        ("1-0:30", 88_200),
        ("0-0:0:1", 60),
        ("0", math.inf),
        ("UNLIMITED", math.inf),
        ("", math.inf),
    ],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: str, seconds: float) -> None:
    assert seconds_of_limit(text) == seconds


def test_a_script_that_an_installed_package_lacks_is_refused_with_where_to_submit(tmp_path: Path) -> None:
    script = tmp_path / "train.sbatch"
    with pytest.raises(UserError, match=rf"^{re.escape(str(script))} does not exist; submit from the root of "):
        check_options(Options([], []), {}, script, max_time="")


def test_a_time_limit_is_found_where_sbatch_finds_it(tmp_path: Path) -> None:
    """On the command line, else in the environment, else in the script that the user has changed."""
    script, variables = tmp_path / "mine.sbatch", {"SBATCH_TIMELIMIT": "2"}
    script.write_text("#!/bin/sh\n#SBATCH --signal=USR1@60 --time=1 # short\n")
    for options, found, refused in (
        (["--time=3"], variables, ""),
        ([], variables, ""),
        ([], {**variables, "SBATCH_SIGNAL": "B:USR1@90"}, "SBATCH_TIMELIMIT=2 (120 s) leaves less than a minute to"),
        ([], {}, "--time=1 of the script (60 s) leaves less than a minute to train: --signal=USR1@60 of the script"),
    ):
        expected = pytest.raises(UserError, match=re.escape(refused)) if refused else contextlib.nullcontext()
        with expected:
            check_options(Options.parse(options), found, script, max_time="")


@pytest.mark.parametrize(
    ("options", "variables", "processes"),
    [
        ([], {}, 1),
        (["-N", "2"], {}, 2),
        (["-N2", "--gres=gpu:2"], {}, 4),
        (["-HN2", "--gres", "gpu:2"], {}, 4),
        (["--nodes", "2", "-W"], {}, 2),
        (["-G8"], {}, None),
        (["--nodes=2", "--gres=gpu:4"], {}, 8),
        (["--gres=tmpdisk:5,gpu"], {}, 1),
        (["--nodes=4", "--gpus-per-node=a100:8"], {}, 32),
        (["--nodes=4"], {"SBATCH_GRES": "gpu:2"}, 8),
        (["--nodes=4"], {"CIFAR_DIST_PROCESSES_PER_NODE": "3"}, 12),
        (["--nodes=2-4"], {}, None),
        (["--gpus=8"], {}, None),
        (["--nodes=0"], {}, None),
        ([], {"SBATCH_GPUS": "8"}, None),
        ([], {"SBATCH_GPUS_PER_TASK": "2"}, None),
        ([], {"SBATCH_GPUS_PER_SOCKET": "2"}, None),
        (["--gres=gpu:0"], {}, 1),
        (["--gres=gpu:1g.5gb:2"], {}, 2),
        (["--gres=gpu:1g.5gb"], {}, 1),
        (["--gres=gpu:2,tmpdisk:5"], {}, 2),
    ],
)
def test_the_options_say_how_many_processes_the_job_has(
    options: list[str], variables: dict[str, str], processes: int | None
) -> None:
    assert Options.parse(options).processes(variables) == processes
