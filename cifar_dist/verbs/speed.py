"""``cifar-dist speed RUN``."""

from __future__ import annotations

import argparse

from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import add_checkpoint, add_run, at_least
from cifar_dist.verbs.loading import loading

HELP = "time a run's network as it is, traced and scripted: mean, median and 95th percentile"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_run(verb)
    add_checkpoint(verb)
    verb.add_argument("--batch", type=at_least(1), default=1, metavar="N", help="images in a pass (default: 1)")
    verb.add_argument("--passes", type=at_least(1), default=100, metavar="N", help="timed passes (default: 100)")


def run(arguments: argparse.Namespace) -> int:
    with loading():
        import torch

        from cifar_dist.distributed.arithmetic import describe_arithmetic, set_arithmetic
        from cifar_dist.distributed.out_of_memory import explained
        from cifar_dist.evaluation.speed import make_forms, time_forms
        from cifar_dist.evaluation.trained import build_trained, open_trained
        from cifar_dist.run_folder import find_run
        from cifar_dist.tables import markdown
        from cifar_dist.terminal.progress import progress

    trained = open_trained(find_run(arguments.run, checkpoint="with --checkpoint"), arguments.checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_arithmetic(trained.config.train)
    arithmetic = describe_arithmetic(trained.config.train, "float32", cpu=device.type == "cpu")
    model = build_trained(trained).to(device).eval()
    height, width, channels = trained.trained_on.shape
    with explained(lambda: f"with --batch {arguments.batch}; use a smaller one"):
        images = torch.randn(arguments.batch, channels, height, width, generator=torch.Generator().manual_seed(0))
        images = images.to(device)
        forms, failures = make_forms(model, images)
        with progress("timing", arguments.passes, "passes") as advance:
            timings = time_forms(forms, images, arguments.passes, advance)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(
        f"{trained.run.name}, {trained.weights.name}: batches of {arguments.batch}, images of "
        f"{height}x{width}x{channels}, {arithmetic}, {arguments.passes} passes of each in turn, {where}\n"
    )
    base = timings["base"].p50
    rows = [
        (
            name,
            *(f"{1000 * seconds:.3f}" for seconds in (timing.mean, timing.p50, timing.p95)),
            f"{base / timing.p50:.2f}",
            f"{timing.difference:.1e}",
        )
        for name, timing in timings.items()
    ]
    numbers = ["mean ms", "p50 ms", "p95 ms", "times as fast", "difference"]
    print(markdown(["form", *numbers], rows, numbers), end="")
    for name, why in failures.items():
        print(f"{name}: this network cannot be {name}: {why}")
    return EXIT_DONE
