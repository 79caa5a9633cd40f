"""slurm/train.sbatch without a cluster: programs that take the place of Slurm's and of Python."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.running import PATIENCE, ROOT, environment

SCRIPT = ROOT / "slurm" / "train.sbatch"
_SLURM = {
    "squeue": 'case "$*" in (*State*) echo RUNNING 0 1 ;; (*RestartCnt*) echo 0 1 ;; (*) echo RUNNING ;; esac',
    "scontrol": "exit 0",
    "srun": 'while [ "$1" != bash ]; do shift; done; exec "$@"',
    "sleep": "exit 0",
}
_PYTHON = {
    "preflight": 'printf "%s\\n" runs/it "" train 0',
    "node": "exit 0",
    "requeue": 'echo "${*#*requeue }" >> decided; echo requeue 75',
}


@dataclass(frozen=True)
class Programs:
    """A folder of the programs that the script calls; each call is a line in ``calls``."""

    folder: Path

    def write(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/sh\ncd "{self.folder}"\necho "{name} $*" >> calls\n{body}\n')
        path.chmod(0o755)

    def write_python(self, **commands: str) -> None:
        """Write a Python that answers the commands of ``cifar_dist.slurm``."""
        cases = " ".join(f'(*"slurm {name}"*) {body} ;;' for name, body in {**_PYTHON, **commands}.items())
        self.write("python", f'case "$*" in {cases} esac')

    def run(self, script: Path = SCRIPT, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder}/bin:{environment()['PATH']}"
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_SUBMIT_DIR": str(ROOT)}
        env = environment({**job, "PATH": path, "CIFAR_DIST_VENV": str(self.folder), **variables})
        command = ["bash", str(script), "demo"]
        return subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE)

    def calls(self, name: str) -> list[str]:
        return [line for line in (self.folder / "calls").read_text().splitlines() if line.startswith(name)]


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    (tmp_path / "bin").mkdir()
    found = Programs(tmp_path)
    for name, body in _SLURM.items():
        found.write(name, body)
    found.write_python()
    return found


def test_what_a_wrapper_of_python_prints_is_no_answer(programs: Programs) -> None:
    banner = "echo '== PyTorch =='; echo;"
    programs.write_python(**{name: f"{banner} {body}" for name, body in _PYTHON.items()})
    done = programs.run()
    assert done.returncode == 75, done.stderr
    assert "-m cifar_dist.slurm node train runs/it demo" in programs.calls("python")[1]
    assert (programs.folder / "decided").read_text() == "runs/it  0 0 RUNNING 0 1 1\n"
    assert programs.calls("scontrol") == ["scontrol requeue 7"]


def test_a_controller_that_restarts_ends_no_chain_of_jobs(programs: Programs) -> None:
    """Each question is asked until it is answered."""
    fails_twice = (
        'tries=tries.$(echo "$0 $*" | cksum | cut -d" " -f1); echo >> $tries;'
        '[ $(wc -l < $tries) -gt 2 ] || { echo "Unable to contact slurm" >&2; exit 1; };'
    )
    for name in ("squeue", "scontrol"):
        programs.write(name, f"{fails_twice} {_SLURM[name]}")
    done = programs.run()
    assert done.returncode == 75, done.stderr
    assert (programs.folder / "decided").read_text() == "runs/it  0 0 RUNNING 0 1 1\n"
    assert len(programs.calls("scontrol")) == 3
    assert "would not requeue" not in done.stderr


@pytest.mark.parametrize("command", ["preflight", "node"])
def test_a_signal_to_the_script_is_obeyed_whenever_it_comes(programs: Programs, command: str) -> None:
    """Of its checks it ends none; afterwards it is passed on to the nodes."""
    programs.write_python(**{command: f"kill -USR1 $PPID; {_PYTHON[command]}"})
    done = programs.run()
    assert done.returncode == 75, done.stderr
    said = "stopped on request before it trained; unless Slurm requeues the job, submit it again\n"
    assert done.stderr == (f"slurm/train.sbatch: {said}" if command == "preflight" else "")
    assert bool(programs.calls("srun")) == (command == "node")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--cpu-bind none b", "srun starts nothing with CIFAR_DIST_SRUN_OPTIONS='--cpu-bind none b'; correct it"),
        ("--comment='a b'", "CIFAR_DIST_SRUN_OPTIONS is split at spaces, also inside quotes: --comment='a b'; use no"),
    ],
)
def test_options_with_which_srun_starts_another_program_are_named(programs: Programs, options: str, said: str) -> None:
    """Srun ends with 2 if it does not find that program, as the checks do for invalid input."""
    programs.write("srun", 'echo "execve(): b: No such file or directory" >&2; exit 2')
    done = programs.run(CIFAR_DIST_SRUN_OPTIONS=options)
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"slurm/train.sbatch: {said}")


def test_invalid_input_that_srun_reports_is_explained_once(programs: Programs) -> None:
    programs.write("srun", 'shift 3; exec "$@"')
    programs.write_python(preflight="echo wrong >&2; exit 2")
    done = programs.run(CIFAR_DIST_SRUN_OPTIONS="--overlap")
    assert (done.returncode, done.stderr) == (2, "wrong\n")


def test_an_edit_of_the_script_while_its_job_trains_changes_nothing(programs: Programs) -> None:
    """Jobs of ``submit`` and of sweeps run the file in the repository, not a copy of Slurm."""
    script = programs.folder / "train.sbatch"
    script.write_text(SCRIPT.read_text())
    programs.write_python(node=f'echo "exit 0" > {script}; exit 0')
    done = programs.run(script)
    assert done.returncode == 75, done.stderr
    assert programs.calls("scontrol") == ["scontrol requeue 7"]


def test_a_setup_of_the_site_gets_no_words_and_keeps_no_options(programs: Programs) -> None:
    """As conda's activate parses its words; with ``set -e`` a job that stalled would not be requeued."""
    setup = programs.folder / "setup.sh"
    setup.write_text('echo "words: $#, $UNSET" > said\nset -ef\n')
    programs.write_python(node="exit 124")
    done = programs.run(CIFAR_DIST_SETUP=str(setup))
    assert done.returncode == 75, done.stderr
    assert (programs.folder / "said").read_text() == "words: 0, \n"
    assert programs.calls("python")[0].endswith("preflight demo")
    assert programs.calls("scontrol") == ["scontrol requeue 7"]


@pytest.mark.parametrize("name", ["SQUEUE_PARTITION", "SQUEUE_FORMAT2", "SLURM_CLUSTERS"])
def test_variables_with_which_a_user_filters_the_answers_of_slurm_do_not_matter(programs: Programs, name: str) -> None:
    programs.write("squeue", f'[ -z "${name}" ] || exit 0; {_SLURM["squeue"]}')
    done = programs.run(SCRIPT, **{name: "other"})
    assert done.returncode == 75, done.stderr
    assert (programs.folder / "decided").read_text() == "runs/it  0 0 RUNNING 0 1 1\n"
