"""Launching: a config of Accelerate, and the agent that starts it, passes signals on and reports the exit code."""
