"""Search by image and by object in a few lines, as ``DefaultPredictor`` is for detection."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import nn

from ..checkpoint import model_fingerprint
from ..config import code_settings, parse_settings, recorded_max_pixels
from ..retrieval.images import ImageLoader
from ..retrieval.index_folder import IndexFolder, read_index_folder
from ..retrieval.search import (
    Box,
    Query,
    QueryObject,
    SearchResult,
    name_of_class,
    search_by_class,
    search_index,
)
from ..structures.packed import pack_codes
from ..utils.errors import RegionDHError
from ..utils.file_io import file_sha256
from .command import load_trained_model
from .defaults import build_cfg

__all__ = ["RegionDHSearcher", "encode_boxes", "query_loader"]

# Lines of settings that have a rule of their own here.
_IMAGE_READER, _MAX_PIXELS = "IMAGE_READER", "MODEL.REGION_DH.MAX_PIXELS"

_SEEN = 0.5  # the probability from which on a class is taken to be in an image


class RegionDHSearcher:
    """Codes queries with a model and searches an index of codes that the same model made.

    Example:

    .. code-block:: python

        searcher = RegionDHSearcher.from_folder("index", "config.yaml", ["MODEL.WEIGHTS", "m.pth"])
        for answer in searcher.search("query.jpg", box=(48, 30, 210, 180), topk=5).answers:
            print(answer.distance, answer.file_name, answer.objects[0].box)

    Attributes:
        folder: the index.
        notes: what could not be checked or may spoil distances, a line each.
    """

    def __init__(self, folder: IndexFolder, model: nn.Module, load: ImageLoader):
        """
        Args:
            folder: the index.
            model: a :class:`~regiondh_d2.modeling.meta_arch.RegionDH` in evaluation mode.
            load: reads queries as the indexed images were read.

        Raises:
            IndexFileError: the index is of another model.
            ValueError: the model codes no images.
        """
        if not hasattr(model, "encode_images"):
            raise RegionDHError(f"{type(model).__name__} codes no images; use RegionDH")
        self.folder = folder
        self.notes = folder.check_model(model_fingerprint(model))
        self._model = model
        self._load = load

    @classmethod
    def from_folder(
        cls,
        index_folder: str | os.PathLike,
        config_file: str,
        opts: Sequence[str] = (),
        engine: str | None = None,
        moves: Sequence[str] = (),
    ) -> RegionDHSearcher:
        """A searcher of an index folder with the trained model of a config.

        Args:
            index_folder: written by ``tools/build_index.py``.
            config_file: the one that the images were coded with.
            opts: overrides KEY VALUE, ``MODEL.WEIGHTS`` among them unless the config names the
                trained model.
            engine, moves: as for
                :func:`~regiondh_d2.retrieval.index_folder.read_index_folder`.

        Raises:
            IndexFileError: no index folder, a damaged one, or one of another model.
            FileNotFoundError, KeyError, ValueError: a wrong config, or no trained weights.
        """
        folder = read_index_folder(index_folder, engine, moves)
        return cls.from_cfg(folder, build_cfg(config_file, opts))

    @classmethod
    def from_cfg(cls, folder: IndexFolder, cfg: CfgNode) -> RegionDHSearcher:
        """A searcher of an open index folder with the trained model of a config.

        Raises:
            IndexFileError: the index is of another model.
            WeightsError: there are no trained weights.
        """
        settings = folder.items.settings
        searcher = cls(folder, load_trained_model(cfg), query_loader(settings, cfg))
        searcher.notes += _setting_notes(settings, cfg)
        return searcher

    def search(
        self,
        image: str | os.PathLike,
        box: Sequence[float] | Sequence[Sequence[float]] | None = None,
        topk: int = 10,
        *,
        instance: int | Sequence[int] | None = None,
        class_name: str | None = None,
        all_objects: bool = False,
        rerank: int | None = None,
        rerank_by: str = "activations",
        within: Sequence[str | os.PathLike] = (),
        check_files: bool = True,
    ) -> SearchResult:
        """Search by an image, or by one or several objects in it.

        Args:
            image: file of the query.
            box: an object's box, XYXY in pixels of the file's image (turned as its EXIF orientation
                says), or several of them. What of it is outside the image is cut off.
            topk: how many answers.
            instance: the number of a detection of the model, from 1 by descending score, or
                several of them. With ``box`` too, all objects are searched for at once.
            class_name: restricts the answers to this predicted class.
            all_objects: whether all near objects answer to an object, several of an image, too.
            rerank: how many nearest images to order anew by a finer distance.
            rerank_by: "activations" or "features", which few models have.
            within: folders; restricts the answers to photos in them.
            check_files: whether to look at the files of answers, and to leave out those that have
                gone or changed since they were encoded; the result counts them.

        Returns:
            For an image images, for objects images that hold them, each once, or with
            ``all_objects`` objects; see :mod:`regiondh_d2.retrieval.search`.

        Raises:
            UnreadableImage: the image can't be read.
            IndexFileError: the index lacks the level to search in, has no photo in ``within``, or
                nothing is known of the folders of its photos.
            ValueError: no such box, detection or class, ``rerank`` for objects or by features
                that there are none of, or ``all_objects`` without exactly one object.
        """
        query = self.encode(image, box, instance)
        return search_index(
            self.folder,
            query,
            topk,
            class_name,
            rerank,
            rerank_by,
            all_objects=all_objects,
            within=within,
            check_files=check_files,
        )

    def search_by_class(
        self,
        image: str | os.PathLike,
        topk: int = 10,
        *,
        rerank: int | None = None,
        rerank_by: str = "activations",
        within: Sequence[str | os.PathLike] = (),
        check_files: bool = True,
    ) -> list[SearchResult]:
        """Search by an image, with answers for each class that the model sees in it.

        Args:
            image: file of the query.
            topk: how many answers a class.
            rerank, rerank_by, within, check_files: as of :meth:`search`.

        Returns:
            A result for each class of a probability of at least 0.5, the most probable first: the
            nearest images among those in which an object of the class was detected. None if no
            class is seen.

        Raises:
            UnreadableImage: the image can't be read.
            IndexFileError: the index lacks image codes.
            ValueError: the index has no detected objects, or as of :meth:`search`.
        """
        options = {"within": within, "check_files": check_files}
        return search_by_class(self.folder, self.encode(image), topk, rerank, rerank_by, **options)

    @torch.no_grad()
    def encode(
        self,
        image: str | os.PathLike,
        box: Sequence[float] | Sequence[Sequence[float]] | None = None,
        instance: int | Sequence[int] | None = None,
    ) -> Query:
        """The codes of an image, or of objects in it; arguments as of :meth:`search`."""
        file_name = os.fspath(image)
        inputs = self._load(file_name)
        content = file_sha256(file_name)
        boxes = [] if box is None else _check_boxes(box, file_name, inputs)
        numbers = [] if instance is None else np.atleast_1d(instance).tolist()
        if not boxes and not numbers:
            (output,) = self._model.encode_images([inputs])
            return Query(
                file_name,
                _pack(output["image_code"][None]),
                activation=_to_numpy(output["image_activation"]),
                feature=_to_numpy(output.get("image_feature")),
                classes=self._seen_classes(_to_numpy(output["image_probabilities"])),
                content_sha256=content,
            )
        codes, objects = [], []
        if boxes:
            codes.append(_pack(encode_boxes(self._model, inputs, Boxes(torch.tensor(boxes)))))
            objects += map(QueryObject, boxes)
        if numbers:
            detected = self._detections(inputs, numbers, file_name)
            codes.append(_pack(detected.pred_codes))
            objects += self._query_objects(detected)
        return Query(file_name, np.concatenate(codes), tuple(objects), content_sha256=content)

    def _seen_classes(self, probabilities: np.ndarray) -> tuple[str, ...]:
        """Names of the classes that are seen, of probabilities (C,)."""
        order = np.argsort(-probabilities, kind="stable")
        names = self.folder.items.class_names
        return tuple(name_of_class(names, i) for i in order if probabilities[i] >= _SEEN)

    def _detections(self, inputs: dict, numbers: Sequence[int], file_name: str) -> Instances:
        """The detections of these numbers, boxes in the file's image."""
        (output,) = self._model.inference([inputs])
        instances = output["instances"].to("cpu")
        for number in numbers:
            if not 1 <= number <= len(instances):
                raise RegionDHError(
                    f"{file_name}: there is no detection {number}, they are numbered from 1 to "
                    f"{len(instances)}; give a box instead"
                )
        order = instances.scores.argsort(descending=True, stable=True)
        return instances[order[[number - 1 for number in numbers]]]

    def _query_objects(self, detected: Instances) -> list[QueryObject]:
        names = self.folder.items.class_names
        columns = (detected.pred_boxes.tensor, detected.pred_classes, detected.scores)
        return [
            QueryObject(tuple(box), name_of_class(names, class_id), score)
            for box, class_id, score in zip(*(c.tolist() for c in columns), strict=True)
        ]


def query_loader(settings: str, cfg: CfgNode) -> ImageLoader:
    """Reads a query as the indexed photos were read, whatever the pixel limit of the config is now.

    Args:
        settings: of the index's code set.
        cfg: config of the model.
    """
    load = ImageLoader(cfg)
    load.max_pixels = recorded_max_pixels(settings, load.max_pixels)
    return load


def encode_boxes(model: nn.Module, inputs: dict, boxes: Boxes) -> torch.Tensor:
    """The H1 codes of boxes in an image.

    Args:
        model: a :class:`~regiondh_d2.modeling.meta_arch.RegionDH` in evaluation mode.
        inputs: what an :class:`ImageLoader` makes of the image.
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
    """Boxes cut off at the borders of the image."""
    boxes = np.array(box, dtype=np.float32)
    if not boxes.size or boxes.shape[-1] != 4 or boxes.ndim > 2:
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


def _setting_notes(settings: str, cfg: CfgNode) -> list[str]:
    """Lines if the index was coded with other settings that decide about codes."""
    theirs = parse_settings(settings)
    ours = [line.split(" ", 1) for line in code_settings(cfg).splitlines()]
    differing = [
        (key, value)
        for key, value in ours
        if key not in (_IMAGE_READER, _MAX_PIXELS) and theirs.get(key) != value
    ]
    if not settings:
        return []
    notes = []
    if theirs[_IMAGE_READER] != dict(ours)[_IMAGE_READER]:  # which makes the same of most photos
        notes.append(
            "the index is older than this version's reading of transparent images: "
            "extract_codes.py --resume and build_index.py encode those again"
        )
    if differing:
        key, value = min(differing)
        notes.append(f"the index was coded with another {key} than {value}: distances may be off")
    return notes
