"""Checkpoints, weight sources and the networks that come with the package.

Importing it lets Detectron2 load the names ``regiondh://...``.
"""

from .checkpointer import (
    RegionDHCheckpointer,
    has_last_checkpoint,
    model_fingerprint,
    state_fingerprint,
    tensors_not_loaded,
)
from .conversion import WeightsError
from .sources import SOURCES, convert_weights, require_weights
from .weight_files import read_weights, read_zoo_pickle, write_weights

__all__ = [
    "SOURCES",
    "RegionDHCheckpointer",
    "WeightsError",
    "convert_weights",
    "has_last_checkpoint",
    "model_fingerprint",
    "read_weights",
    "read_zoo_pickle",
    "require_weights",
    "state_fingerprint",
    "tensors_not_loaded",
    "write_weights",
]
