"""``cifar-dist pack``."""

from __future__ import annotations

import argparse

from cifar_dist.exit_codes import EXIT_DONE
from cifar_dist.verbs.arguments import at_least, expanded_path, fraction, user_path
from cifar_dist.verbs.loading import loading

HELP = "pack a dataset into WebDataset shards and a manifest"
COLLECTIVE = False


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "source",
        type=expanded_path,
        help="name of a dataset (shards/NAME.toml), path of a .toml, archive, folder or file, or FILE.py:FUNCTION",
    )
    verb.add_argument("out", type=user_path, help="folder to write the shards and the manifest to")
    verb.add_argument("--codec", choices=["png", "raw"], default="png", help="how an image is stored (default: png)")
    verb.add_argument(
        "--samples-per-shard", type=at_least(1), default=1000, metavar="N", help="samples in one tar (default: 1000)"
    )
    verb.add_argument(
        "--val-fraction",
        type=fraction,
        metavar="F",
        help="fraction of train to hold out as val (default: the dataset file's, else 0.1 if the source has no val)",
    )
    verb.add_argument("--seed", type=at_least(0), default=0, metavar="S", help="of order and val split (default: 0)")
    verb.add_argument(
        "--size",
        type=at_least(1),
        metavar="N",
        help="resize images to N x N (default: the dataset file's, else no change)",
    )
    verb.add_argument(
        "--skip-unusable",
        action="store_true",
        help="skip images that cannot be decoded or used, and class folders without images, instead of refusing them",
    )


def run(arguments: argparse.Namespace) -> int:
    with loading():
        from cifar_dist.data.pack import pack

    manifest = pack(
        arguments.source,
        arguments.out,
        codec="npy" if arguments.codec == "raw" else "png",
        samples_per_shard=arguments.samples_per_shard,
        val_fraction=arguments.val_fraction,
        seed=arguments.seed,
        size=arguments.size,
        skip_unusable=arguments.skip_unusable,
    )
    print(f"packed {manifest.name} into {arguments.out}: {manifest.shown}")
    return EXIT_DONE
