"""Builds the network of a config; parts that don't fit together give a one-line error."""

from __future__ import annotations

import os
import traceback

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import nn

from ..modeling.cpu_layers import use_cpu_layers
from ..utils.errors import RegionDHError

__all__ = ["build_network", "learns_from_boxes", "makes_codes"]

# Raised by Detectron2's and torch's constructors for parts that don't fit. A RuntimeError would
# mean a problem of the machine, such as memory.
_MISFITS = (KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError)


def build_network(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``, with layers that are fast on a CPU.

    Detectron2 doesn't check that parts fit together, nor most of their settings.

    Raises:
        RegionDHError: the network can't be built; the message has the error and its place;
            ``--debug`` shows the traceback of the cause.
    """
    try:
        network = build_model(cfg)
    except RegionDHError:
        raise
    except _MISFITS as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        model = cfg.MODEL
        what = " ".join(str(error).split())
        raise RegionDHError(
            f"the config's network can't be built: {type(error).__name__}{what and f': {what}'} in "
            f"{os.path.basename(place.filename)}, {place.name}; its parts don't fit each other or "
            f"their settings: MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE}, BACKBONE.NAME "
            f"{model.BACKBONE.NAME}, PROPOSAL_GENERATOR.NAME {model.PROPOSAL_GENERATOR.NAME}, "
            f"ROI_HEADS.NAME {model.ROI_HEADS.NAME}, ROI_HEADS.IN_FEATURES "
            f"{model.ROI_HEADS.IN_FEATURES} (--debug shows more)"
        ) from error
    use_cpu_layers(network)
    return network


def learns_from_boxes(cfg: CfgNode) -> bool:
    """Whether the config's network learns from boxes: its ``learns_from_boxes``, True by
    default."""
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return getattr(architecture, "learns_from_boxes", True)


def makes_codes(cfg: CfgNode) -> bool:
    """Whether the config's network may make image codes; Detectron2's own networks never do."""
    module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).__module__
    return module.split(".")[0] != "detectron2"
