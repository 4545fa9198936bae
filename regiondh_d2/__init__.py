"""Region-DH for Detectron2: object detection and deep hashing in one network.

Importing the package registers its components (backbones, box heads, ROI heads,
meta-architectures), its datasets and its weight sources (``regiondh://...``) with Detectron2, so
that a config can name them.
"""

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from .engine.photo_network import PhotoNetwork, load

__all__ = ["PhotoNetwork", "__version__", "add_regiondh_config", "load"]


def __getattr__(name: str) -> Any:
    """What needs more than a training does is imported when it is asked for."""
    if name in ("PhotoNetwork", "load"):
        from .engine import photo_network

        return getattr(photo_network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
