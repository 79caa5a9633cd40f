"""Slurm jobs: submitted, checked before they train, started on each node, and requeued."""
