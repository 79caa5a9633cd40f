"""The code that a process runs, as it is recorded and compared."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cifar_dist.files import code_version


def test_the_commit_of_a_project_around_an_installation_is_not_this_program_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    installed = tmp_path / ".venv" / "code_version.py"
    installed.parent.mkdir()
    installed.touch()
    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(code_version, "__file__", str(installed))
    assert code_version.commit.__wrapped__() is None
    git("add", "--force", str(installed))
    assert code_version.commit.__wrapped__()
