"""Slurm jobs: checked, submitted, and requeued."""
