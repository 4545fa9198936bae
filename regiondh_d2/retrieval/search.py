"""Answers from an index folder: to a whole image, to one object, or to several objects at once.

What is found is ordered by (distance, row), so the same query always has the same answers:

- An image is compared with images, by H2 codes. With ``rerank``, that many nearest ones are ordered
  anew by a finer squared distance; of equally far ones the order stays. It is that of their codes
  to the query's activations, which codes round to 0 and 1, or that of their features to the
  query's features.
- Grouped by class, an image has answers for each class that the network sees in it: the images that
  are nearest by H2 codes among those in which an object of the class was detected. An image may
  answer for several classes.
- One object is compared with the detected objects of all images, by H1 codes. An image answers
  once, by its nearest object. With ``all_objects`` every detection is an answer of its own, also
  where two classes were seen in one thing.
- Several objects ask for images that hold all of them. An image's distance is the sum, over the
  objects of the query, of the least distance of any object detected in it; one of them may stand
  for two of the query's. An object that an image has no counterpart of counts as one bit more than
  the code length, so images without any detection come last.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..structures.codes import CodeSet, InstanceCodes
from ..structures.packed import unpack_codes
from ..utils.errors import RegionDHError
from .hamming_index import HammingIndex
from .index_folder import IndexFolder

__all__ = [
    "RERANKINGS",
    "Answer",
    "FoundObject",
    "Query",
    "QueryObject",
    "SearchResult",
    "fine_distances",
    "search_by_class",
    "search_index",
]

RERANKINGS = ("activations", "features")
"""What a second stage compares."""

_GROWTH = 4  # how many times more codes are asked for where too few were kept

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class QueryObject:
    """An object to search for.

    Attributes:
        box: XYXY, pixels of the original image.
        class_name, score: the detector's opinion; None for a box that was given.
    """

    box: Box
    class_name: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Query:
    """A coded query.

    Attributes:
        file_name: the query's image.
        codes: packed uint8, (1, B) of the image or (Q, B1) of Q objects in it.
        objects: those objects, or none for the image as a whole.
        activation: float (K,), what the image's code is rounded from, or None where unknown.
        feature: float (D,), features of the image, or None where the model has none.
        classes: names of the classes that the model sees in the image, the most probable first.
    """

    file_name: str
    codes: np.ndarray
    objects: tuple[QueryObject, ...] = ()
    activation: np.ndarray | None = None
    feature: np.ndarray | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundObject:
    """A detected object of the database.

    Attributes:
        box: XYXY, pixels of the original image.
        class_name, score: what the detector says.
        distance: to the query's object.
        row: its row among the instances of the index.
    """

    box: Box
    class_name: str
    score: float
    distance: int
    row: int


@dataclass(frozen=True)
class Answer:
    """An image of the database, or an object in it.

    Attributes:
        distance: to the query.
        image_id, file_name: of the image.
        row: the image's row in the index.
        labels: names of the image's labels, or None where they are unknown.
        objects: one for each object of the query, its nearest; None where the image has none.
        fine_distance: the squared distance that a ``rerank`` ordered by.
    """

    distance: int
    image_id: str
    file_name: str
    row: int
    labels: tuple[str, ...] | None
    objects: tuple[FoundObject | None, ...] = ()
    fine_distance: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """Answers to a query, the nearest first.

    Attributes:
        file_name, objects: of the :class:`Query`.
        labels: what is known to be in the query, or None: the labels of its image, if the index
            holds that with labels; for objects their classes, if those are among these labels.
        class_name: the class that the answers are restricted to, or None.
        searched: how many images or objects the index holds.
        bits: length of the codes compared.
        answers: at most as many as were asked for.
        all_objects: whether an image may answer more than once.
    """

    file_name: str
    objects: tuple[QueryObject, ...]
    labels: tuple[str, ...] | None
    class_name: str | None
    searched: int
    bits: int
    answers: tuple[Answer, ...]
    all_objects: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def search_index(
    folder: IndexFolder,
    query: Query,
    topk: int = 10,
    class_name: str | None = None,
    rerank: int | None = None,
    rerank_by: str = "activations",
    *,
    all_objects: bool = False,
) -> SearchResult:
    """The nearest images or objects of an index folder; see the module for their order.

    Args:
        folder: what to search in.
        query: coded by the model of the index.
        topk: how many answers. There are fewer only if fewer fit, or the index is approximate.
        class_name: restricts the answers to objects of this predicted class, or, for an image, to
            images in which one was detected.
        rerank: how many of the nearest images to order anew; ``topk`` where that is more.
        rerank_by: what by, one of :data:`RERANKINGS`.
        all_objects: whether all near objects answer to an object, several of an image, too.

    Raises:
        IndexFileError: the folder lacks the level to search in.
        ValueError: no such class, no detected objects to know classes from, codes of another
            length, ``rerank`` for objects or by what isn't known of the query or of the images,
            ``all_objects`` without exactly one object, or a number below 1.
    """
    for name, number in (("topk", topk), ("rerank", rerank)):
        if number is not None and number < 1:
            raise RegionDHError(f"{name} must be at least 1, not {number}")
    if all_objects and len(query.objects) != 1:
        raise RegionDHError("all_objects is for a query of one object: give one box or instance")
    items = folder.items
    if rerank is not None:
        _check_rerank(items, query, rerank_by)
    index = folder.level("instance" if query.objects else "image")
    wanted = None if class_name is None else _objects_of_class(items, class_name)
    if not query.objects:
        answers = _answer_image(items, index, query, topk, wanted, rerank, rerank_by)
    elif len(query.objects) == 1:
        answers = _answer_object(items, index, query.codes, topk, wanted, all_objects)
    else:
        answers = _answer_objects(items, index, query.codes, topk, wanted)
    return SearchResult(
        file_name=query.file_name,
        objects=query.objects,
        labels=_known_labels(items, query),
        class_name=class_name,
        searched=len(index),
        bits=index.bits,
        answers=tuple(answers),
        all_objects=all_objects,
    )


def search_by_class(
    folder: IndexFolder,
    query: Query,
    topk: int = 10,
    rerank: int | None = None,
    rerank_by: str = "activations",
) -> list[SearchResult]:
    """A :func:`search_index` for each of the query's classes, restricted to it.

    Args:
        folder, query, topk, rerank, rerank_by: as there; ``topk`` counts for each class.

    Returns:
        A result for each of ``query.classes``, in their order, with its ``class_name``.

    Raises:
        IndexFileError, ValueError: as there.
    """
    return [
        search_index(folder, query, topk, class_name, rerank, rerank_by)
        for class_name in query.classes
    ]


def fine_distances(query: np.ndarray, items: CodeSet, rows: np.ndarray, by: str) -> np.ndarray:
    """The squared distances, float32 (R,), of a query to images, finer than those of codes.

    Args:
        query: the query's activations (K,) or features (D,).
        items: the images; features are theirs, in place of activations stand their codes, so that
            none need be stored.
        rows: int (R,), which of them.
        by: one of :data:`RERANKINGS`.
    """
    if by == "features":
        values = items.features[rows]
    else:
        values = unpack_codes(items.codes[rows], items.bits)
    difference = query.astype(np.float32) - values
    return np.vecdot(difference, difference)


def _check_rerank(items: CodeSet, query: Query, by: str) -> None:
    if by not in RERANKINGS:
        raise RegionDHError(f"rerank_by: {by!r} isn't one of {', '.join(RERANKINGS)}")
    if query.objects:
        raise RegionDHError("rerank is for whole images: objects have codes alone")
    if by == "activations" and query.activation is None:
        raise RegionDHError("rerank by activations: the query has none")
    if by == "features":
        if items.features is None:
            raise RegionDHError(
                "rerank by features: the index has none; extract its codes with --features"
            )
        if query.feature is None:
            raise RegionDHError(
                "rerank by features: the model gives none for the query; rerank by activations"
            )


def _answer_image(
    items: CodeSet,
    index: HammingIndex,
    query: Query,
    topk: int,
    wanted: np.ndarray | None,
    rerank: int | None,
    rerank_by: str,
) -> list[Answer]:
    allowed = None
    if wanted is not None:
        allowed = np.zeros(len(items), bool)
        allowed[items.instances.image_index[wanted]] = True
    distances, rows = _nearest(index, query.codes, max(topk, rerank or 0), allowed)
    if rerank is None:
        return [
            _answer(items, row, distance) for distance, row in zip(distances, rows, strict=True)
        ]
    fine = query.feature if rerank_by == "features" else query.activation
    squares = fine_distances(fine, items, rows, rerank_by)
    return [
        replace(_answer(items, rows[i], distances[i]), fine_distance=float(squares[i]))
        for i in np.argsort(squares, kind="stable")[:topk]
    ]


def _answer_object(
    items: CodeSet,
    index: HammingIndex,
    codes: np.ndarray,
    topk: int,
    wanted: np.ndarray | None,
    all_objects: bool,
) -> list[Answer]:
    images = items.instances.image_index
    distances, rows = _nearest(index, codes, topk, wanted, None if all_objects else images)
    return [
        _answer(items, images[row], distance, (_found_object(items, row, distance),))
        for distance, row in zip(distances, rows, strict=True)
    ]


def _answer_objects(
    items: CodeSet, index: HammingIndex, codes: np.ndarray, topk: int, wanted: np.ndarray | None
) -> list[Answer]:
    shape = (len(codes), len(items))
    least = np.full(shape, index.bits + 1, np.int64)
    nearest = np.full(shape, -1, np.int64)
    image_of = items.instances.image_index
    for i in range(len(codes)):
        distances, rows = _nearest(index, codes[i : i + 1], max(1, len(index)), wanted, image_of)
        least[i, image_of[rows]] = distances
        nearest[i, image_of[rows]] = rows
    total = least.sum(axis=0)
    images = np.argsort(total, kind="stable")
    if wanted is not None:
        images = images[(nearest[:, images] >= 0).any(axis=0)]
    answers = []
    for image in images[:topk]:
        found = (
            None if row < 0 else _found_object(items, row, distance)
            for row, distance in zip(nearest[:, image], least[:, image], strict=True)
        )
        answers.append(_answer(items, image, total[image], tuple(found)))
    return answers


def _nearest(
    index: HammingIndex,
    codes: np.ndarray,
    k: int,
    allowed: np.ndarray | None,
    image_of: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Distances and rows, (k,) each, of the nearest allowed codes; fewer only if there are fewer.

    Args:
        index: what to search in.
        codes: uint8 (1, B), one query.
        k: how many.
        allowed: bool, one a row of the index; None allows all.
        image_of: int, the image of each row, of which only the first code is kept; None keeps all.
    """
    asked = k
    while True:
        (distances,), (rows,) = index.search(codes, asked)
        kept = np.flatnonzero(rows >= 0)  # an approximate index may find too few
        if allowed is not None:
            kept = kept[allowed[rows[kept]]]
        if image_of is not None:
            _, first = np.unique(image_of[rows[kept]], return_index=True)
            kept = kept[np.sort(first)]
        if len(kept) >= k or asked >= len(index):
            return distances[kept[:k]], rows[kept[:k]]
        asked *= _GROWTH


def _objects_of_class(items: CodeSet, class_name: str) -> np.ndarray:
    """Which of the instances, bool (M,), are of a predicted class."""
    if items.instances is None:
        raise RegionDHError(
            f"class {class_name!r}: the index has no detected objects to know classes from; "
            "extract the codes with objects"
        )
    names = list(items.class_names)
    if class_name not in names:
        known = f"use one of {', '.join(names)}" if names else "the index names no classes"
        raise RegionDHError(f"class {class_name!r} is not known: {known}")
    return items.instances.classes == names.index(class_name)


def _answer(
    items: CodeSet, row: int, distance: int, objects: tuple[FoundObject | None, ...] = ()
) -> Answer:
    return Answer(
        distance=int(distance),
        image_id=items.image_ids[row],
        file_name=items.file_names[row],
        row=int(row),
        labels=_labels(items, row),
        objects=objects,
    )


def _found_object(items: CodeSet, row: int, distance: int) -> FoundObject:
    found: InstanceCodes = items.instances
    return FoundObject(
        box=tuple(found.boxes[row].tolist()),
        class_name=name_of_class(items.class_names, int(found.classes[row])),
        score=float(found.scores[row]),
        distance=int(distance),
        row=int(row),
    )


def name_of_class(names: Sequence[str], class_id: int) -> str:
    """A class's name, or its number where there are no names."""
    return names[class_id] if len(names) else str(class_id)


def _labels(items: CodeSet, row: int) -> tuple[str, ...] | None:
    if items.labels is None:
        return None
    return tuple(name_of_class(items.class_names, i) for i in np.flatnonzero(items.labels[row]))


def _known_labels(items: CodeSet, query: Query) -> tuple[str, ...] | None:
    """See :attr:`SearchResult.labels`."""
    names = {query.file_name, os.path.abspath(query.file_name)}
    row = next((row for row, name in enumerate(items.file_names) if name in names), None)
    labels = None if row is None else _labels(items, row)
    if labels is None or not query.objects:
        return labels
    classes = tuple(dict.fromkeys(found.class_name for found in query.objects))
    return classes if set(classes) <= set(labels) else None
