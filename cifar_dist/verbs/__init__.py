"""One verb of the command line a file: ``HELP``, ``add_arguments(verb)`` and ``run(arguments)``, the exit code.

A verb imports what it needs when it runs, so that ``--help`` answers at once and a typo is found before torch is
loaded. :mod:`cifar_dist.cli` lists them. One that also takes a recipe's ``--section.field VALUE`` says
``verb.set_defaults(settings=[])`` and finds these words there, for :func:`cifar_dist.recipe.load`.
"""
