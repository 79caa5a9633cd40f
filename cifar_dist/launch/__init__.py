"""Launching: Accelerate configs, and the agent that starts a job, forwards signals and reports the exit code."""
