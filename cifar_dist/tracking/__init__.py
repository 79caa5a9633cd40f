"""What a run records: metrics, timeline, environment and console, and mirrors such as W&B, which never stop a run."""
