"""Many launches in a row, each with its exit code checked: ``python tests/launch/soak.py 50``.

Left to the interpreter's own exit, about one two-process gloo job in thirty aborts after its work; and launchers turn
every code into 1. Takes some ten seconds a launch. Prints the counts, and what a wrong one said.
"""

from __future__ import annotations

import collections
import itertools
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.running import PATIENCE, ROOT, environment

LOCAL = ROOT / "launch" / "local.sh"
CODES = {"done": 0, "stopped": 75, "refused": 2}
_SIGNALS = itertools.cycle([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])


def write_recipe(folder: Path, digits: Path, batch_size: int = 20) -> Path:
    """Write a recipe that trains thirteen cheap steps, if ``digits`` has as many batches."""
    path = folder / "soak.toml"
    path.write_text(
        f"""
        run.dir = "{folder}/runs"
        data.path = "{digits}"
        augment.transforms = [{{ name = "crop" }}]
        model.name = "tiny-cnn"
        schedule.name = "constant"
        train = {{ epochs = 1, batch_size = {batch_size}, threads = 1 }}
        tracking.every = 1
        eval.tta = "0"
        """
    )
    return path


def start(
    recipe: Path, name: str, *words: str, config: str = "cpu", env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start ``launch/local.sh`` on two processes, with stderr in stdout."""
    return subprocess.Popen(
        [LOCAL, config, "--num_processes=2", recipe, "--run.name", name, *words],
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def steps_done(run: Path) -> int:
    """Count the training steps in a run's metrics.jsonl, which has lines for evaluations too."""
    return (run / "metrics.jsonl").read_text().count('"split":"train"') if (run / "metrics.jsonl").exists() else 0


def wait_for_steps(job: subprocess.Popen[str], run: Path, steps: int) -> None:
    """Wait until the run has logged so many steps, or the job has ended."""
    deadline = time.monotonic() + PATIENCE
    while steps_done(run) < steps and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)


def end(job: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code and output of a job; a job that hangs is killed, with a code that no test expects."""
    try:
        output, _ = job.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        job.kill()
        output, _ = job.communicate()
    return job.returncode, output


def launch(kind: str, recipe: Path, name: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run one job, which is ``done``, ``stopped`` by a signal, or ``refused`` after its processes have joined."""
    uneven = ["--train.batch_size", "101", "--train.even_batches", "true"]
    words = {"done": [], "stopped": ["--train.epochs", "10000"], "refused": uneven}[kind]
    job = start(recipe, name, *words, env=env)
    if kind == "stopped":
        wait_for_steps(job, recipe.parent / "runs" / name, 1)
        job.send_signal(next(_SIGNALS))
    return end(job)


def main(launches: int) -> int:
    """Run so many jobs, of each kind in turn; return 1 if any exit code was wrong."""
    from cifar_dist.data.pack import pack

    right: collections.Counter[str] = collections.Counter()
    wrong: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        digits = Path(folder) / "digits"
        pack(str(ROOT / "shards" / "digits.toml"), digits, show=False)
        recipe = write_recipe(Path(folder), digits)
        for number, kind in zip(range(launches), itertools.cycle(CODES), strict=False):
            code, output = launch(kind, recipe, f"launch-{number}")
            (right if code == CODES[kind] else wrong)[kind] += 1
            print(f"{number + 1:4} {kind:8} {code}", flush=True)
            if code != CODES[kind]:
                print(output, flush=True)
    for kind, code in CODES.items():
        print(f"{kind}: {right[kind]} of {right[kind] + wrong[kind]} launches ended with {code}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
