"""The verbs of the command line, one per file: ``HELP``, ``add_arguments(verb)`` and ``run(arguments) -> exit code``.

A verb imports what it needs inside ``run``, so ``--help`` answers at once and typing mistakes are reported before
torch is imported. :mod:`cifar_dist.cli` lists the verbs. A verb that also accepts ``--section.field VALUE`` calls
``verb.set_defaults(settings=[])`` and receives these words there, for :func:`cifar_dist.recipe.load`.
"""
