"""``cifar-dist VERB``, also as ``python -m cifar_dist VERB``, so that any launcher can run any verb."""

import sys

from cifar_dist.cli import run
from cifar_dist.launch.parent_death import die_with_launcher
from cifar_dist.process_exit import exit_with


def main() -> None:
    """Run the console script."""
    die_with_launcher()
    exit_with(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
