"""Helpers of the tests, among them four ways to start processes, from the cheapest to the most real.

- :mod:`support.forked_ranks`: the ranks of a job as forks of the test's own interpreter. Where the ranks are tested.
- :func:`support.running.start`, ``spawn`` and ``train``: commands as forks of an interpreter that has imported torch
  (:mod:`support.warm`). Where a command, its exit code or a signal is tested.
- the same with ``fresh=True``: a new interpreter. Where the environment or an import is tested.
- ``launch/local.sh``, accelerate, torchrun or sbatch (``tests/launch``, ``tests/docs``, ``tests/slurm``). Where the
  launcher is tested.

A test waits for a fact, or makes the run pause where the fact is true (:func:`support.running.pausing`). It never waits
for a duration, and asserts nothing that speed decides. A time limit only ends what hangs (``running.PATIENCE``).
"""
