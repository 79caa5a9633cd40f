"""The loop and what it drives: the trainer, one training step, the range test, and a rehearsal of both."""
