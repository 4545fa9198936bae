"""Region-DH for Detectron2: object detection and deep hashing in one network.

Importing the package registers its components (backbones, box heads, ROI heads,
meta-architectures), its datasets and its weight sources (``regiondh://...``) with Detectron2, so
that a config can name them.
"""

import warnings

with warnings.catch_warnings():
    # Detectron2 and fvcore script functions when they are imported, of which PyTorch complains.
    # What of it is deprecated is for their authors to know.
    for kind in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", kind)
    from . import checkpoint, data, modeling  # noqa: F401  (registration is the point of it)
    from .config import add_regiondh_config

__version__ = "0.1.0"
__all__ = ["add_regiondh_config"]
