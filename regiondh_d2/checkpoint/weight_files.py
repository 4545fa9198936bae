"""Reading and writing files of weights, without running code in them."""

import os
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager

from ..utils.file_io import replace_when_complete
from ..utils.marks import WEIGHTS_FORMAT
from ..utils.shortage import refuse_if_short
from .conversion import ConvertedWeights, Tensors, WeightsError

__all__ = ["SCALES", "in_bytes", "read_weights", "read_zoo_pickle", "write_weights"]

# The key of a file, besides ``model``, with the scales by name of the tensors stored in 8 bits.
SCALES = "scales_of_bytes"


class _NumpyUnpickler(pickle.Unpickler):
    """Reads dicts, lists, strings, numbers and numpy arrays, and refuses anything else."""

    # numpy's helpers, from their modules in this version; files may name modules of other versions.
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
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which no weights need")
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
            refuse_if_short(error, memory=False)
            raise WeightsError(f"{path} can't be read as weights: {error}") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds a {type(data).__name__}, not weights by name")
    if not {"model", "__author__"} <= data.keys():  # Caffe2; detectors have "blobs"
        data = data.get("blobs", data)
        model = {k: v for k, v in data.items() if not str(k).endswith("_momentum")}
        data = {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
    if not isinstance(data["model"], dict):
        raise WeightsError(f"{path} holds a {type(data['model']).__name__}, not weights by name")
    wrong = [k for k, v in data["model"].items() if not (isinstance(k, str) and is_numeric(v))]
    if wrong:
        raise WeightsError(f"{path} can't be read as weights: {wrong[0]!r} is no array of numbers")
    return data


def is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.itemsize <= 8


def read_weights(path: str | os.PathLike) -> Any:
    """The content of a file of ``torch.save``, on the CPU and without running its code.

    Tensors of ``model`` that are stored in 8 bits (see :func:`in_bytes`) are expanded to float32.

    Raises:
        OSError: the file can't be opened.
        ShortageError: the machine lacks memory.
        WeightsError: it is damaged, or not a file of ``torch.save``.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict) and SCALES in content:
            scales = content.pop(SCALES)
            model = content["model"]
            content["model"] = model | {k: model[k].float() * scale for k, scale in scales.items()}
        return content
    except OSError:
        raise
    except Exception as error:  # damaged files raise nearly everything
        refuse_if_short(error)
        what = (
            "it is empty" if os.path.getsize(path) == 0 else "damaged, cut off, or another format"
        )
        raise WeightsError(
            f"{path} can't be read as weights: {what}; get it again, or name another file"
        ) from error


def in_bytes(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix or convolution with 8 bits for each number, and a scale for each output.

    Args:
        tensor: float (D, ...).

    Returns:
        ``(numbers, scale)``, int8 of the same shape and float32 (D, 1, ...). Their product differs
        from the tensor by half of the scale at most. The scale is the output's largest magnitude
        divided by 127.
    """
    tensor = tensor.float()
    largest = tensor.abs().amax(dim=tuple(range(1, tensor.dim())), keepdim=True)
    scale = torch.where(largest > 0, largest / 127.0, 1.0)
    return (tensor / scale).round().to(torch.int8), scale


def read_state_dict(path: str) -> Tensors:
    """The tensors of a state dict, which must hold nothing else."""
    weights = read_weights(path)
    if not isinstance(weights, dict) or not all(
        isinstance(k, str) and torch.is_tensor(v) for k, v in weights.items()
    ):
        raise WeightsError(f"{path} holds no state dict: a tensor by each name and nothing else")
    return weights


def write_weights(path: str | os.PathLike, weights: ConvertedWeights) -> None:
    """Write weights as Detectron2 loads them, with our mark, whole or not at all.

    Raises:
        WeightsError, OSError: the file can't be written.
    """
    # The mark comes first, since it must be in the first bytes of the file.
    save_whole(path, {"format": WEIGHTS_FORMAT, "model": weights.model})


def save_whole(path: str | os.PathLike, data: dict) -> None:
    # Into an open file: torch would write the temporary name into it, and no two would be the same.
    with replace_when_complete(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(data, file)
        except RuntimeError as error:  # raised by torch when the disk is full
            raise WeightsError(f"{path} can't be written; is the disk full?") from error


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
