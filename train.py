"""Train a recipe, in one process or started by accelerate launch or torchrun:

    python train.py demo
    accelerate launch --config_file launch/cpu.yaml train.py demo --run.name first --optim.lr 0.05
    python train.py demo --help        # the common settings, with the recipe's values; --help optim: all of a section

srun alone starts processes that do not join; on a cluster: sbatch [slurm options] slurm/train.sbatch demo

Running it again with the same --run.name resumes. Exit codes: 0 done; 2 invalid input; 69 another process is
training the run; 75 stopped on request with a checkpoint, run it again; 124 a rank hung; anything else failed.
"""

import sys

from cifar_dist.cli import run
from cifar_dist.process_exit import exit_with

if __name__ == "__main__":
    exit_with(lambda: run(["train", *sys.argv[1:]]))
