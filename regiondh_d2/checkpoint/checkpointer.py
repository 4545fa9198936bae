"""A checkpointer that refuses a half-loaded backbone, and the fingerprint of a network."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import replace_when_complete
from .conversion import Tensors, WeightsError
from .sources import encoder_weights, require_weights
from .weight_files import is_numeric, read_weights, read_zoo_pickle, save_whole

__all__ = [
    "RegionDHCheckpointer",
    "has_last_checkpoint",
    "model_fingerprint",
    "state_fingerprint",
    "tensors_not_loaded",
]

_TRAINER = "trainer"  # the key of its state in a checkpoint, as in Detectron2
_LAST = "last_checkpoint"  # fvcore's file, which holds the name of the last checkpoint
# Layers of an FPN. No ImageNet weights exist for them.
FPN_LAYERS = ("backbone.fpn_lateral", "backbone.fpn_output", "backbone.top_block")


class RegionDHCheckpointer(DetectionCheckpointer):
    """A :class:`DetectionCheckpointer` that raises an error if the backbone isn't loaded whole.

    Detectron2 only warns, and a detector on a partly random backbone reaches poor numbers that look
    like a fault of the method. Zoo pickles are read without running their code. Checkpoints are
    written whole or not at all; fvcore may leave half of one.

    Attributes:
        whole: whether every tensor of the model must be loaded, as in an evaluation.
    """

    whole = False
    _loading = ""
    _resumes = False  # whether a file must hold the state of a training besides the model

    def save(self, name: str, **kwargs) -> None:
        """As :meth:`fvcore.common.checkpoint.Checkpointer.save`, into a local folder.

        Raises:
            WeightsError, OSError: the file can't be written; an older file of that name stays.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        objects = {key: value.state_dict() for key, value in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {display_name(path)}")
        save_whole(path, {"model": self.model.state_dict(), **objects, **kwargs})
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with replace_when_complete(os.path.join(self.save_dir, _LAST)) as temporary:
            temporary.write_text(last_filename_basename)

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """As :meth:`DetectionCheckpointer.load`.

        Raises:
            WeightsError: there is no such file or source, it is damaged or holds no weights, or the
                weights don't fit the model or aren't finite.
        """
        self._loading = path
        try:
            if path:
                require_weights(path)
            loaded = super().load(path, *args, **kwargs)
            if not path:
                self._complete_encoders(self.model.state_dict())
            return loaded
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it set after a failure

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As in the base class; a resumed checkpoint must fit the whole model and hold the state of
        the trainer, if that was given.

        Raises:
            WeightsError: as :meth:`load`, or the last checkpoint is from another config.
        """
        if not resume or not self.has_checkpoint():
            return super().resume_or_load(path, resume=False)
        whole, self.whole, self._resumes = self.whole, True, _TRAINER in self.checkpointables
        try:
            return self.load(self.get_checkpoint_file())
        except RegionDHError as error:
            raise WeightsError(f"{error}; {self._after_failed_resume()}") from error
        finally:
            self.whole, self._resumes = whole, False

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
            k for k, v in data["model"].items() if not torch.is_tensor(v) and not is_numeric(v)
        ]
        if wrong:
            raise WeightsError(f"{filename} holds no weights: {wrong[0]!r} is no tensor")
        # The record of the training isn't in checkpoints of version 0.1, nor the queue of codes
        # where it is new in the config.
        if self._resumes and _TRAINER not in data:
            raise WeightsError(f"{filename} holds only weights, and no training to resume")
        return self._with_heuristics(data)

    def _with_heuristics(self, data: dict[str, Any]) -> dict[str, Any]:
        """Detectron2's ``FILE?matching_heuristics=True``: names are matched by their ends."""
        url: Any = self._parsed_url_during_load
        queries = parse_qs(url.query)
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
        self._complete_encoders(wrong)
        for name, tensor in self.model.state_dict().items():
            # Such a network gives every image the same code, without a word.
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise WeightsError(
                    f"{self._loading}: {name} holds values that are not finite: the training "
                    "diverged, or the file is damaged; name another checkpoint"
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
                f"are not loaded, and stay as they were initialized, at random: {listed}"
            )
        return incompatible

    def _complete_encoders(self, missing: Iterable[str]) -> None:
        """Load ImageNet weights into the image encoders that the loaded weights lack. Encoders are
        never trained."""
        missing = tuple(missing)
        for i, encoder in enumerate(getattr(self.model, "image_encoders", None) or ()):
            if any(name.startswith(f"image_encoders.{i}.") for name in missing):
                self.logger.info(f"{encoder.name}, an image encoder, gets its ImageNet weights")
                encoder.model.load_state_dict(encoder_weights(encoder.name))


def has_last_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether the folder of a training has a checkpoint to resume from."""
    return os.path.isfile(os.path.join(folder, _LAST))


def _shape(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides)) or "a number"


def tensors_not_loaded(incompatible) -> list[str]:
    """Names of the model's tensors that the weights lack or have in another shape.

    Args:
        incompatible: the result of fvcore's ``Checkpointer._load_model``, which may list a tensor
            of another shape as missing, too.
    """
    misshapen = (k for k, *_ in incompatible.incorrect_shapes)
    names = dict.fromkeys([*incompatible.missing_keys, *misshapen])
    return [k for k in names if not k.endswith("num_batches_tracked")]


def model_fingerprint(model: torch.nn.Module) -> str:
    """sha256 over the names, shapes, types and bytes of a model's state dict, as hex digits."""
    return state_fingerprint(model.state_dict())


def state_fingerprint(state: Tensors) -> str:
    """The :func:`model_fingerprint` of the model with this state dict."""
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
