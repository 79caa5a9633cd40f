"""Helpers of the tests, among them four ways to start processes, from the cheapest to the most real.

- :mod:`support.forked_ranks`: the ranks of a job as forks of the test's own interpreter. For tests of ranks.
- :func:`support.running.start`, ``spawn`` and ``train``: commands as forks of an interpreter that has imported torch
  (:mod:`support.warm`). For tests of a command, its exit code or a signal.
- the same with ``fresh=True``: a new interpreter. For tests of the environment or of imports.
- ``launch/local.sh``, accelerate, torchrun or sbatch (``tests/launch``, ``tests/docs``, ``tests/slurm``). For tests of
  launchers.

A test waits for a fact, or makes the run pause where the fact is true (:func:`support.running.pausing`). It never waits
for a duration, and its assertions do not depend on speed. A time limit only ends what hangs (``running.PATIENCE``).
"""
