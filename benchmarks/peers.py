"""Speedrun-94 against the scripts that it competes with, on the CPU: airbench94's with Muon, and hiverge's.

    python benchmarks/peers.py [--airbench PATH] [--hiverge PATH] [--data shards/cifar10] [--turns 5]
        [--precision bf16|fp32] [--compile] [--threads N]
        [--train --seeds N [--recipe NAME] [--section.field VALUE ...]]

PATH is airbench94_muon.py of github.com/KellerJordan/cifar10-airbench, or cifar10_speedrun.py of
github.com/hiverge/cifar10-speedrun; each runs as it is, but for what names a GPU (benchmarks/workers/script.py), in a
process of its own. A step of ours is the product's, on as many images as the script takes. Both include the data and
its augmentation. The scripts stop to learn the bias of their whitening layer early, which makes a step cheaper; their
eight epochs have one batch each here, so that the counted steps have as large a share of both kinds as a training has.

With --train all train to the end for each seed, on the same files: each in 6 to 20 minutes on two cores. Ours is
cpu-quick, or another recipe that reaches the scripts' accuracy, in processes of one thread and in its own precision,
unless that of the scripts is fp32. Times are those of training and of the final evaluation; accuracies are those of the
trainer's own evaluation with six views; cpu-quick evaluates one only where the network is sure.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from comparison import Comparison, record, take_turns
from gpu.airbench_data import write
from gpu.speedrun import measured
from workers import ROOT, Workers

from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.precision import is_bf16_fast
from cifar_dist.formatting import percent
from cifar_dist.launch.parent_death import signal_when_this_ends
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking.environment import read_facts

OURS = "speedrun-94"
PRECISIONS = {"bf16": "bf16", "fp32": "no"}
BATCH_SIZE = re.compile(r"^    (?:training_)?batch_size = (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Way:
    """How the scripts and our recipe compute.

    Attributes:
        precision: bf16 or fp32, theirs in place of float16.
        compiled: whether they compile what they compile on a GPU.
        threads: of each; in whole trainings of ours, processes of one thread.
    """

    precision: str
    compiled: bool
    threads: int

    @property
    def options(self) -> list[str]:
        """Those of benchmarks/workers/script.py."""
        compiled = ["--compile"] if self.compiled else []
        return ["--precision", self.precision, "--threads", str(self.threads), *compiled]

    @property
    def settings(self) -> list[str]:
        """The same for a step of our recipe."""
        return [*self.precision_settings, "--train.threads", str(self.threads)]

    @property
    def precision_settings(self) -> list[str]:
        return ["--train.precision", PRECISIONS[self.precision]]

    def __str__(self) -> str:
        return f"{self.precision}{', compiled' if self.compiled else ''}"


@dataclass(frozen=True)
class Training:
    """What a training took and reached.

    Attributes:
        seconds: of all steps and of the final evaluation, as its script counts them.
        own_accuracy: of the script's own evaluation, a fraction.
        accuracy: of the trainer's evaluation with the views of ``translate``, a fraction.
    """

    seconds: float
    own_accuracy: float
    accuracy: float


def read_batch_size(script: Path) -> int:
    """The number of images in a step of a script.

    Raises:
        SystemExit: the script cannot be read, or does not say.
    """
    try:
        found = BATCH_SIZE.search(script.read_text(encoding="utf-8"))
    except OSError as error:
        sys.exit(f"peers: cannot read {script}: {error.strerror}; give the path of the script")
    if found is None:
        sys.exit(f"peers: {script} has no line 'batch_size = N'; give airbench94_muon.py or cifar10_speedrun.py")
    return int(found[1])


def compare_steps(name: str, script: Path, way: Way, data: str, turns: int) -> Comparison:
    """Compare the time of a training step."""
    images = read_batch_size(script)
    ours = ["recipe.py", OURS, "--data.path", data, "--train.batch_size", str(images)]
    ours += way.settings
    with (
        tempfile.TemporaryDirectory() as folder,
        Workers(["script.py", str(script), str(write(data, Path(folder), images)), *way.options]) as theirs,
        Workers(ours) as own,
    ):
        what = f"a training step of {OURS}, {images} images"
        return take_turns(what, f"{name}, {way}", "s", own.step, theirs.step, turns)


def compare_trainings(
    scripts: Mapping[str, Path], way: Way, data: str, seeds: int, words: Sequence[str]
) -> list[Comparison]:
    """Compare whole trainings with seeds 0, 1, ... of the scripts and of the recipe and settings in ``words``.

    Returns:
        One comparison for each script, with the mean accuracies in its names.
    """
    recipe = words[0]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = str(write(data, Path(folder)))
        workers = {
            name: stack.enter_context(Workers(["script.py", str(script), files, "--whole", *way.options]))
            for name, script in scripts.items()
        }
        found: dict[str, list[Training]] = {name: [] for name in (recipe, *workers)}
        for seed in range(seeds):
            for name in list(found) if seed % 2 else reversed(list(found)):
                if name == recipe:
                    one = train_ours(words, seed, data, folder, way)
                else:
                    (answer,) = workers[name].ask(seed)
                    assert isinstance(answer, dict), "the facts of a training"
                    one = Training(**answer)
                found[name].append(one)
                print(f"{name}, seed {seed}: {one}", flush=True)
        computed_in = read_facts(RunFolder(Path(folder, _name_of_ours(0))).environment).precision
    seconds = {name: [one.seconds for one in them] for name, them in found.items()}
    means = {name: percent(statistics.fmean(one.accuracy for one in them)) for name, them in found.items()}
    what = f"a training of {' '.join(words)}, {computed_in}, to {means[recipe]}"
    return [
        Comparison(what, f"{name}, {way}, to {means[name]}", "s", seconds[recipe], seconds[name]) for name in workers
    ]


def train_ours(words: Sequence[str], seed: int, data: str, folder: str, way: Way) -> Training:
    """Train a recipe with settings, which ``words`` are, in processes of its own."""
    name = _name_of_ours(seed)
    launch = ["launch", "cpu", f"--num_processes={way.threads}", *words, "--data.path", data, "--train.threads", "1"]
    launch += ["--run.dir", folder, "--run.name", name, "--run.seed", str(seed)]
    launch += way.precision_settings if way.precision == "fp32" else []
    command = [sys.executable, "-m", "cifar_dist", *launch]
    bound = signal_when_this_ends(signal.SIGKILL)
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr, preexec_fn=bound)
    seconds, _, accuracy = measured(Path(folder, name))
    return Training(seconds, accuracy, accuracy)


def _name_of_ours(seed: int) -> str:
    return f"ours.{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--airbench", type=Path, metavar="PATH")
    parser.add_argument("--hiverge", type=Path, metavar="PATH")
    parser.add_argument("--data", default="shards/cifar10")
    parser.add_argument("--turns", type=int, default=5, choices=range(1, 7))
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16" if is_bf16_fast(cpu=True) else "fp32")
    parser.add_argument("--compile", action="store_true", help="compile the scripts as they do on a GPU")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each")
    parser.add_argument("--train", action="store_true", help="train to the end")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each with --train")
    parser.add_argument("--recipe", default="cpu-quick", help="ours with --train (default: cpu-quick)")
    asked, settings = parser.parse_known_args()
    if settings and not asked.train:
        parser.error(f"{' '.join(settings)}: settings of the recipe have an effect only with --train")
    given = {"airbench94": asked.airbench, "hiverge's speedrun": asked.hiverge}
    scripts = {name: path.resolve() for name, path in given.items() if path is not None}
    if not scripts:
        parser.error("give --airbench PATH, --hiverge PATH or both, scripts that you have fetched")
    way = Way(asked.precision, asked.compile, asked.threads)
    data = str(Path(asked.data).resolve())
    if asked.train:
        words = [asked.recipe, *settings]
        comparisons = compare_trainings(scripts, way, data, asked.seeds, words)
        note = f"{Manifest.load(data).name}; accuracies are means of {asked.seeds} seeds"
        record(__file__, comparisons, note, name="peers_trainings")
    else:
        record(__file__, [compare_steps(name, path, way, data, asked.turns) for name, path in scripts.items()])


if __name__ == "__main__":
    main()
