"""Search by image and by object in a few lines, as ``DefaultPredictor`` is for detection."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from torch import nn

from ..config import code_settings, parse_settings
from ..retrieval.queries import Query, SearchOptions, SearchResult
from ..retrieval.service import SearchService
from ..utils.errors import RegionDHError
from .command import load_trained_model
from .defaults import build_cfg
from .query_encoder import QueryEncoder, QueryImage, query_loader

__all__ = ["RegionDHSearcher"]

# Settings with their own rules here.
_IMAGE_READER, _MAX_PIXELS = "IMAGE_READER", "MODEL.REGION_DH.MAX_PIXELS"


class RegionDHSearcher:
    """Encodes queries with a model and searches an index of codes that the same model made.

    Example:

    .. code-block:: python

        searcher = RegionDHSearcher.from_folder("index", "config.yaml", ["MODEL.WEIGHTS", "m.pth"])
        for answer in searcher.search("query.jpg", box=(48, 30, 210, 180), topk=5).answers:
            print(answer.distance, answer.file_name, answer.objects[0].box)

    Attributes:
        service: searches the index.
        encoder: encodes queries.
        notes: warnings about checks that weren't possible and settings that may change distances.
    """

    def __init__(self, service: SearchService, encoder: QueryEncoder):
        """
        Raises:
            IndexFileError: the index is of another model.
        """
        self.service = service
        self.encoder = encoder
        self.notes = service.folder.check_model(encoder.fingerprint)

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
            index_folder: written by ``regiondh build-index``.
            config_file: the config with which the images were encoded.
            opts: overrides KEY VALUE, ``MODEL.WEIGHTS`` among them unless the config names the
                trained model.
            engine, moves: as for
                :func:`~regiondh_d2.retrieval.index_folder.read_index_folder`.

        Raises:
            IndexFileError: no index folder, a damaged one, or one of another model.
            FileNotFoundError, KeyError, ValueError: a wrong config, or no trained weights.
        """
        service = SearchService.open(index_folder, engine, moves)
        return cls.from_cfg(service, build_cfg(config_file, opts))

    @classmethod
    def from_cfg(cls, service: SearchService, cfg: CfgNode) -> RegionDHSearcher:
        """A searcher of an open index with the trained model of a config.

        Raises:
            IndexFileError: the index is of another model.
            WeightsError: there are no trained weights.
        """
        return cls.from_model(service, cfg, load_trained_model(cfg))

    @classmethod
    def from_model(cls, service: SearchService, cfg: CfgNode, model: nn.Module) -> RegionDHSearcher:
        """A searcher of an open index with a network that is there already.

        Raises:
            IndexFileError: the index is of another model.
        """
        items = service.folder.items
        load = query_loader(items.settings, cfg)
        searcher = cls(service, QueryEncoder(model, load, items.class_names))
        searcher.notes += _setting_notes(items.settings, cfg)
        return searcher

    def search(
        self,
        image: QueryImage | list[QueryImage] | tuple[QueryImage, ...],
        box: Sequence[float] | Sequence[Sequence[float]] | None = None,
        topk: int = 10,
        *,
        instance: int | Sequence[int] | None = None,
        class_name: str | None = None,
        all_objects: bool = False,
        rerank: int | None = None,
        rerank_by: str | None = None,
        within: str | os.PathLike | Sequence[str | os.PathLike] = (),
        check_files: bool = True,
        max_distance: int | str | None = None,
        exclude_self: bool = False,
        fold_duplicates: bool = False,
        blend: float = 0.0,
    ) -> SearchResult | list[SearchResult]:
        """Search by an image, or by one or several objects in it; or by several images.

        Args:
            image: the query, or a list or tuple of queries. One that is no path is called
                "image 1" and so on in the answers, by its place among the queries.
            box: an object's box, XYXY in pixels of the file's image (turned as its EXIF orientation
                says), or several of them. What of it is outside the image is cut off.
            topk: how many answers.
            instance: the number of a detection of the model, from 1 by descending score, or
                several of them. With ``box`` too, all objects are searched for at once.
            class_name: restricts the answers to this predicted class.
            all_objects: for a query of one object, whether every near object is an answer, even
                several of one image.
            rerank: how many nearest images to rerank by a finer distance.
            rerank_by: "activations"; "classes", decoded from the stored bits, which knows the
                network's classes alone; "both"; or "features", which few models have. By default
                both if the index can decode classes, and activations otherwise.
            within: a folder or several; restricts the answers to photos in them.
            check_files: whether to look at the files of answers and leave out those that were
                deleted or changed since they were encoded; the result counts them.
            max_distance: the largest distance of an answer, in bits, or "auto": calibrated as
                :mod:`regiondh_d2.retrieval.thresholds` says. There may be no answer then.
            exclude_self: whether to leave the query itself out.
            fold_duplicates: whether the copies of a photo fill one answer.
            blend: for objects, how much the distance of the whole images counts beside that of the
                objects, see :mod:`regiondh_d2.retrieval.blend`; 0 for not at all.

        Returns:
            For an image: similar images. For objects: images with these objects, or with
            ``all_objects`` the objects. See :mod:`regiondh_d2.retrieval.service`. For a list of
            queries a list, in its order.

        Raises:
            UnreadableImage: the image can't be read.
            IndexFileError: the folder lacks the needed index, has no photo in ``within``, or none
                of its photos can be looked at.
            ValueError: no such box, detection or class, ``rerank`` for objects or by missing
                features, ``blend`` without objects, or ``all_objects`` without exactly one object.
        """
        options = SearchOptions(
            topk=topk,
            class_name=class_name,
            rerank=rerank,
            rerank_by=rerank_by,
            all_objects=all_objects,
            within=within,
            check_files=check_files,
            max_distance=max_distance,
            exclude_self=exclude_self,
            fold_duplicates=fold_duplicates,
            blend=blend,
        )
        if not isinstance(image, list | tuple):
            query = self.encode(image, box, instance, with_image=bool(blend))
            return self.service.search(query, options)
        if box is not None or instance is not None:
            raise RegionDHError("box and instance are for one query: search for each by itself")
        return [self.service.search(query, options) for query in self.encoder.encode_all(image)]

    def search_by_class(
        self,
        image: QueryImage,
        topk: int = 10,
        *,
        rerank: int | None = None,
        rerank_by: str | None = None,
        within: str | os.PathLike | Sequence[str | os.PathLike] = (),
        check_files: bool = True,
    ) -> list[SearchResult]:
        """Search by an image, with answers for each class that the model sees in it.

        Args:
            image: the query.
            topk: how many answers a class.
            rerank, rerank_by, within, check_files: as of :meth:`search`.

        Returns:
            A result for each class with a probability of at least 0.5, the most probable first: the
            nearest images in which an object of the class was detected. The list is empty if no
            class is seen.

        Raises:
            UnreadableImage: the image can't be read.
            IndexFileError: the index lacks image codes.
            ValueError: the index has no detected objects, or as of :meth:`search`.
        """
        options = SearchOptions(
            topk=topk, rerank=rerank, rerank_by=rerank_by, within=within, check_files=check_files
        )
        return self.service.search_by_class(self.encode(image), options)

    def encode(
        self,
        image: QueryImage,
        box: Sequence[float] | Sequence[Sequence[float]] | None = None,
        instance: int | Sequence[int] | None = None,
        *,
        with_image: bool = False,
    ) -> Query:
        """As :meth:`.query_encoder.QueryEncoder.encode`."""
        return self.encoder.encode(image, box, instance, with_image=with_image)


def _setting_notes(settings: str, cfg: CfgNode) -> list[str]:
    """Warnings if the index was encoded with other settings that change codes."""
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
    if theirs[_IMAGE_READER] != dict(ours)[_IMAGE_READER]:  # gives the same pixels for most photos
        notes.append(
            "the index is older than this version's reading of transparent images: "
            "extract_codes.py --resume and build_index.py encode those again"
        )
    if differing:
        key, value = min(differing)
        notes.append(f"the index was encoded with another {key} than {value}: distances may be off")
    return notes
