"""Turns what the page asks for into calls of the search service: the only module that knows it."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from ..engine.query_encoder import QueryEncoder
from ..retrieval.queries import Answer, Query, QueryObject, SearchOptions, SearchResult
from ..retrieval.service import SnapshotHolder
from ..utils.errors import RegionDHError
from .collection import Collection, Cutoffs, check_numbers
from .decoder import THUMBNAIL_SIDE, DecodedImage, Decoder, Picture
from .limits import Limits
from .requests import SearchRequest
from .uploads import Upload, UploadStore

__all__ = ["ExpiredError", "PageSearch"]

_LOG = logging.getLogger(__name__)

_INPUTS_KEPT = 8  # photos of the collection that boxes were drawn in
_SIZES_KEPT = 500_000


class ExpiredError(RegionDHError):
    """The uploaded photo isn't kept any more."""


class PageSearch:
    """The collection as it is now, its pictures, uploads, and searches.

    Its methods may be called from any thread. What takes the network is to be called from one
    thread at a time.

    Attributes:
        decoder: reads files.
        encoder: the network, or None: then photos of the collection can be searched with, and
            their objects, but neither uploads nor drawn boxes.
        limits: of the server.
        uploads: the photos that were uploaded.
    """

    def __init__(
        self,
        holder: SnapshotHolder,
        decoder: Decoder,
        encoder: QueryEncoder | None,
        limits: Limits,
    ):
        """
        Args:
            holder: has the newest snapshot of the index.
            decoder, encoder, limits: see above.

        Raises:
            IndexFileError: the index is of another network.
        """
        self._holder, self.decoder, self.encoder = holder, decoder, encoder
        self.limits = limits
        self.uploads = UploadStore(limits)
        self._lock = threading.Lock()
        self._sizes: dict[str, tuple[int, int] | None] = {}
        self._thumbnails: OrderedDict[tuple[str, int], Picture] = OrderedDict()
        self._inputs: OrderedDict[tuple[str, int], DecodedImage] = OrderedDict()
        service = holder.current()
        if encoder is not None:
            service.folder.check_model(encoder.fingerprint)
        self._collection = Collection(service)

    def collection(self) -> Collection:
        """The collection as it is now; as it was before while a new generation can't be opened."""
        try:
            service = self._holder.current()
            known = self._collection
            if service is not known.service and self.encoder is not None:
                service.folder.check_model(self.encoder.fingerprint)
        except (RegionDHError, OSError) as error:
            _LOG.warning("the index has changed and can't be opened: %s", error)
            return self._collection
        if service is not known.service:
            with self._lock:
                if service is not self._collection.service:
                    self._collection = Collection(service)
        return self._collection

    def warm_up(self) -> None:
        """Prepare what the first answers need, so that nobody waits for it."""
        collection = self.collection()
        for granularity in ("image", "instance"):
            collection.cutoffs(granularity)
        collection.class_counts()
        if len(collection):
            options = SearchOptions(topk=1, fold_duplicates=True, check_files=False)
            collection.service.search(collection.query(0), options)

    # Photos

    def describe_photos(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Photos of the collection, for lists."""
        collection = self.collection()
        sizes = self._sizes_of(collection, rows)
        return [
            {"photo": collection.id_of(row), "file_name": collection.name(row), **_size(size)}
            for row, size in zip(rows, sizes, strict=True)
        ]

    def describe_photo(self, one: str) -> dict[str, Any]:
        """A photo of the collection with its objects.

        Raises:
            UnknownItemError: there is no such photo.
        """
        collection = self.collection()
        row = collection.row(one)
        (values,) = self.describe_photos([row])
        return {**values, "objects": _describe_objects(collection.objects(row))}

    def describe_upload(self, one: str) -> dict[str, Any]:
        """An uploaded photo with its objects.

        Raises:
            ExpiredError: it isn't kept any more.
        """
        upload = self.upload(one)
        picture = upload.image.picture
        return {
            "upload": upload.id,
            "expires": int(upload.expires),
            "width": picture.width,
            "height": picture.height,
            "classes": list(upload.whole.classes),
            "objects": _describe_objects(upload.objects.objects),
        }

    def upload(self, one: str) -> Upload:
        """An uploaded photo.

        Raises:
            ExpiredError: it isn't kept any more.
        """
        upload = self.uploads.get(one)
        if upload is None:
            hours = f"{self.limits.upload_hours:g}"
            raise ExpiredError(f"expired: an uploaded photo is kept for {hours} hours at most")
        return upload

    def thumbnail(self, one: str) -> Picture:
        """A small picture of a photo.

        Raises:
            UnknownItemError: there is no such photo.
            UnreadableImage: its file has gone, or can't be read.
        """
        collection = self.collection()
        row = collection.row(one)
        key = (one, int(collection.items.mtime_ns[row]))
        with self._lock:
            if key in self._thumbnails:
                self._thumbnails.move_to_end(key)
                return self._thumbnails[key]
        picture = self.decoder.picture(collection.items.file_names[row], THUMBNAIL_SIDE)
        with self._lock:
            self._thumbnails[key] = picture
            total = sum(len(one.jpeg) for one in self._thumbnails.values())
            while total > self.limits.thumbnail_bytes:
                total -= len(self._thumbnails.popitem(last=False)[1].jpeg)
        return picture

    def picture(self, one: str, side: int) -> Picture:
        """A large picture of a photo; raises as :meth:`thumbnail`."""
        collection = self.collection()
        name = collection.items.file_names[collection.row(one)]
        return self.decoder.picture(name, side)

    # Queries; those of the first two run in other processes, the third runs the network

    def decode_upload(self, content: bytes) -> DecodedImage:
        """Raises UnreadableImage: it is no image within the limits."""
        return self.decoder.image(content)

    def decode_boxed(self, request: SearchRequest) -> DecodedImage | None:
        """The image that boxes are drawn in; None if there are none.

        Raises:
            UnknownItemError, ExpiredError: there is no such photo.
            UnreadableImage: its file has gone, or can't be read.
        """
        if not request.boxes:
            return None
        if self.encoder is None:
            raise RegionDHError("box: drawn boxes need the network, which wasn't named at start")
        if request.upload:
            return self.upload(request.upload).image
        collection = self.collection()
        row = collection.row(request.photo)
        key = (request.photo, int(collection.items.mtime_ns[row]))
        with self._lock:
            if key in self._inputs:
                return self._inputs[key]
        image = self.decoder.image(collection.items.file_names[row])
        with self._lock:
            self._inputs[key] = image
            while len(self._inputs) > _INPUTS_KEPT:
                self._inputs.popitem(last=False)
        return image

    def encode_upload(self, image: DecodedImage) -> Upload:
        """Encode an uploaded photo and its objects, and keep it.

        Raises:
            RegionDHError: there is no network.
        """
        if self.encoder is None:
            raise RegionDHError("an uploaded photo needs the network, which wasn't named at start")
        name = "the uploaded photo"
        whole, objects = self.encoder.encode_inputs(_inputs(image), name, image.content_sha256)
        return self.uploads.add(image, whole, objects)

    def encode_boxes(self, request: SearchRequest, image: DecodedImage | None) -> Query | None:
        """The drawn boxes of a request.

        Raises:
            RegionDHError: a box is empty, or outside the photo.
        """
        if image is None or self.encoder is None:
            return None
        return self.encoder.encode_boxes(_inputs(image), request.boxes, "the photo")

    def search(self, request: SearchRequest, boxes: Query | None) -> dict[str, Any]:
        """The answers to a request.

        Args:
            request: a photo, and objects in it.
            boxes: what :meth:`encode_boxes` gave.

        Raises:
            UnknownItemError, ExpiredError: there is no such photo, or object in it.
            RegionDHError: the service can't answer; the message says why.
        """
        collection = self.collection()
        query = self._query(collection, request, boxes)
        wanted = min(request.offset + request.limit, self.limits.answers)
        options = SearchOptions(
            topk=wanted + 1,
            class_name=request.class_name,
            all_objects=request.all_objects,
            exclude_self=bool(request.photo),
            fold_duplicates=request.fold,
            blend=request.blend,
        )
        result = collection.service.search(query, options)
        # The view of copies tells this once.
        result = replace(result, copies_note="")
        cutoffs = None
        if not request.blend:
            cutoffs = collection.cutoffs("instance" if query.objects else "image")
        return self._describe(collection, request, result, cutoffs, wanted)

    def _query(self, collection: Collection, request: SearchRequest, boxes: Query | None) -> Query:
        """The query of a request; one of objects has the code of the whole photo, too."""
        if bool(request.photo) == bool(request.upload):
            raise RegionDHError("photo, upload: give the id of one of them")
        if request.upload:
            upload = self.upload(request.upload)
            whole, found = upload.whole, upload.objects
            check_numbers(request.objects, len(found.objects))
            chosen = [number - 1 for number in request.objects]
            objects = replace(
                found,
                codes=found.codes[chosen],
                objects=tuple(found.objects[i] for i in chosen),
            )
        else:
            row = collection.row(request.photo)
            whole = collection.query(row)
            objects = collection.query(row, request.objects) if request.objects else whole
        parts = [objects] if request.objects else []
        parts += [] if boxes is None else [boxes]
        if not parts:
            return whole
        return Query(
            whole.file_name,
            np.concatenate([part.codes for part in parts]),
            tuple(one for part in parts for one in part.objects),
            content_sha256=whole.content_sha256,
            image_code=whole.codes,
        )

    # Answers

    def _describe(
        self,
        collection: Collection,
        request: SearchRequest,
        result: SearchResult,
        cutoffs: Cutoffs | None,
        wanted: int,
    ) -> dict[str, Any]:
        """A result as JSON: the fields of ``search --json``, and what the page needs beside."""
        shown = result.answers[request.offset : wanted]
        sizes = self._sizes_of(collection, [answer.row for answer in shown])
        values = replace(result, answers=()).as_dict()
        values["file_name"] = collection.short_name(result.file_name)
        values["answers"] = [
            {
                "rank": request.offset + place,
                **self._describe_answer(collection, answer, cutoffs),
                **_size(size),
            }
            for place, (answer, size) in enumerate(zip(shown, sizes, strict=True), 1)
        ]
        values["cutoffs"] = None if cutoffs is None else asdict(cutoffs)
        values["more"] = len(result.answers) > wanted and wanted < self.limits.answers
        values["notes"] = result.notes()
        return values

    @staticmethod
    def _describe_answer(
        collection: Collection, answer: Answer, cutoffs: Cutoffs | None
    ) -> dict[str, Any]:
        values = asdict(answer)
        if answer.blended is None:
            del values["image_distance"], values["blended"]
        values["photo"] = collection.id_of(answer.row)
        values["file_name"] = collection.name(answer.row)
        if answer.image_id == answer.file_name:  # a path, which nobody needs to know
            values["image_id"] = values["photo"]
        values["copies"] = [collection.short_name(name) for name in answer.copies]
        for described, found in zip(values["objects"], answer.objects, strict=True):
            if found is not None:
                described["number"] = collection.number_of(found.row)
        values["band"] = _band(answer, cutoffs)
        return values

    def _sizes_of(
        self, collection: Collection, rows: Sequence[int]
    ) -> list[tuple[int, int] | None]:
        """Width and height of photos; None where a file can't be read."""
        names = [collection.items.file_names[row] for row in rows]
        lacking = [name for name in dict.fromkeys(names) if name not in self._sizes]
        if lacking:
            if len(self._sizes) > _SIZES_KEPT:
                self._sizes.clear()
            self._sizes.update(zip(lacking, self.decoder.sizes(lacking), strict=True))
        return [self._sizes.get(name) for name in names]


def _band(answer: Answer, cutoffs: Cutoffs | None) -> str | None:
    """What an answer is called; None where nothing is calibrated."""
    if cutoffs is None:
        return None
    if len(answer.objects) < 2:
        return cutoffs.band(answer.distance)
    # The photo shows all of the objects, or it doesn't: the farthest one counts.
    distances = [found.distance for found in answer.objects if found is not None]
    all_found = len(distances) == len(answer.objects)
    return cutoffs.band(max(distances)) if all_found else "far"


def _inputs(image: DecodedImage) -> dict:
    picture = image.picture
    return {
        "image": torch.from_numpy(image.inputs),
        "height": picture.height,
        "width": picture.width,
    }


def _describe_objects(objects: Sequence[QueryObject]) -> list[dict[str, Any]]:
    return [{"number": number, **asdict(one)} for number, one in enumerate(objects, 1)]


def _size(size: tuple[int, int] | None) -> dict[str, int | None]:
    width, height = size or (None, None)
    return {"width": width, "height": height}
