"""All exit codes of ranks, launchers and batch scripts.

A process that a signal killed has 128 plus the signal's number, as in a shell.
"""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: stopped on request with a checkpoint; run it again
