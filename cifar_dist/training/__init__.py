"""The loop and what it drives: the trainer, one step, checkpoints, early stopping; the range test; replays of a run."""
