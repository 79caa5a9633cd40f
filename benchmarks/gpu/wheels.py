"""Download the wheels that a machine with torch lacks: see benchmarks/gpu_wheels.sh."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LIMIT_MIB = 64
ON_THE_MACHINE = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "matplotlib", "pillow")
"""A machine with torch has these and all that they require; they are most of the bytes."""
_NOT_NEEDED = ("wandb",)
_FOR_TESTS = ("pytest", "pytest-xdist", "hypothesis")
_GLIBC = (39, 36, 35, 34, 31, 28, 27, 24, 17, 12, 5)  # pip takes the platforms that it is given and no older ones


def packages_to_carry(more: Iterable[str], python: str) -> list[str]:
    """Return the names of all packages to carry, sorted.

    Args:
        more: names of packages that the machine lacks, too.
        python: its Python's version, as ``3.12``.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    extra = {canonicalize_name(name) for name in more}
    there = set(map(canonicalize_name, ON_THE_MACHINE)) - extra
    roots = needed - there - set(_NOT_NEEDED) | set(_FOR_TESTS) | extra
    return sorted((_with_requirements(roots, python) - _with_requirements(there, python)) | extra)


def _with_requirements(names: Iterable[str], python: str) -> set[str]:
    """Return packages and what they require, as the packages installed here say."""
    machine = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        try:
            required = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform or Python; the download says if it is missing
        parsed = map(Requirement, required)
        waiting += [one.name for one in parsed if one.marker is None or one.marker.evaluate(machine)]
    return found


def pins() -> dict[str, str]:
    """Return the version of each package in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def commands(requirement: str, folder: Path, python: str) -> tuple[list[str], list[str]]:
    """The command that downloads a wheel, and the one that builds it where only its source is published."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in _GLIBC]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
    download = [*pip, "download", "--quiet", "--no-deps", *target, "--dest", str(folder), requirement]
    return download, [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), requirement]


def fetch(name: str, version: str, folder: Path, python: str) -> None:
    """Put a package's wheel into ``folder``.

    Raises:
        SystemExit: it cannot be downloaded, or only built for the Python that runs here.
    """
    requirement = f"{name}=={version}" if version else name
    before = set(folder.glob("*.whl"))
    download, build = commands(requirement, folder, python)
    if subprocess.run(download, stderr=subprocess.DEVNULL).returncode and subprocess.run(build).returncode:
        sys.exit(f"benchmarks/gpu_wheels.sh: {requirement} could not be downloaded")
    for wheel in set(folder.glob("*.whl")) - before:
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}", flush=True)
        if not runs_on(wheel.name, python):
            sys.exit(f"benchmarks/gpu_wheels.sh: {wheel.name} was built for another Python than {python}; run it there")


def runs_on(wheel: str, python: str) -> bool:
    """Whether a wheel's name says that it runs on ``python``: one for any platform, or compiled for it."""
    tags, _, platform = wheel.removesuffix(".whl").rpartition("-")
    own, abi = tags.split("-")[-2:]
    return platform == "any" or abi == "abi3" or own == f"cp{python.replace('.', '')}" or own.startswith("py3")


def main(words: Sequence[str]) -> int:
    if not words or words[0].startswith("-"):
        print("usage: benchmarks/gpu_wheels.sh WHEELS [PACKAGE ...]", file=sys.stderr)
        return 2
    folder, python = Path(words[0]), os.environ.get("TARGET_PYTHON", "3.12")
    if not re.fullmatch(r"3\.\d+", python):
        return _refuse(f"TARGET_PYTHON is {python!r}; set it to a version such as 3.12")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return _refuse(f"{folder} cannot be created ({error.strerror}); name another folder")
    for old in folder.glob("*.whl"):  # two versions of a package cannot be installed together
        old.unlink()
    versions = pins()
    for name in packages_to_carry(words[1:], python):
        fetch(name, versions.get(name, ""), folder, python)
    sizes = {wheel.name: wheel.stat().st_size / 2**20 for wheel in folder.glob("*.whl")}
    print(f"{len(sizes)} wheels, {sum(sizes.values()):.1f} MiB in {folder}; set WHEELS to it for benchmarks/gpu.sh")
    if sum(sizes.values()) > LIMIT_MIB:
        largest = ", ".join(sorted(sizes, key=lambda name: -sizes[name])[:3])
        print(f"more than {LIMIT_MIB} MiB; name fewer packages (largest: {largest})", file=sys.stderr)
        return 1
    return 0


def _refuse(why: str) -> int:
    print(f"benchmarks/gpu_wheels.sh: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
