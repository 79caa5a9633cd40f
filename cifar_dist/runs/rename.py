"""Rename a run: its folder, and the name in its config."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from cifar_dist.config import RunConfig
from cifar_dist.config.saved import read_config
from cifar_dist.config.tree import to_toml
from cifar_dist.errors import UserError, quoted
from cifar_dist.files.atomic import write_atomic
from cifar_dist.run_folder import RunFolder
from cifar_dist.terminal.notice import print_notes


def rename(run: RunFolder, name: str) -> RunFolder:
    """Rename a run within its parent folder and return its new folder.

    Evaluations keep the folder names that they got under the old name, by which ``training.log`` refers to them.

    Raises:
        UserError: the name is invalid or taken, or the run is training or cannot be written.
    """
    try:
        RunConfig(name=name)
    except ValueError as error:
        raise UserError(f"{error}; use another name") from None
    if not name:
        raise UserError("the new name is empty; give one")
    before = run.path.resolve()
    if run.path.is_symlink():
        raise UserError(f"{run.path} is a link; rename the run that it leads to: {before}")
    target, renamed = before.with_name(name), RunFolder(run.path.with_name(name))
    if target.exists():
        raise UserError(f"{target} exists; use another name")
    try:
        with run.locked():  # first: a job that ends now may have changed the settings
            texts = _renamed_texts(run, name)
            before.rename(target)
            try:
                for file, text in texts.items():
                    write_atomic(target / file, text)
            except OSError:  # a folder of another user, or a full disk
                target.rename(before)
                raise
    except OSError as error:
        raise UserError(f"{run.path} cannot be renamed: {error.strerror}") from None
    if renamed.job_script.is_file() and not renamed.is_finished():
        again = f"sbatch {quoted(renamed.job_script)}"
        print_notes([f"a job that waits in the queue has the old name; cancel it, and submit it again: {again}"])
    return renamed


def _renamed_texts(run: RunFolder, name: str) -> dict[str, str]:
    """The files of a run that have its name, with another one."""
    configs = [path for path in (run.config, run.started_config) if path.is_file()]
    texts = {path.name: to_toml(read_config(path).with_run(name=name)) for path in configs}
    if run.job_script.is_file():
        texts[run.job_script.name] = _renamed_job(run.job_script, name)
    return texts


def _renamed_job(job_script: Path, name: str) -> str:
    """Rename the run in the script that ``cifar-dist submit`` wrote: its path, and the name of its job."""
    script, file = job_script.read_text(encoding="utf-8"), re.escape(job_script.name)
    found = re.search(r"^# The job of (.+)\. Submitted again", script, re.M)
    if found is None:
        return script
    old = Path(shlex.split(found[1])[0])
    for before, after in (
        (rf"(?<= ){re.escape(found[1])}(?=/{file}$|\. Submitted again| |$)", quoted(old.with_name(name))),
        (rf"(?<=^#SBATCH --job-name=){re.escape(quoted(old.name))}$", name),
    ):
        script = re.sub(before, after.replace("\\", r"\\"), script, flags=re.M)
    return script
