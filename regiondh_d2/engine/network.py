"""Builds the network of a config; parts that don't fit each other are one line on the config."""

from __future__ import annotations

import os
import traceback

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import nn

from ..modeling.cpu_layers import use_cpu_layers
from ..utils.errors import RegionDHError

__all__ = ["build_network", "learns_from_boxes", "makes_codes"]

# What a misfit becomes in Detectron2's and torch's constructors. A RuntimeError is of the machine,
# such as of its memory.
_MISFITS = (KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError)


def build_network(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``, with layers that are fast on a CPU.

    Detectron2 checks neither that parts fit each other nor most of their settings.

    Raises:
        RegionDHError: the network can't be built; the text has the error and its place, and the
            cause its traceback (``--debug``).
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
    """Whether the config's network needs annotated objects to learn from, as all do that don't say
    otherwise (``learns_from_boxes``)."""
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return getattr(architecture, "learns_from_boxes", True)


def makes_codes(cfg: CfgNode) -> bool:
    """Whether the config's network may give image codes; Detectron2's own ones never do."""
    module = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE).__module__
    return module.split(".")[0] != "detectron2"
