"""Renames the tensors of other projects to the full names of our models, one to one.

Every tensor gets a name in the model, is left out by name, or raises an error.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torchvision
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names

from ..utils.errors import RegionDHError

__all__ = [
    "LAYOUTS",
    "RESNETS",
    "VGG16",
    "ConvertedWeights",
    "Tensors",
    "WeightsError",
    "detectron2_zoo_to_ours",
    "efficientnet_lite_to_ours",
    "efficientnet_lite_to_timm",
    "refuse_layout",
    "timm_to_ours",
    "torchvision_to_detectron2",
]

# The prefixes of a ResNet's stages in our models: of those up to res4, and of res5.
LAYOUTS = {
    "c4": ("backbone.", "roi_heads.box_head."),
    "fpn": ("backbone.bottom_up.", "backbone.bottom_up."),
}
VGG16 = "vgg16"
RESNETS = ("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d")

Tensors = Mapping[str, torch.Tensor]


class WeightsError(RegionDHError):
    """Weights are missing, don't fit or can't be fetched. The message says what to do."""


@dataclass(frozen=True)
class ConvertedWeights:
    """Tensors by their names in a model, and the names of the tensors that were left out."""

    model: dict[str, torch.Tensor]
    left_out: list[str]


def _rename(weights: Tensors, rename: Callable[[str], str | None]) -> ConvertedWeights:
    """Rename tensors one to one; None leaves one out."""
    names = {key: rename(key) for key in weights}
    model = {name: weights[key] for key, name in names.items() if name is not None}
    left_out = [key for key, name in names.items() if name is None]
    if len(model) + len(left_out) != len(weights):
        raise WeightsError("two tensors of the weights have the same place in the model")
    return ConvertedWeights(model, left_out)


# --- torchvision ---------------------------------------------------------------------------------


def torchvision_to_detectron2(weights: Tensors, layout: str = "") -> ConvertedWeights:
    """Rename the tensors of a torchvision VGG16, ResNet or ResNeXt to those of a detector.

    Args:
        weights: state dict of the classifier.
        layout: "c4" (res5 in ``Res5BoxHead``) or "fpn" (all below an FPN) for a ResNet; "" for a
            VGG16, whose fc6 and fc7 are always in ``VGGBoxHead``.

    Returns:
        The renamed tensors; the ImageNet classifier and batch counters are left out.

    Raises:
        WeightsError: the names and shapes aren't exactly those of one of these networks, or the
            network doesn't have this layout.
    """
    network = _torchvision_network(weights)
    if network == VGG16:
        refuse_layout(layout, "a VGG16 has only one layout")
        return _rename(weights, _vgg16_name)
    backbone, res5 = _layout(layout)
    return _rename(weights, lambda key: _placed(_resnet_name(key), backbone, res5))


def _layout(layout: str) -> tuple[str, str]:
    if layout not in LAYOUTS:
        raise WeightsError(
            f"layout {layout!r}: the weights of a ResNet need to know where they go; say "
            f"{' or '.join(LAYOUTS)}"
        )
    return LAYOUTS[layout]


def refuse_layout(layout: str, reason: str) -> None:
    if layout:
        raise WeightsError(f"{reason}, so leave the layout {layout!r} out")


def _placed(name: str | None, backbone: str, res5: str) -> str | None:
    """The full name of a Detectron2 ResNet's tensor."""
    if name is None:
        return None
    return (res5 if name.startswith("res5.") else backbone) + name


def _vgg16_name(key: str) -> str | None:
    for prefix, name in (
        ("features.", "backbone.features."),
        ("classifier.0.", "roi_heads.box_head.fc.fc6."),
        ("classifier.3.", "roi_heads.box_head.fc.fc7."),
    ):
        if key.startswith(prefix):
            return name + key[len(prefix) :]
    return None  # classifier.6


def _resnet_name(key: str) -> str | None:
    if key.startswith("fc.") or key.endswith("num_batches_tracked"):
        return None
    key = re.sub(r"^(conv|bn)1\.", r"stem.\g<0>", key)
    key = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key)
    key = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", key)
    return key.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")


@cache
def _torchvision_shapes(network: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = torchvision.models.get_model(network, weights=None)
    return _shapes(model.state_dict())


def _shapes(weights: Tensors) -> dict[str, torch.Size]:
    """Shapes by name, without batch counters (old files have none) and the last layer's."""
    skipped = re.compile(r"fc\.|classifier\.6\.|.*num_batches_tracked$")
    return {k: v.shape for k, v in weights.items() if not skipped.match(k)}


def _torchvision_network(weights: Tensors) -> str:
    """The network that has exactly these tensors."""
    given = _shapes(weights).items()
    differences = {
        name: sorted(k for k, _ in given ^ _torchvision_shapes(name).items())
        for name in (VGG16, *RESNETS)
    }
    network = min(differences, key=lambda name: len(differences[name]))
    if differences[network]:
        raise WeightsError(
            "the weights are of none of torchvision's "
            f"{', '.join(differences)}: the closest, {network}, differs first in "
            f"{differences[network][0]!r}"
        )
    return network


# --- Detectron2's model zoo ----------------------------------------------------------------------


def detectron2_zoo_to_ours(checkpoint: Mapping[str, Any], layout: str = "") -> ConvertedWeights:
    """Rename the tensors of a zoo checkpoint to the full names of our models.

    Args:
        checkpoint: what :func:`~regiondh_d2.checkpoint.read_zoo_pickle` returns: an ImageNet
            ResNet or ResNeXt, or a Faster or Mask R-CNN, C4 or FPN.
        layout: "c4" or "fpn" for an ImageNet network; "" for a detector, whose file shows it.

    Returns:
        The renamed tensors, without layers that depend on the classes, other heads, and buffers
        that a config determines.

    Raises:
        WeightsError: no such network has a tensor of this name, or the layout is missing or not
            needed.
    """
    arrays = {k: torch.from_numpy(np.array(v)) for k, v in checkpoint["model"].items()}
    if checkpoint["__author__"] == "Caffe2":
        try:
            arrays = convert_c2_detectron_names(arrays)[0]
        except (AssertionError, IndexError, KeyError, ValueError) as error:
            raise WeightsError(
                f"the names of the tensors are none of Caffe2's detectors: {error}"
            ) from error
    if any(k.startswith("backbone.") for k in arrays):
        refuse_layout(layout, "a detector's layout is in its file")
        return _rename(arrays, _detector_name)
    backbone, res5 = _layout(layout)
    return _rename(arrays, lambda key: _placed(_zoo_resnet_name(key), backbone, res5))


def _detector_name(key: str) -> str | None:
    if key in ("pixel_mean", "pixel_std") or key.startswith(
        (
            "proposal_generator.anchor_generator.",
            "roi_heads.box_predictor.",
            "roi_heads.mask_head.",
            "roi_heads.keypoint_head.",
        )
    ):
        return None
    if key.startswith("roi_heads.res5."):
        return key.replace("roi_heads.", "roi_heads.box_head.", 1)
    if key.startswith(("backbone.", "proposal_generator.", "roi_heads.box_head.")):
        return key
    raise WeightsError(f"{key!r} is no tensor of a Faster or Mask R-CNN of Detectron2's zoo")


def _zoo_resnet_name(key: str) -> str | None:
    # Caffe2's files have a bias of the first convolution; Detectron2's stem has none.
    classifier = ("fc1000.", "linear.", "stem.fc.")
    if key.startswith(classifier) or key.endswith(("stem.conv1.bias", "num_batches_tracked")):
        return None
    if key.startswith(("stem.", "res2.", "res3.", "res4.", "res5.")):
        return key
    raise WeightsError(f"{key!r} is no tensor of an ImageNet ResNet of Detectron2's zoo")


# --- timm ----------------------------------------------------------------------------------------


def timm_to_ours(weights: Tensors, layout: str = "") -> ConvertedWeights:
    """Rename the tensors of a timm feature extractor to those of ``TimmBackbone``.

    Args:
        weights: state dict of ``timm.create_model(..., features_only=True)``.
        layout: "fpn" if the backbone is below an FPN, else "".
    """
    prefix = LAYOUTS["fpn"][0] if layout == "fpn" else "backbone."
    return _rename(
        weights,
        lambda key: None if key.endswith("num_batches_tracked") else f"{prefix}model.{key}",
    )


# Blocks of each stage of EfficientNet-Lite0 and of Lite2.
_LITE_DEPTHS = ((1, 2, 2, 3, 3, 4, 1), (1, 3, 3, 4, 4, 5, 1))


def efficientnet_lite_to_timm(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of an EfficientNet-Lite checkpoint to timm's names, one to one.

    Args:
        weights: state dict of Lite0 or Lite2, whose blocks are numbered through
            (``_blocks.<n>.``).

    Returns:
        The same tensors under timm's names (``blocks.<stage>.<block>.``), classifier included.

    Raises:
        WeightsError: a name is of no such network.
    """
    blocks = {found[1] for key in weights if (found := re.match(r"_blocks\.(\d+)\.", key))}
    depths = next((d for d in _LITE_DEPTHS if sum(d) == len(blocks)), _LITE_DEPTHS[0])
    places = [(s, b) for s, depth in enumerate(depths) for b in range(depth)]
    top = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    # The first stage has no expansion, so its two convolutions are numbered from the depthwise on.
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    renamed = {}
    for key, tensor in weights.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        try:
            if block:
                stage, index = places[int(block[1])]
                names = other if stage else first
                name = f"blocks.{stage}.{index}.{names[block[2]]}.{block[3]}"
            else:
                layer, leaf = key.split(".")
                name = f"{top[layer]}.{leaf}"
        except (KeyError, IndexError, ValueError):
            raise WeightsError(f"{key!r} is no tensor of an EfficientNet-Lite network") from None
        renamed[name] = tensor
    return renamed


def efficientnet_lite_to_ours(weights: Tensors) -> ConvertedWeights:
    """The backbone and, in ``LightBoxHead``, the last convolution of an EfficientNet-Lite."""

    def name(key: str) -> str | None:
        layer, leaf = key.split(".", 1)
        if layer == "classifier" or leaf.endswith("num_batches_tracked"):
            return None
        heads = {"conv_head": "conv_head", "bn2": "conv_head.norm"}
        if layer in heads:
            return f"roi_heads.box_head.{heads[layer]}.{leaf}"
        return f"backbone.model.{key}"

    return _rename(efficientnet_lite_to_timm(weights), name)
