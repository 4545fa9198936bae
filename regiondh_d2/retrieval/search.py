"""Answers from an index folder: to a whole image, to one object, or to several objects at once.

What is found is ordered by (distance, not same file, not same content, row): at equal distance the
query itself stands first, then its copies. So the same query always has the same answers:

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

Photos that have gone or changed since they were encoded are no answers; the next ones take their
places. Only the files of answers are looked at, see :mod:`.photo_state`, when they are given.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..structures.codes import CodeSet, InstanceCodes
from ..structures.packed import unpack_codes
from ..utils.errors import RegionDHError
from .hamming_index import HammingIndex, IndexFileError
from .index_folder import IndexFolder
from .photo_state import PhotoCheck, PhotoState, describe_away

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
        content_sha256: of the query's file, or None where it is unknown.
    """

    file_name: str
    codes: np.ndarray
    objects: tuple[QueryObject, ...] = ()
    activation: np.ndarray | None = None
    feature: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    content_sha256: bytes | None = None


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
        gone, changed: how many photos were left out because their file has gone, or has changed
            since it was encoded. Only those are counted that would have answered.
        away: how many because nothing is known of them: their folder can't be read, or is missing
            or empty, as that of a disk is that isn't plugged in.
        unchecked: how many answers nothing is known of, and no root was recorded of either: the
            codes may have been made elsewhere, as those of datasets and of version 0.1.
        away_reason: a line about the folders of both, "" where there are none.
    """

    file_name: str
    objects: tuple[QueryObject, ...]
    labels: tuple[str, ...] | None
    class_name: str | None
    searched: int
    bits: int
    answers: tuple[Answer, ...]
    all_objects: bool = False
    gone: int = 0
    changed: int = 0
    away: int = 0
    unchecked: int = 0
    away_reason: str = ""

    def notes(self) -> list[str]:
        """What was left out of the answers or unknown and what to do, a line each, if anything."""
        lines = []
        count = self.gone + self.changed
        if count:
            one = count == 1
            lines.append(
                f"{count} photo{' has' if one else 's have'} gone or changed since "
                f"{'it was' if one else 'they were'} encoded: left out; to bring the index up to "
                "date, run extract-codes --resume and build-index --prune"
            )
        if self.away:
            lines.append(
                f"{self.away} photo{'s' if self.away > 1 else ''} left out, of which nothing is "
                f"known now: {self.away_reason}"
            )
        if self.unchecked:
            lines.append(f"whether these photos are still there is not known: {self.away_reason}")
        return lines

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
    within: Sequence[str | os.PathLike] = (),
    check_files: bool = True,
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
        within: folders; restricts the answers to photos in them.
        check_files: whether to look at the files of answers, and to leave out those that have gone
            or changed.

    Raises:
        IndexFileError: the folder lacks the level to search in, or has no photo in one of
            ``within``; or nothing is known of the folders of all photos that would answer.
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
    same_file, same_content = folder.rows_like(query.file_name, query.content_sha256)
    same = np.concatenate([same_file, same_content])
    order = np.full(len(items), 2, np.int8)
    order[same_file], order[same_content] = 0, 1
    photos = _Photos(
        same=same,
        order=order,
        inside=folder.rows_below(within) if within else None,
        check=PhotoCheck(items) if check_files else None,
    )
    if not query.objects:
        answers = _answer_image(items, index, query, topk, wanted, photos, rerank, rerank_by)
    elif len(query.objects) == 1:
        answers = _answer_object(items, index, query.codes, topk, wanted, photos, all_objects)
    else:
        answers = _answer_objects(items, index, query.codes, topk, wanted, photos)
    counts = Counter(photos.left_out.values())
    unchecked = sum(answer.row in photos.unchecked for answer in answers)
    away = ""
    if counts[PhotoState.AWAY] or unchecked:
        away = describe_away(photos.check.away)
        if not answers and not counts[PhotoState.GONE] and not counts[PhotoState.CHANGED]:
            raise IndexFileError(away)
    return SearchResult(
        file_name=query.file_name,
        objects=query.objects,
        labels=_known_labels(items, query, same),
        class_name=class_name,
        searched=len(index),
        bits=index.bits,
        answers=tuple(answers),
        all_objects=all_objects,
        gone=counts[PhotoState.GONE],
        changed=counts[PhotoState.CHANGED],
        away=counts[PhotoState.AWAY],
        unchecked=unchecked,
        away_reason=away,
    )


def search_by_class(
    folder: IndexFolder,
    query: Query,
    topk: int = 10,
    rerank: int | None = None,
    rerank_by: str = "activations",
    *,
    within: Sequence[str | os.PathLike] = (),
    check_files: bool = True,
) -> list[SearchResult]:
    """A :func:`search_index` for each of the query's classes, restricted to it.

    Args:
        folder, query, topk, rerank, rerank_by, within, check_files: as there; ``topk`` counts for
            each class.

    Returns:
        A result for each of ``query.classes``, in their order, with its ``class_name``.

    Raises:
        IndexFileError, ValueError: as there.
    """
    options = {"within": within, "check_files": check_files}
    return [
        search_index(folder, query, topk, class_name, rerank, rerank_by, **options)
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


@dataclass
class _Photos:
    """Which photos may answer, and which of equally near ones come first.

    Attributes:
        same: rows of the images that are the query itself or copies of it.
        order: int8 (N,), 0 for the query itself, 1 for its copies, 2 for all others.
        inside: bool (N,), the images that answers are restricted to; None for all.
        check: looks at files; None takes all photos to be there.
        left_out: states of the photos that were passed over, by row.
        unchecked: rows of photos of which nothing is known, and that may answer all the same.
    """

    same: np.ndarray
    order: np.ndarray
    inside: np.ndarray | None
    check: PhotoCheck | None
    left_out: dict[int, PhotoState] = field(default_factory=dict)
    unchecked: set[int] = field(default_factory=set)

    def are_there(self, images: Iterable[int], count: int) -> Iterator[int]:
        """Positions of the first ``count`` of these images that may answer."""
        for position, image in enumerate(images):
            if count < 1:
                return
            image = int(image)
            state = PhotoState.THERE if self.check is None else self.check.state(image)
            if state is PhotoState.AWAY and not self.check.root(image):
                self.unchecked.add(image)
                state = PhotoState.THERE
            if state is PhotoState.THERE:
                count -= 1
                yield position
            else:
                self.left_out[image] = state


def _answer_image(
    items: CodeSet,
    index: HammingIndex,
    query: Query,
    topk: int,
    wanted: np.ndarray | None,
    photos: _Photos,
    rerank: int | None,
    rerank_by: str,
) -> list[Answer]:
    allowed = photos.inside
    if wanted is not None:
        holds = np.zeros(len(items), bool)
        holds[items.instances.image_index[wanted]] = True
        allowed = holds if allowed is None else allowed & holds
    search = _Search(index, items.codes, allowed, None, photos)
    if rerank is None:
        distances, rows = search.filtered(query.codes, topk)
        return [
            _answer(items, row, distance) for distance, row in zip(distances, rows, strict=True)
        ]
    fine = query.feature if rerank_by == "features" else query.activation
    count = max(topk, rerank)
    while True:
        distances, rows = search.filtered(query.codes, count, look=False)
        squares = fine_distances(fine, items, rows, rerank_by)
        order = np.argsort(squares, kind="stable")
        chosen = order[list(photos.are_there(rows[order], topk))]
        if len(chosen) == topk or len(rows) < count:
            return [
                replace(_answer(items, rows[i], distances[i]), fine_distance=float(squares[i]))
                for i in chosen
            ]
        count *= _GROWTH  # so many photos have gone that the shortlist is too short


def _answer_object(
    items: CodeSet,
    index: HammingIndex,
    codes: np.ndarray,
    topk: int,
    wanted: np.ndarray | None,
    photos: _Photos,
    all_objects: bool,
) -> list[Answer]:
    found = items.instances
    search = _Search(index, found.codes, wanted, found.image_index, photos, once=not all_objects)
    distances, rows = search.filtered(codes, topk)
    return [
        _answer(items, found.image_index[row], distance, (_found_object(items, row, distance),))
        for distance, row in zip(distances, rows, strict=True)
    ]


def _answer_objects(
    items: CodeSet,
    index: HammingIndex,
    codes: np.ndarray,
    topk: int,
    wanted: np.ndarray | None,
    photos: _Photos,
) -> list[Answer]:
    shape = (len(codes), len(items))
    least = np.full(shape, index.bits + 1, np.int64)
    nearest = np.full(shape, -1, np.int64)
    found = items.instances
    search = _Search(index, found.codes, wanted, found.image_index, photos, once=True)
    for i in range(len(codes)):
        distances, rows = search.filtered(codes[i : i + 1], max(1, len(index)), look=False)
        least[i, found.image_index[rows]] = distances
        nearest[i, found.image_index[rows]] = rows
    total = least.sum(axis=0)
    images = np.lexsort((photos.order, total))  # stable, so equal ones stay by row
    if photos.inside is not None:
        images = images[photos.inside[images]]
    if wanted is not None:
        images = images[(nearest[:, images] >= 0).any(axis=0)]
    answers = []
    for image in images[list(photos.are_there(images, topk))]:
        objects = (
            None if row < 0 else _found_object(items, row, distance)
            for row, distance in zip(nearest[:, image], least[:, image], strict=True)
        )
        answers.append(_answer(items, image, total[image], tuple(objects)))
    return answers


@dataclass
class _Search:
    """Finds the nearest codes of one level that may answer.

    Attributes:
        index: what to search in.
        codes: uint8 (N, B), the codes of all its rows.
        allowed: bool (N,), rows that may answer; None for all.
        image_of: int (N,), the image of each row; None where rows are images.
        photos: which images may answer.
        once: whether only the first row of an image is kept.
    """

    index: HammingIndex
    codes: np.ndarray
    allowed: np.ndarray | None
    image_of: np.ndarray | None
    photos: _Photos
    once: bool = False

    def __post_init__(self) -> None:
        same, inside = self.photos.same, self.photos.inside
        if self.image_of is not None:
            same = np.flatnonzero(np.isin(self.image_of, same))
            inside = None if inside is None else inside[self.image_of]
            self.allowed = (
                inside
                if self.allowed is None
                else self.allowed & (True if inside is None else inside)
            )
        same = same[self.index.holds(same)]
        self._same = same if self.allowed is None else same[self.allowed[same]]

    def filtered(
        self, code: np.ndarray, k: int, look: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distances and rows, (k,) each, of the nearest; fewer only if there are fewer.

        Args:
            code: uint8 (1, B), one query.
            k: how many.
            look: whether to look at the files, and to leave out photos that aren't there.
        """
        asked = k
        while True:
            distances, rows, complete = self._ordered(code, asked)
            images = rows if self.image_of is None else self.image_of[rows]
            if look:
                kept = list(self.photos.are_there(images, k))
            else:
                kept = np.arange(min(k, len(rows)))
            if len(kept) >= k or complete:
                return distances[kept], rows[kept]
            asked *= _GROWTH

    def _ordered(self, code: np.ndarray, asked: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Distances and rows among the ``asked`` nearest codes, and whether those were all.

        The rows of the query itself are among them wherever they stand in a tie: without them, the
        first ones by (distance, row) would stay the first ones by our order.
        """
        (distances,), (rows,) = self.index.search(code, asked)
        complete = asked >= len(self.index)
        kept = rows >= 0  # an approximate index may find too few
        distances, rows = distances[kept], rows[kept]
        farthest = distances[-1] if len(distances) and not complete else None
        if self.allowed is not None:
            kept = self.allowed[rows]
            distances, rows = distances[kept], rows[kept]
        if len(self._same):
            further = np.setdiff1d(self._same, rows)
            at = np.bitwise_count(self.codes[further] ^ code).sum(axis=1, dtype=distances.dtype)
            if farthest is not None:
                further, at = further[at <= farthest], at[at <= farthest]
            rows, distances = np.concatenate([rows, further]), np.concatenate([distances, at])
            images = rows if self.image_of is None else self.image_of[rows]
            order = np.lexsort((rows, self.photos.order[images], distances))
            distances, rows = distances[order], rows[order]
        if self.once:
            _, first = np.unique(self.image_of[rows], return_index=True)
            first.sort()
            distances, rows = distances[first], rows[first]
        return distances, rows, complete


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


def _known_labels(items: CodeSet, query: Query, same: np.ndarray) -> tuple[str, ...] | None:
    """See :attr:`SearchResult.labels`; ``same`` are the rows of the query itself."""
    labels = _labels(items, same[0]) if len(same) else None
    if labels is None or not query.objects:
        return labels
    classes = tuple(dict.fromkeys(found.class_name for found in query.objects))
    return classes if set(classes) <= set(labels) else None
