"""The command ``regiondh``: its parsers, shell completion, ``doctor`` and ``setup-detectron2``.

This package needs only the standard library, so that every ``--help`` is quick and ``doctor`` works
when nothing else does. :mod:`regiondh_d2`, whose import takes seconds and needs Detectron2, is
imported only when a subcommand runs.
"""

# The only place with the version: setup.py reads this line, regiondh_d2 imports it.
__version__ = "0.1.0"

__all__ = ["__version__"]
