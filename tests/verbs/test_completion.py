"""Tab completion, requested as a shell does it, and in a real shell."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from support.running import PATIENCE, environment

from cifar_dist.verbs.candidates import candidates, words_of_line
from cifar_dist.verbs.registry import VERBS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two runs and a recipe."""
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.toml").touch()
    (tmp_path / "runs" / "not-a-run").mkdir()
    (tmp_path / "mine.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("cifar-dist ", set(VERBS)),
        ("cifar-dist ev", {"evaluate"}),
        ("cifar-dist train m", {"mine.toml"}),
        ("cifar-dist train de", {"demo"}),
        ("cifar-dist train demo --optim.l", {"--optim.lr", "--optim.layer_decay"}),
        ("cifar-dist train demo --optim.name muon --optim.rest_l", {"--optim.rest_lr"}),
        ("cifar-dist train demo --optim.name m", {"muon"}),
        ("cifar-dist train demo --optim.name=m", {"--optim.name=muon"}),
        ("cifar-dist train demo --optim.nesterov ", {"true", "false"}),
        ("cifar-dist train demo --train.precision ", {"no", "auto", "bf16", "fp16", "int8"}),
        ("cifar-dist train demo --augment.crop.p", {"--augment.crop.pad"}),
        ("cifar-dist train demo --help sch", {"schedule"}),
        ("cifar-dist train mine.toml --schedule.warmup", {"--schedule.warmup"}),
        ("cifar-dist train demo --optim.lr 0.1 --data.path ", set()),
        ("cifar-dist evaluate ", {"first", "second"}),
        ("cifar-dist evaluate first --check", {"--checkpoint"}),
        ("cifar-dist evaluate first --tta ", {"0", "mirror", "translate"}),
        ("cifar-dist resume f", {"first"}),
        ("cifar-dist train demo --run.from s", {"second"}),
        ("cifar-dist report first s", {"second"}),
        ("cifar-dist checkpoint ", {"ls", "verify", "diff", "average"}),
        ("cifar-dist checkpoint diff first s", {"second"}),
        ("cifar-dist checkpoint verify first l", {"latest"}),
        ("cifar-dist pack ", set()),
        ("cifar-dist pack digits x --codec ", {"png", "raw"}),
        ("cifar-dist runs co", {"compare"}),
        ("cifar-dist runs compare first s", {"second"}),
        ("cifar-dist sweep run opt", {"optimizer"}),
        ("cifar-dist submit resume f", {"first"}),
        ("cifar-dist submit resume first --dry", {"--dry-run"}),
        ("cifar-dist launch zero", {"zero1", "zero2", "zero2-offload", "zero3"}),
        ("cifar-dist launch cpu --num_processes=2 dem", {"demo"}),
        ("cifar-dist launch cpu demo --train.epo", {"--train.epochs"}),
        ("cifar-dist launch cpu evaluate sec", {"second"}),
        ("cifar-dist lr-find demo --suggest v", {"valley"}),
        ("cifar-dist completion b", {"bash"}),
        ("python train.py dem", {"demo"}),
        ("torchrun --standalone --nproc-per-node 2 ../x/train.py demo --model.name tiny-c", {"tiny-cnn"}),
        ("python -m cifar_dist exp", {"export"}),
        ("launch/local.sh cp", {"cpu"}),
    ],
)
def test_completion_offers_every_valid_next_word(line: str, offered: set[str]) -> None:
    assert set(candidates(words_of_line(line))) == offered


def test_completion_offers_no_option_where_a_value_is_expected() -> None:
    assert "--low" in candidates(words_of_line("cifar-dist lr-find demo --l"))
    assert candidates(words_of_line("cifar-dist lr-find demo --low ")) == []
    assert candidates(words_of_line("cifar-dist train demo --")) == candidates(words_of_line("python train.py demo --"))


@pytest.mark.parametrize("typed", ["--schedule.name plug.py:S", """--augment.transforms='[{name = "plug.py:T"}]'"""])
def test_completion_runs_no_code_that_a_setting_names(folder: Path, typed: str) -> None:
    (folder / "plug.py").write_text("from pathlib import Path\nPath('has-run').touch()\n")
    assert "--schedule.gamma" in candidates(words_of_line(f"cifar-dist train demo {typed} --schedule.g"))
    assert not (folder / "has-run").exists()


class Bash:
    """An interactive bash at a terminal that has completion switched on."""

    def __init__(self, folder: Path) -> None:
        programs = folder / "bin"
        programs.mkdir()
        (programs / "cifar-dist").write_text(f'#!/bin/sh\nexec {sys.executable} -m cifar_dist "$@"\n')
        (programs / "cifar-dist").chmod(0o755)
        env = environment({"PS1": "ready> ", "TERM": "dumb", "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"})
        pid, self._terminal = pty.fork()
        if pid == 0:
            os.chdir(folder)
            os.execve(str(shutil.which("bash")), ["bash", "--norc", "--noprofile", "-i"], env)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self._pid = pid
        self._seen = ""
        self.type('bind "set completion-query-items 0"; bind "set page-completions off"; bind "set bell-style none"\n')
        self.type('eval "$(cifar-dist completion bash)"; echo "is" on\n', "is on")

    def type(self, keys: str, until: str = "") -> str:
        """Send keys, wait for a text in what bash prints from then on, and return it up to there."""
        self._seen = ""
        os.write(self._terminal, keys.encode())
        deadline = time.monotonic() + PATIENCE
        while until not in self._seen:
            assert time.monotonic() < deadline, self._seen
            if select.select([self._terminal], [], [], 1)[0]:
                self._seen += os.read(self._terminal, 65536).decode()
        return self._seen

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_words_at_its_prompt(folder: Path) -> None:
    bash = Bash(folder)
    try:
        bash.type("cifar-dist ev\t", "evaluate ")
        bash.type("fir\t", "first ")
        bash.type("--ch\t", "--checkpoint ")
        bash.type("\x15cifar-dist train dem\t", "demo ")
        bash.type("--opt\t", "--optim.")
        bash.type("nam\t", "name ")
        bash.type("mu\t", "muon ")
        bash.type("--schedule.name=lin\t", "linear ")
        bash.type("\x15python train.py dem\t", "demo ")
        bash.type("\x15python mi\t", "mine.toml ")  # another program's arguments are files, as before
        (folder / "two words.toml").touch()
        (folder / "x[m]*.toml").touch()
        bash.type("\x15cifar-dist train tw\t", "two\\ words.toml ")
        bash.type("\x15cifar-dist train two\\ w\t", "ords.toml ")
        bash.type("\x15cifar-dist train x\t", "x\\[m\\]\\*.toml ")
        listed = bash.type("\x15cifar-dist runs \t\t", "list")
        assert re.search(r"clean +compare +list", listed)
    finally:
        bash.close()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_accepts_its_script(folder: Path) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "cifar_dist", "completion", "zsh"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    ).stdout
    # Completion itself requires zsh's line editor; the function is called with its words, and compadd prints them.
    stubs, call = "compdef() { }; compadd() { print -l -- $@ }", "words=(cifar-dist evaluate fi) CURRENT=3 _cifar_dist"
    probe = f"{stubs}\n{script}\n{call}"
    done = subprocess.run(["zsh", "-fc", probe], env=environment(), cwd=folder, capture_output=True, text=True)
    assert "first" in done.stdout.split(), done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("ev", ["evaluate"]),
        ("evaluate fi", ["first"]),
        ("train demo --optim.name mu", ["muon"]),
        ("train demo --schedule.name=lin", ["--schedule.name=linear"]),
        ("train mi", ["mine.toml"]),
        ("evaluate ", ["first", "second"]),
        ("predict first mi", ["mine.toml"]),
    ],
)
def test_fish_completes_words(folder: Path, typed: str, offered: list[str]) -> None:
    program = f"{sys.executable} -m cifar_dist"
    script = f"{program} completion fish | source; complete -C 'cifar-dist {typed}'"
    done = subprocess.run(["fish", "-c", script], env=environment(), cwd=folder, capture_output=True, text=True)
    assert done.stdout.splitlines() == offered, done.stderr
