"""What test-time augmentation costs: predictions averaged over views against as many plain predictions.

    python benchmarks/views.py [--images 2000] [--turns 5] [MODEL]

MODEL is a registered name, by default speed-net. Both predict the same random 32x32 images, in batches of 500, on the
GPU where there is one. A ratio of 1 means that views cost their forward passes and nothing more.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import torch
from comparison import Comparison, record, take_turns
from torch import Tensor

from cifar_dist.config import AugmentConfig
from cifar_dist.data.normalize import Normalize
from cifar_dist.distributed.precision import Precision
from cifar_dist.distributed.ranks import Ranks
from cifar_dist.distributed.wrapped_model import InferenceModel
from cifar_dist.evaluation.predict import predict
from cifar_dist.evaluation.views import make_views
from cifar_dist.models import build

BATCH = 500
VIEWS = {"mirror": 2, "translate": 6, "16": 16}  # name of the test-time augmentation: its forward passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="speed-net")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    images = torch.randint(0, 256, (asked.images, 32, 32, 3), dtype=torch.uint8, device=device)
    ranks = Ranks(0, 1, device, first_of_node=True)
    precision = Precision.resolve("no", cpu=device.type == "cpu", scales_loss=True)
    network = build(asked.model, classes=10, options={}).to(device).to(memory_format=torch.channels_last)
    model = InferenceModel(network, ranks, precision)
    mean = (0.5, 0.5, 0.5)
    normalize = Normalize(mean, mean, device, True)

    def stream(batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return (images[ids] for ids in batches)

    def seconds(tta: str, times: int = 1) -> float:
        views = make_views(tta, AugmentConfig(), 0, mean, normalize)
        begin = time.perf_counter()
        for _ in range(times):
            predict(model, stream, asked.images, views, batch_size=BATCH)
        return time.perf_counter() - begin

    def compare(tta: str, passes: int) -> Comparison:
        what = (
            f"predictions of {asked.model} with {tta} views"
            if tta.isdigit()
            else f"predictions of {asked.model}, {tta}"
        )
        peer = f"{passes} plain predictions"
        return take_turns(what, peer, "s", lambda: seconds(tta), lambda: seconds("0", passes), asked.turns)

    record(__file__, [compare(tta, passes) for tta, passes in VIEWS.items()])


if __name__ == "__main__":
    main()
