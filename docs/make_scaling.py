"""Write the tables of docs/scaling.md, from the networks and recipes themselves: python docs/make_scaling.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from cifar_dist import recipe
from cifar_dist.doctor.network import connections
from cifar_dist.formatting import size
from cifar_dist.models import build
from cifar_dist.models.summary import summarize
from cifar_dist.tables import markdown

DOCUMENT = Path(__file__).with_name("scaling.md")
RECIPES = ("speedrun-94", "custom-resnet", "se-resnet-randaugment")
RANKS = (8, 64, 512)
TRAIN_SAMPLES = 50_000  # of CIFAR-10
FLOPS = 150e12  # sustained by one GPU in bf16: a seventh of an H100's peak, for 32 x 32 pixels
LAUNCH_SECONDS = 4e-6  # that a kernel takes from the host
LAUNCHES = {"speedrun-94": 170, "custom-resnet": 175, "se-resnet-randaugment": 564}  # docs/decisions.md, one step
BANDWIDTH = {8: 300e9, 64: 40e9, 512: 40e9}  # bytes/s of a GPU: NVLink in a node, one 400 Gb/s port for each GPU
LATENCY_SECONDS = {8: 20e-6, 64: 60e-6, 512: 120e-6}  # of an all-reduce of a few bytes


def tables() -> dict[str, str]:
    """Return each table by its name."""
    head = (
        *("recipe", "parameters", "GPUs", "images per GPU", "gradients sent", "all-reduce", "compute", "launches"),
        *("step", "images/s", "of ideal"),
    )
    rows = [row for name in RECIPES for row in _steps(name)]
    jobs = [
        (
            *(str(ranks), f"{_decision():,} B", f"{_answer(ranks):,} B", f"{connections(ranks):,}"),
            *(str(min(ranks, 20)), f"{-(-TRAIN_SAMPLES // ranks):,}"),
        )
        for ranks in RANKS
    ]
    job_head = (
        "ranks",
        "a decision",
        "an answer of all",
        "open files of rank 0",
        "ranks that evaluate",
        "samples a rank",
    )
    return {
        "steps": markdown(head, rows, numbers=head[1:]),
        "jobs": markdown(job_head, jobs, numbers=job_head),
    }


def _steps(name: str) -> Iterator[tuple[str, ...]]:
    config = recipe.load(name, [])
    with torch.device("meta"):  # on a CPU some networks compute less than on a GPU
        model = build(config.model.name, classes=10, channels=3, options=config.model.options)
    summary = summarize(model, (32, 32, 3))
    gradients, batch = 4 * summary.parameters, config.train.batch_size
    first = 0.0
    for ranks in (ranks for ranks in RANKS if ranks <= batch):
        images = -(-batch // ranks)  # a batch that does not divide is padded
        sent = 2 * (ranks - 1) / ranks * gradients
        network = LATENCY_SECONDS[ranks] + sent / BANDWIDTH[ranks]
        compute = 6 * summary.multiply_adds * images / FLOPS
        launch = LAUNCHES[name] * LAUNCH_SECONDS
        step = max(compute, launch) + network
        first = first or step * ranks
        yield (
            *(name, f"{summary.parameters:,}", str(ranks), f"{images:g}", size(sent), *map(_ms, (network, compute))),
            *(_ms(launch), _ms(step), f"{batch / step:,.0f}", f"{first / (step * ranks):.0%}"),
        )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def _decision() -> int:
    return 105  # measured: python -m support.many_ranks 8 64 512


def _answer(ranks: int) -> int:
    return 12 + 12 * ranks  # measured on 8 and 64 ranks


def up_to_date(document: str) -> str:
    """Return the page with its tables as they are now.

    Raises:
        ValueError: the page lacks the marks of a table.
    """
    for name, table in tables().items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.S)
        if not (old := pattern.search(document)):
            raise ValueError(
                f"{DOCUMENT.name} has no table {name}; put <!-- table: {name} --> and <!-- end --> into it"
            )
        document = f"{document[: old.end(1)]}{table}{document[old.start(2) :]}"
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(up_to_date(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
