"""The command ``regiondh``: its parsers, shell completion, ``doctor`` and ``setup-detectron2``.

This package needs the standard library alone, so that every ``--help`` is quick and ``doctor``
works where nothing else does. It reaches :mod:`regiondh_d2`, whose import takes seconds and needs
Detectron2, only by the name of the subcommand that runs.
"""

# The one place of the version: setup.py reads this line, regiondh_d2 imports it.
__version__ = "0.1.0"

__all__ = ["__version__"]
