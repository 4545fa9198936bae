"""The answers to an encoded query, for :class:`.service.SearchService`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from ..structures.codes import CodeSet
from .blend import blend_keys, hamming_distances, nearest_objects
from .candidates import CandidateSearch, PhotoFilter
from .engines import MilvusIndex
from .hamming_index import HammingIndex
from .queries import Answer, FoundObject, Query, SearchOptions, name_of_class, number_of_class
from .second_stage import fine_distances, fine_values

__all__ = [
    "answers_by_blend",
    "answers_to_image",
    "answers_to_object",
    "answers_to_objects",
    "known_labels",
]

_GROWTH = 4  # factor by which a shortlist grows if too few of its photos may answer
_FETCHED = 100  # the least number of images to look for ties among


def answers_to_image(
    items: CodeSet,
    index: HammingIndex,
    query: Query,
    options: SearchOptions,
    photos: PhotoFilter,
    allowed: np.ndarray | None,
) -> list[Answer]:
    """Images similar to an image.

    Args:
        items: the indexed code set.
        index: of the images.
        query: with the code of an image, and for a ``rerank`` the values that :func:`.fine_values`
            needs.
        options: which answers; ``max_distance`` is a number or None.
        photos: which photos may answer.
        allowed: bool (N,), which images may answer by their class; None for all.
    """
    topk = options.topk
    search = CandidateSearch(
        index, index.search, items.codes, allowed, None, photos, max_distance=_number(options)
    )
    if options.rerank is None:
        distances, rows = _nearest_images(search, items, query, topk)
        return [
            _answer(items, row, distance) for distance, row in zip(distances, rows, strict=True)
        ]
    assert options.rerank_by is not None  # the service has chosen
    values = fine_values(query, items, options.rerank_by)
    assert values is not None  # the service refuses a query that lacks them
    count = max(topk, options.rerank)
    while True:
        distances, rows = search.nearest(query.codes, count)
        squares = fine_distances(values, items, rows, options.rerank_by)
        ties = _ties_of_activations(items, query, rows)
        order = np.lexsort((*ties, photos.order[rows], distances, squares))
        chosen = order[list(photos.take_present(rows[order], topk))]
        if len(chosen) == topk or len(rows) < count:
            return [
                replace(_answer(items, rows[i], distances[i]), fine_distance=float(squares[i]))
                for i in chosen
            ]
        count *= _GROWTH


def _nearest_images(
    search: CandidateSearch, items: CodeSet, query: Query, topk: int
) -> tuple[np.ndarray, np.ndarray]:
    """The distances and rows of the images that answer a query by codes alone.

    Images of equal distance are in the order of their activations' distance to the query's, where
    both are known. All images of a distance must be fetched for that, even if the last one of them
    that answers stands near the first.
    """
    if items.activations is None or query.activation is None:
        return search.nearest_present(query.codes, topk)
    photos = search.photos
    count = max(_GROWTH * topk, _FETCHED)
    while True:
        distances, rows = search.nearest(query.codes, count)
        complete = len(rows) < count
        if not complete:  # of the last distance there may be more
            whole = distances < distances[-1]
            distances, rows = distances[whole], rows[whole]
        ties = _ties_of_activations(items, query, rows)
        order = np.lexsort((*ties, photos.order[rows], distances))
        distances, rows = distances[order], rows[order]
        chosen = list(photos.take_present(rows, topk))
        if len(chosen) == topk or complete:
            return distances[chosen], rows[chosen]
        count *= _GROWTH


def _ties_of_activations(items: CodeSet, query: Query, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Keys for ``np.lexsort``, the last one first: by squared distance of activations, by row.

    Where activations are missing, only the row counts.
    """
    if items.activations is None or query.activation is None:
        return (rows,)
    difference = query.activation.astype(np.float32) - items.activations[rows]
    return rows, np.vecdot(difference, difference)


def answers_to_object(
    items: CodeSet,
    index: HammingIndex,
    query: Query,
    options: SearchOptions,
    photos: PhotoFilter,
    allowed: np.ndarray | None,
) -> list[Answer]:
    """Images with an object similar to that of the query, or these objects themselves.

    Args:
        items, options, photos: as of :func:`answers_to_image`.
        index: of the detected objects.
        query: with the code of one object.
        allowed: bool (M,), which detected objects may answer by their class; None for all.
    """
    found = items.objects()
    search = CandidateSearch(
        index,
        _search_of_class(items, index, options),
        found.codes,
        allowed,
        found.image_index,
        photos,
        not options.all_objects,
        _number(options),
    )
    distances, rows = search.nearest_present(query.codes, options.topk)
    return [
        _answer(items, found.image_index[row], distance, (_found_object(items, row, distance),))
        for distance, row in zip(distances, rows, strict=True)
    ]


def _search_of_class(
    items: CodeSet, index: HammingIndex, options: SearchOptions
) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """The search of an index of objects; a server that knows their classes leaves out others."""
    if options.class_name is None or not isinstance(index, MilvusIndex) or not index.exact:
        return index.search
    number = number_of_class(items.class_names, options.class_name)  # known to the service
    return partial(index.search, where=f"class_id == {number}")


def answers_to_objects(
    items: CodeSet,
    index: HammingIndex,
    query: Query,
    options: SearchOptions,
    photos: PhotoFilter,
    allowed: np.ndarray | None,
) -> list[Answer]:
    """Images with objects similar to all objects of the query.

    Args:
        items, index, options, photos, allowed: as of :func:`answers_to_object`.
        query: with the codes of several objects.
    """
    found = items.objects()
    shape = (len(query.codes), len(items))
    least = np.full(shape, index.bits + 1, np.int64)
    nearest = np.full(shape, -1, np.int64)
    of_class = _search_of_class(items, index, options)
    search = CandidateSearch(index, of_class, found.codes, allowed, found.image_index, photos, True)
    for i in range(len(query.codes)):
        distances, rows = search.nearest(query.codes[i : i + 1], max(1, len(index)))
        least[i, found.image_index[rows]] = distances
        nearest[i, found.image_index[rows]] = rows
    total = least.sum(axis=0)
    images = _images_in_order(total, total, nearest, options, photos, allowed is not None)
    return [
        _answer(items, image, total[image], _found_objects(items, image, nearest, least))
        for image in images
    ]


def answers_by_blend(
    items: CodeSet,
    index: HammingIndex,
    query: Query,
    options: SearchOptions,
    photos: PhotoFilter,
    allowed: np.ndarray | None,
) -> list[Answer]:
    """Images with objects similar to those of the query, in similar images; see :mod:`.blend`.

    The search is exact, whatever the engine. ``max_distance`` limits the distance of the objects.

    Args:
        items, index, options, photos, allowed: as of :func:`answers_to_object`.
        query: with the codes of one or several objects, and of their image.
    """
    assert query.image_code is not None  # the service refuses a query that lacks it
    found = items.objects()
    usable = index.holds(np.arange(len(found.codes)))
    if allowed is not None:
        usable &= allowed
    each = [nearest_objects(code, found, len(items), usable) for code in query.codes]
    least, nearest = (np.stack(parts) for parts in zip(*each, strict=True))
    by_objects = least.sum(axis=0)
    by_image = hamming_distances(query.image_code[0], items.codes)
    keys = blend_keys(by_objects, by_image, options.blend)
    answers = []
    for image in _images_in_order(keys, by_objects, nearest, options, photos, allowed is not None):
        objects = _found_objects(items, image, nearest, least)
        answer = _answer(items, image, by_objects[image], objects)
        blended = float(by_objects[image] + options.blend * by_image[image])
        answers.append(replace(answer, image_distance=int(by_image[image]), blended=blended))
    return answers


def _images_in_order(
    keys: np.ndarray,
    by_objects: np.ndarray,
    nearest: np.ndarray,
    options: SearchOptions,
    photos: PhotoFilter,
    needs_object: bool,
) -> np.ndarray:
    """The rows of the images that answer a query of several objects, int64, by ascending key.

    Args:
        keys: (N,), what the images are ordered by. Equal ones stay by row.
        by_objects: (N,), the distances that ``max_distance`` limits.
        nearest: (objects of the query, N), each image's nearest object, below 0 where it has none.
        options, photos: as of :func:`answers_to_object`.
        needs_object: whether an image without any of these objects is no answer.
    """
    images = np.lexsort((photos.order, keys))  # stable
    if photos.inside is not None:
        images = images[photos.inside[images]]
    most = _number(options)
    if most is not None:
        images = images[by_objects[images] <= most]
    if needs_object:
        images = images[(nearest[:, images] >= 0).any(axis=0)]
    return images[list(photos.take_present(images, options.topk))]


def _found_objects(
    items: CodeSet, image: int, nearest: np.ndarray, least: np.ndarray
) -> tuple[FoundObject | None, ...]:
    """An image's nearest object for each of the query's, None where it has none."""
    return tuple(
        None if row < 0 else _found_object(items, row, distance)
        for row, distance in zip(nearest[:, image], least[:, image], strict=True)
    )


def known_labels(items: CodeSet, query: Query, same: np.ndarray) -> tuple[str, ...] | None:
    """See :attr:`.queries.SearchResult.labels`; ``same`` are the rows of the query itself."""
    labels = _labels(items, same[0]) if len(same) else None
    if labels is None or not query.objects:
        return labels
    classes = tuple(dict.fromkeys(found.class_name for found in query.objects))
    if not set(classes) <= set(labels):
        return None
    return tuple(name for name in classes if name is not None)


def _number(options: SearchOptions) -> int | None:
    """The largest distance, which the service has calibrated where it was "auto"."""
    assert not isinstance(options.max_distance, str)
    return options.max_distance


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
    found = items.objects()
    return FoundObject(
        box=tuple(found.boxes[row].tolist()),
        class_name=name_of_class(items.class_names, int(found.classes[row])),
        score=float(found.scores[row]),
        distance=int(distance),
        row=int(row),
    )


def _labels(items: CodeSet, row: int) -> tuple[str, ...] | None:
    if items.labels is None:
        return None
    classes = np.flatnonzero(items.labels[row]).tolist()
    return tuple(name_of_class(items.class_names, i) for i in classes)
