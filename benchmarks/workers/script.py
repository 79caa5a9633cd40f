"""A worker that runs a speedrun script of others on a CPU: airbench94_muon.py, or hiverge's cifar10_speedrun.py.

    python benchmarks/workers/script.py PATH DATA [--whole] [--precision bf16|fp32] [--compile]
        [--threads N]

PATH is the script as its authors publish it, and DATA a folder with train.pt and test.pt. Its code runs as it is, but
for what names a GPU: see :data:`FOR_A_CPU`. It trains epochs of all images of DATA; without --whole
each step waits for a request and answers with its seconds, from the first look at the data to the update. With --whole
each request is a seed, and is answered by a whole training: its seconds as the script counts them, the accuracy that it
finds, and that of the trainer's own evaluation.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from workers import Requests

FOR_A_CPU = (
    (r'torch\.device\("cuda"\)', 'torch.device("cpu")'),
    (r'device="cuda"', 'device="cpu"'),
    (r"\.half\(\)", ".to(lower)"),
    (r"torch\.half\b", "lower"),
    (r"\.pin_memory\(\)", ""),
    (r"torch\.cuda\.Event\(enable_timing=True\)", "Moment()"),
    (r"torch\.cuda\.synchronize\(\)", "None"),
    (r"torch\.compile\b", "compiled"),
)
"""What is replaced in a script: (regular expression, text)."""


class NoMoreRequestsError(Exception):
    """Ends a script's training."""


class Moment:
    """A CUDA event on a CPU: a moment on the clock."""

    _at = 0.0

    def record(self) -> None:
        self._at = time.perf_counter()

    def elapsed_time(self, end: Moment) -> float:
        """Milliseconds until ``end``."""
        return 1e3 * (end._at - self._at)


class Script(ModuleType):
    """What is read and replaced in a script of either author."""

    CifarLoader: type
    CifarNet: Callable[[], nn.Module]
    CIFAR_MEAN: Tensor
    CIFAR_STD: Tensor
    main: Callable[[int, nn.Module], object]
    print_training_details: Callable[[dict[str, float], bool], None]


def leave_uncompiled(function: Callable[..., object] | None = None, **options: object) -> object:
    """A decorator like ``torch.compile`` that compiles nothing."""
    return leave_uncompiled if function is None else function


def compile_for_a_cpu(function: Callable[..., object] | None = None, **options: object) -> object:
    """``torch.compile`` without the modes, which are those of a GPU."""
    return compile_for_a_cpu if function is None else torch.compile(function)


def load(path: Path, lower: torch.dtype, *, compiled: bool) -> Script:
    """Execute a script up to its main part, with ``lower`` in place of float16.

    Raises:
        SystemExit: it names a GPU in another way than the known scripts do.
    """
    source = path.read_text(encoding="utf-8").partition('if __name__ == "__main__":')[0]
    for pattern, text in FOR_A_CPU:
        source = re.sub(pattern, text, source)
    if left := re.search(r".*cuda.*", source):
        sys.exit(f"{path}: no replacement on a CPU for: {left[0].strip()}")
    script = Script(path.stem)
    compiler = compile_for_a_cpu if compiled else leave_uncompiled
    vars(script).update(lower=lower, Moment=Moment, compiled=compiler)
    sys.argv = [str(path)]  # the script reads its own text
    exec(compile(source, str(path), "exec"), vars(script))
    return script


def read_from(script: Script, data: str, requests: Requests | None) -> None:
    """Let the script's loader read ``data``; with ``requests``, each batch of training waits for one."""

    class Loader(script.CifarLoader):  # type: ignore[misc, name-defined]
        def __init__(self, path: str, *args: object, **options: object) -> None:
            super().__init__(data, *args, **options)

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            batches = super().__iter__()
            if requests is None:
                yield from batches
                return
            for _ in range(len(self)):
                if next(requests, None) is None:
                    raise NoMoreRequestsError
                with requests.timed():
                    yield next(batches)

    script.CifarLoader = Loader


def build_network(script: Script, *, compiled: bool) -> nn.Module:
    """Build the script's network as its main part does."""
    network: nn.Module = script.CifarNet().to(memory_format=torch.channels_last)
    if compiled:
        network.compile()
    return network


def train(script: Script, network: nn.Module, data: Path, seed: int, lower: torch.dtype) -> dict[str, float]:
    """Train once; return the script's ``seconds`` and ``own_accuracy``, and the ``accuracy`` of our evaluation."""
    said: dict[str, float] = {}

    def keep(variables: dict[str, float], is_final_entry: bool) -> None:
        said.update({key: variables[key] for key in ("time_seconds", "val_acc", "tta_val_acc") if key in variables})
        print(f"{Path(sys.argv[0]).name}, seed {seed}: {said}", file=sys.stderr, flush=True)

    script.print_training_details = keep
    torch.manual_seed(seed)
    script.main(1 + seed, network)
    accuracy = evaluate(script, network, data, lower)
    return {"seconds": said["time_seconds"], "own_accuracy": said["tta_val_acc"], "accuracy": accuracy}


def evaluate(script: Script, network: nn.Module, data: Path, lower: torch.dtype) -> float:
    """Accuracy on the test images with the trainer's ``translate`` views, a fraction."""
    from cifar_dist.config import AugmentConfig
    from cifar_dist.data.normalize import Normalize
    from cifar_dist.distributed.precision import Precision
    from cifar_dist.distributed.ranks import Ranks
    from cifar_dist.distributed.wrapped_model import InferenceModel
    from cifar_dist.evaluation.predict import predict
    from cifar_dist.evaluation.views import make_views

    test = torch.load(data / "test.pt")
    device = torch.device("cpu")
    mean, std = (tuple(values.tolist()) for values in (script.CIFAR_MEAN.float(), script.CIFAR_STD.float()))
    views = make_views("translate", AugmentConfig(), 0, mean, Normalize(mean, std, device, True))

    class Lowered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images.to(lower))
            return logits

    model = InferenceModel(Lowered(), Ranks(0, 1, device, first_of_node=True), Precision("no"))
    images = test["images"]
    return predict(
        model, lambda parts: (images[ids] for ids in parts), len(images), views, batch_size=500, labels=test["labels"]
    ).accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    lower = {"bf16": torch.bfloat16, "fp32": torch.float32}[asked.precision]
    requests = Requests()
    script = load(asked.path, lower, compiled=asked.compile)
    read_from(script, str(asked.data), None if asked.whole else requests)
    network = build_network(script, compiled=asked.compile)
    if asked.whole:
        for seed in requests:
            requests.answer(train(script, network, asked.data, seed, lower))
        return
    script.print_training_details = lambda variables, is_final_entry: None
    try:
        script.main(1, network)
    except NoMoreRequestsError:
        pass


if __name__ == "__main__":
    main()
