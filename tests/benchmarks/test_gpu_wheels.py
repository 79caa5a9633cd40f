"""The command that downloads what the benchmark command for a GPU requires and its machine lacks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from gpu import wheels
from support.running import PATIENCE, ROOT, environment


def test_the_wheels_are_what_a_machine_with_torch_lacks() -> None:
    names, versions = wheels.packages_to_carry([], "3.12"), wheels.pins()
    assert {"deepspeed", "pydantic-core", "webdataset", "hypothesis", "tomli-w"} <= set(names)
    assert not {"torch", "triton", "numpy", "matplotlib", "wandb"} & set(names)
    assert [name for name in [*names, "scipy"] if name not in versions] == []
    assert "scipy" in wheels.packages_to_carry(["scipy"], "3.12")
    download, build = wheels.commands("deepspeed==1", Path("wheels"), "3.12")
    assert "--no-deps" in download
    assert "--no-deps" in build
    assert not [word for word in (*download, *build) if "index" in word or "://" in word]


@pytest.mark.parametrize(
    ("wheel", "runs"),
    [
        ("rich-15.0.0-py3-none-any.whl", True),
        ("msgpack-1.2.4-cp312-cp312-manylinux_2_28_x86_64.whl", True),
        ("tokenizers-0.23.3-cp39-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
        ("ninja-1.13.2-py3-none-manylinux2014_x86_64.whl", True),
        ("msgpack-1.2.4-cp311-cp311-linux_x86_64.whl", False),
    ],
)
def test_a_wheel_for_another_python_is_noticed(wheel: str, runs: bool) -> None:
    assert wheels.runs_on(wheel, "3.12") == runs


@pytest.mark.parametrize(
    ("variables", "folder", "says"),
    [
        ({"TARGET_PYTHON": "abc"}, "wheels", "TARGET_PYTHON is 'abc'; set it to a version such as 3.12"),
        ({}, "/proc/wheels", "/proc/wheels cannot be created (No such file or directory); name another folder"),
        ({"PYTHON": "no/such/python"}, "wheels", "no/such/python does not exist; run make setup, or set PYTHON"),
    ],
)
def test_wheels_that_cannot_be_fetched_are_one_line(
    tmp_path: Path, forked: dict[str, str], variables: dict[str, str], folder: str, says: str
) -> None:
    command = [str(ROOT / "benchmarks" / "gpu_wheels.sh"), folder]
    env = environment({**forked, "PYTHON": "python", **variables})
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"benchmarks/gpu_wheels.sh: {says}")
    assert list(tmp_path.iterdir()) == []
