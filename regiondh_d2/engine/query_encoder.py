"""Encodes images, and objects in them, as queries of a search."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from ..checkpoint import model_fingerprint
from ..config import recorded_max_pixels
from ..retrieval.images import ImageLoader
from ..retrieval.queries import Box, Query, QueryObject, name_of_class
from ..structures.packed import pack_codes
from ..utils.errors import RegionDHError
from ..utils.file_io import file_sha256

__all__ = ["QueryEncoder", "QueryImage", "encode_boxes", "query_loader"]

QueryImage = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray
"""A path, the content of a file, a file open for reading bytes, an image of Pillow's, or an array:
RGB, uint8 (H, W, 3)."""

_SEEN = 0.5  # the least probability of a class that counts as seen in an image


class QueryEncoder:
    """Encodes images, and objects in them, as queries. It needs no index.

    A :class:`~regiondh_d2.retrieval.service.SearchService` answers them.

    Attributes:
        model: the network.
        fingerprint: of the network; an index of another network can't be searched.
        class_names: of the classes that the network sees.
    """

    def __init__(self, model: nn.Module, load: ImageLoader, class_names: Sequence[str] = ()):
        """
        Args:
            model: a :class:`~regiondh_d2.modeling.meta_arch.RegionDH` in evaluation mode.
            load: reads queries in the same way as the indexed images.
            class_names: names of the model's classes; if there are none, numbers are used.

        Raises:
            RegionDHError: the model encodes no images.
        """
        if not hasattr(model, "encode_images"):
            raise RegionDHError(f"{type(model).__name__} encodes no images; use RegionDH")
        self.model: Any = model  # nn.Module doesn't say what a network of ours can
        self.fingerprint = model_fingerprint(model)
        self.class_names = class_names
        self._load = load

    @torch.no_grad()
    def encode(
        self,
        image: QueryImage,
        box: Sequence[float] | Sequence[Sequence[float]] | None = None,
        instance: int | Sequence[int] | None = None,
        *,
        name: str = "the image",
        with_image: bool = False,
    ) -> Query:
        """The codes of an image, or of objects in it.

        Args:
            image: the query.
            box: an object's box, XYXY in pixels of the file's image (turned as its EXIF orientation
                says), or several of them. What of it is outside the image is cut off.
            instance: the number of a detection of the model, from 1 by descending score, or
                several of them. With ``box`` too, the query has all these objects.
            name: what the query is called if it is no path.
            with_image: whether a query of objects gets the code of its image, too.

        Raises:
            UnreadableImage: the image can't be read.
            RegionDHError: it is no image, or there is no such box or detection.
        """
        inputs, content = self._read(image)
        file_name = os.fsdecode(image) if isinstance(image, str | os.PathLike) else name
        boxes = [] if box is None else _check_boxes(box, file_name, inputs)
        numbers = [] if instance is None else np.atleast_1d(instance).tolist()
        if instance is not None and not numbers:
            raise RegionDHError(f"instance is {instance!r}: name a detection, from 1")
        if not boxes and not numbers:
            (output,) = self.model.encode_images([inputs])
            return self._image_query(output, file_name, content)
        codes: list[np.ndarray] = []
        objects: list[QueryObject] = []
        if boxes:
            codes.append(_pack(encode_boxes(self.model, inputs, Boxes(torch.tensor(boxes)))))
            objects += map(QueryObject, boxes)
        if numbers:
            detected = self._detections(inputs, numbers, file_name)
            codes.append(_pack(detected.pred_codes))
            objects += self._query_objects(detected)
        image_code = None
        if with_image:
            (output,) = self.model.encode_images([inputs])
            image_code = _pack(output["image_code"][None])
        return Query(
            file_name,
            np.concatenate(codes),
            tuple(objects),
            content_sha256=content,
            image_code=image_code,
        )

    def encode_all(self, images: Sequence[QueryImage]) -> list[Query]:
        """The codes of several images, one after the other.

        They are not put into batches: padding would make codes depend on the other images. An
        image that is no path is called "image 1" and so on, by its place.

        Raises:
            UnreadableImage, RegionDHError: as :meth:`encode`.
        """
        return [self.encode(image, name=f"image {i}") for i, image in enumerate(images, 1)]

    @torch.no_grad()
    def detect(self, image: QueryImage, min_score: float = 0.0) -> list[QueryObject]:
        """The objects that the network detects in an image, by descending score.

        The first one is what ``instance=1`` of :meth:`encode` names, and so on.

        Args:
            image: as there.
            min_score: the least score, in [0, 1].

        Raises:
            UnreadableImage, RegionDHError: as there.
        """
        if not isinstance(min_score, (int, float, np.floating)) or not 0 <= min_score <= 1:
            raise RegionDHError(f"min_score must be a number from 0 to 1, not {min_score!r}")
        inputs, _ = self._read(image)
        found = self._query_objects(self._all_detections(inputs))
        return [one for one in found if one.score is not None and one.score >= min_score]

    @torch.no_grad()
    def encode_inputs(
        self, inputs: dict, file_name: str, content_sha256: bytes | None = None
    ) -> tuple[Query, Query]:
        """The codes of an image, and of all objects that the network detects in it, at once.

        Args:
            inputs: the image as an :class:`ImageLoader` reads it.
            file_name, content_sha256: of the image, for both queries.

        Returns:
            The query of the image, as :meth:`encode` gives it; and one of its objects, by
            descending score, whose codes have no row if there is none.
        """
        (output,) = self.model.inference([inputs])
        instances = output["instances"].to("cpu")
        instances = instances[instances.scores.argsort(descending=True, stable=True)]
        whole = self._image_query(output, file_name, content_sha256)
        objects = tuple(self._query_objects(instances))
        codes = _pack(instances.pred_codes)
        return whole, Query(file_name, codes, objects, content_sha256=content_sha256)

    @torch.no_grad()
    def encode_boxes(
        self,
        inputs: dict,
        box: Sequence[float] | Sequence[Sequence[float]],
        file_name: str,
        content_sha256: bytes | None = None,
    ) -> Query:
        """The codes of boxes in an image that is read already.

        Args:
            inputs, file_name, content_sha256: as of :meth:`encode_inputs`.
            box: as of :meth:`encode`.

        Raises:
            RegionDHError: a box is empty or outside the image.
        """
        boxes = _check_boxes(box, file_name, inputs)
        codes = _pack(encode_boxes(self.model, inputs, Boxes(torch.tensor(boxes))))
        objects = tuple(map(QueryObject, boxes))
        return Query(file_name, codes, objects, content_sha256=content_sha256)

    def _image_query(self, output: dict, file_name: str, content: bytes | None) -> Query:
        return Query(
            file_name,
            _pack(output["image_code"][None]),
            activation=_to_numpy(output["image_activation"]),
            feature=_to_numpy(output.get("image_feature")),
            classes=self._seen_classes(output["image_probabilities"].float().cpu().numpy()),
            content_sha256=content,
            class_scores=_to_numpy(output.get("image_scores")),
        )

    def _read(self, image: QueryImage) -> tuple[dict, bytes | None]:
        """The network's inputs, and the sha256 of the file where there is one."""
        if isinstance(image, str | os.PathLike):
            file_name = os.fsdecode(image)
            return self._load(file_name), file_sha256(file_name)
        content = image.read() if hasattr(image, "read") else image
        if isinstance(content, str):
            raise RegionDHError("the file of an image was opened as text: open it with mode 'rb'")
        if isinstance(content, bytes):
            return self._load(content), hashlib.sha256(content).digest()
        return self._load.load_picture(content), None

    def _seen_classes(self, probabilities: np.ndarray) -> tuple[str, ...]:
        """Names of the seen classes, from probabilities (C,)."""
        order = np.argsort(-probabilities, kind="stable")
        return tuple(name_of_class(self.class_names, i) for i in order if probabilities[i] >= _SEEN)

    def _detections(self, inputs: dict, numbers: Sequence[int], file_name: str) -> Instances:
        """The detections of these numbers, boxes in the file's image."""
        instances = self._all_detections(inputs)
        for number in numbers:
            is_whole = isinstance(number, int) and not isinstance(number, bool)
            if not is_whole or not 1 <= number <= len(instances):
                raise RegionDHError(
                    f"{file_name}: there is no detection {number!r}, they are numbered from 1 to "
                    f"{len(instances)}; give a box instead"
                )
        return instances[[number - 1 for number in numbers]]

    def _all_detections(self, inputs: dict) -> Instances:
        """All detections by descending score, boxes in the file's image."""
        (output,) = self.model.inference([inputs])
        instances = output["instances"].to("cpu")
        return instances[instances.scores.argsort(descending=True, stable=True)]

    def _query_objects(self, detected: Instances) -> list[QueryObject]:
        columns = (detected.pred_boxes.tensor, detected.pred_classes, detected.scores)
        return [
            QueryObject(tuple(box), name_of_class(self.class_names, class_id), score)
            for box, class_id, score in zip(*(c.tolist() for c in columns), strict=True)
        ]


def query_loader(settings: str, cfg: CfgNode) -> ImageLoader:
    """Reads queries with the pixel limit of the indexed photos, not of the present config.

    Args:
        settings: of the index's code set.
        cfg: config of the model.
    """
    load = ImageLoader(cfg)
    load.max_pixels = recorded_max_pixels(settings, load.max_pixels)
    return load


def encode_boxes(model: Any, inputs: dict, boxes: Boxes) -> torch.Tensor:
    """The H1 codes of boxes in an image.

    Args:
        model: a :class:`~regiondh_d2.modeling.meta_arch.RegionDH` in evaluation mode.
        inputs: the image as an :class:`ImageLoader` reads it.
        boxes: in pixels of the file's image.

    Returns:
        bool (R, K1).
    """
    height, width = inputs["image"].shape[1:]
    given = Instances((height, width), pred_boxes=boxes.clone())
    given.pred_boxes.scale(width / inputs["width"], height / inputs["height"])
    (coded,) = model.inference([inputs], [given], do_postprocess=False)
    return coded.pred_codes


def _to_numpy(values: torch.Tensor | None) -> np.ndarray | None:
    return None if values is None else values.float().cpu().numpy()


def _pack(codes: torch.Tensor) -> np.ndarray:
    return pack_codes(codes.cpu().numpy())


def _check_boxes(box: Sequence, file_name: str, inputs: dict) -> list[Box]:
    """Boxes clipped to the image."""
    try:
        boxes = np.array(box, dtype=np.float32)
    except (TypeError, ValueError):
        boxes = np.empty(0, np.float32)
    if not boxes.size or boxes.shape[-1:] != (4,) or boxes.ndim > 2:
        raise RegionDHError(f"box {box} is not x1, y1, x2, y2, or a list of such boxes")
    size = (inputs["width"], inputs["height"])
    checked = []
    for corners in boxes.reshape(-1, 4):
        x1, y1, x2, y2 = corners.tolist()
        text = ",".join(f"{value:g}" for value in corners)
        if not (np.isfinite(corners).all() and x1 < x2 and y1 < y2):
            raise RegionDHError(
                f"box {text} is empty: x1,y1 is its left top, x2,y2 its right bottom"
            )
        x1, x2 = np.clip([x1, x2], 0, size[0]).tolist()
        y1, y2 = np.clip([y1, y2], 0, size[1]).tolist()
        if x1 >= x2 or y1 >= y2:
            raise RegionDHError(
                f"box {text} is outside {file_name}, which has {size[0]} x {size[1]} pixels"
            )
        checked.append((x1, y1, x2, y2))
    return checked
