"""Region-DH for Detectron2: object detection and deep hashing in one network.

Importing the package registers its components (backbones, box heads, ROI heads,
meta-architectures), its datasets and its weight sources (``regiondh://...``) with Detectron2, so
that a config can name them.
"""

import importlib.util
import warnings

from regiondh_cli import __version__

if importlib.util.find_spec("detectron2") is None:
    raise ModuleNotFoundError(
        "Detectron2 isn't installed: `regiondh setup-detectron2` installs it", name="detectron2"
    )

with warnings.catch_warnings():
    # Detectron2 and fvcore script functions on import, and PyTorch warns that this is deprecated.
    # Only their authors can change that.
    for kind in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", kind)
    from . import checkpoint, data, modeling  # noqa: F401  (registration is the point of it)
    from .config import add_regiondh_config

__all__ = ["__version__", "add_regiondh_config"]
