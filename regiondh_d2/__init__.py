"""Region-DH for Detectron2: object detection and deep hashing in one network.

Importing the package registers its components (backbones, box heads, ROI heads,
meta-architectures), its datasets and its weight sources (``regiondh://...``) with Detectron2, so
that a config can name them.
"""

from . import checkpoint, data, modeling  # noqa: F401  (registration is the point of the import)
from .config import add_regiondh_config

__version__ = "0.1.0"
__all__ = ["add_regiondh_config"]
