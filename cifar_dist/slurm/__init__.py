"""Slurm jobs: submission, checks before training, processes on each node, and requeueing."""
