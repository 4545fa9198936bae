"""Is a search by an object's code better than one by the code of the whole image?

Every annotated object is a query, and the images of a database that hold its class are relevant to
it. The database is ranked by:

* **objects**: the distance of an image is that of the nearest object detected in it, by their
    codes (H1). An image without detections comes last, at distance K1 + 1.
* **images**: with the code (H2) of the object's image as the query.
* **blend**, if a weight is given: both distances together, see :mod:`..retrieval.blend`.

The rankings are measured over the whole database by the ``MAP_all`` of :mod:`.ranking_metrics`,
exact under ties, as a mean over all objects, over those in images of several classes, and over the
means of the classes. Where the true objects of the database are known, :mod:`.object_places` also
measures whether the answer's box is on one.

A search by objects can't find undetected objects, so the detector's recalls are reported, too. If
the object's own image is in the database, it is found first, unless such matches are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

from ..retrieval.blend import blend_keys, check_blend, hamming_distances, nearest_objects
from ..structures.code_checks import check_comparable
from ..structures.codes import CodeFileError, CodeSet, InstanceCodes, check_holds
from ..utils.errors import RegionDHError
from .object_places import TrueObjects, overlapped_classes, placed_precisions
from .ranking_metrics import TIE_ORDERS, RankingResult, evaluate_distances, evaluate_ranking
from .same_images import find_same_images

__all__ = [
    "RANKINGS",
    "check_object_queries",
    "class_recall",
    "evaluate_object_queries",
    "least_distances",
    "object_recall",
]

RANKINGS = ("objects", "images", "blend")
"""The rankings of a database; the last one only where a weight is given."""

_IOU = 0.5  # at which a detection counts for an object, as in box AP50


def evaluate_object_queries(
    query: CodeSet,
    objects: InstanceCodes,
    database: CodeSet,
    progress: Callable[[int, int], None] | None = None,
    *,
    exclude_self: bool = False,
    blend: float = 0.0,
    true_objects: TrueObjects | None = None,
) -> RankingResult:
    """Rank a database for annotated objects, by the codes of the objects and of their images.

    Args:
        query: codes of the objects' images, with labels and, as ``instances``, detections.
        objects: the annotated objects; ``image_index`` are rows of ``query``. Scores don't count.
        database: codes to search in, by the same model, with labels and detections.
        progress: called as ``progress(objects done, objects)`` after each chunk of objects.
        exclude_self: whether an object's own image is left out of its rankings.
        blend: the weight of the images' distance in the ranking "blend"; 0 for no such ranking.
        true_objects: the annotated objects of the database, for the measure of
            :mod:`.object_places`.

    Returns:
        ``metrics``, where ``<ranking>`` is one of :data:`RANKINGS` and ``<order>`` one of
        :data:`.ranking_metrics.TIE_ORDERS`:

        * ``<ranking>/MAP_all<order>``: the mean over the objects,
        * ``several_classes/<ranking>/MAP_all<order>``: over those in images of two or more labels;
            absent if there are none,
        * ``class_mean/<ranking>/MAP_all<order>``: the mean over classes of the means over objects,
        * ``where/<ranking>/MAP_all``, ``several_classes/where/...``, ``class_mean/where/...``: the
            measure of :mod:`.object_places` for "objects" and "blend", if ``true_objects`` are
            given,
        * ``num_queries``, ``several_classes/num_queries``: the numbers of these objects,
        * ``num_queries_without_relevant``: objects of a class that the database lacks, which count
            only in the recall,
        * ``num_queries_in_database``: how many objects are in an image of the database,
        * ``num_database``: how many images the database has,
        * ``query/object_recall``: see :func:`object_recall`,
        * ``query/class_recall``, ``database/class_recall``: see :func:`class_recall`.

        ``per_query`` holds ``<ranking>/MAP_all<order>`` of each object, NaN without relevant image,
        and ``where/<ranking>/MAP_all``.

    Raises:
        CodeFileError: see :func:`check_object_queries`.
        RegionDHError: see :func:`..retrieval.blend.check_blend`.
        ValueError: there are no objects, or none of a class that the database holds.
    """
    check_object_queries(query, objects, database)
    check_blend(blend)
    if not len(objects.codes):
        raise RegionDHError("there are no annotated objects to search with")
    labels = database.column("labels")
    wanted = np.eye(labels.shape[1], dtype=np.bool_)[objects.classes]
    same = find_same_images(query, database)
    own_rows = [same.rows_of(row) for row in objects.image_index]
    pairs = [(row, own) for row, rows in enumerate(own_rows) for own in rows]
    exclude = np.array(pairs, np.int64).reshape(-1, 2) if exclude_self else None

    ranks = _BlendedRanks(query, objects, database, blend) if blend else None

    def object_distances(rows: slice) -> np.ndarray:
        return np.stack([least_distances(code, database) for code in objects.codes[rows]])

    def blended_ranks(rows: slice) -> np.ndarray:
        assert ranks is not None
        return np.stack([ranks(row)[0] for row in range(*rows.indices(len(objects.codes)))])

    shared: dict[str, Any] = {"topk": len(database), "exclude": exclude}
    with warnings.catch_warnings():
        # A ranking without the object's own image is shorter than the database.
        warnings.simplefilter("ignore")
        found = {
            "objects": evaluate_distances(
                object_distances,
                wanted,
                labels,
                largest=database.objects().bits + 1,
                progress=progress,
                **shared,
            ),
            "images": evaluate_ranking(
                query.codes[objects.image_index],
                database.codes,
                wanted,
                labels,
                bits=database.bits,
                **shared,
            ),
        }
        if ranks is not None:
            found["blend"] = evaluate_distances(
                blended_ranks, wanted, labels, largest=ranks.largest, **shared
            )
    per_query = {
        f"{ranking}/MAP_all{order}": result.per_query[f"MAP_all@{len(database)}{order}"]
        for ranking, result in found.items()
        for order in TIE_ORDERS
    }
    if true_objects is not None:
        overlapped = overlapped_classes(database.objects(), true_objects, labels.shape[1])
        excluded = [rows if exclude_self else rows[:0] for rows in map(np.asarray, own_rows)]

        def placed(nearest: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
            return placed_precisions(nearest, objects.classes, database, overlapped, excluded)

        def nearest_of(row: int) -> tuple[np.ndarray, np.ndarray]:
            least, rows = nearest_objects(objects.codes[row], database.objects(), len(database))
            return least + (rows < 0), rows  # those without detection are last

        per_query["where/objects/MAP_all"] = placed(nearest_of)
        if ranks is not None:
            per_query["where/blend/MAP_all"] = placed(ranks)
    measurable = ~np.isnan(per_query["images/MAP_all"])

    several = measurable & (query.column("labels").sum(axis=1) > 1)[objects.image_index]
    metrics = _means(per_query, measurable)
    if several.any():
        means = _means(per_query, several)
        metrics |= {f"several_classes/{name}": value for name, value in means.items()}
    of_class = [measurable & (objects.classes == c) for c in range(labels.shape[1])]
    by_class = [_means(per_query, rows) for rows in of_class if rows.any()]
    for name in per_query:
        metrics[f"class_mean/{name}"] = float(np.mean([means[name] for means in by_class]))
    metrics |= {
        "num_queries": int(measurable.sum()),
        "several_classes/num_queries": int(several.sum()),
        "num_queries_without_relevant": int((~measurable).sum()),
        "num_queries_in_database": sum(len(rows) > 0 for rows in own_rows),
        "num_database": len(database),
        "query/object_recall": object_recall(objects, query.objects()),
        "query/class_recall": class_recall(query),
        "database/class_recall": class_recall(database),
    }
    return RankingResult(metrics, per_query)


def check_object_queries(query: CodeSet, objects: InstanceCodes, database: CodeSet) -> list[str]:
    """Check that :func:`evaluate_object_queries` can use these codes.

    Returns:
        Warnings, as :func:`~regiondh_d2.structures.code_checks.check_comparable` returns them.

    Raises:
        CodeFileError: labels or detections are missing, or the codes don't fit together.
    """
    check_holds(query, "the query codes", "labels", "instances")
    check_holds(database, "the database codes", "labels", "instances")
    notes = check_comparable(query, database)
    detected = database.objects()
    if objects.bits != detected.bits:
        raise CodeFileError(
            f"the objects have {objects.bits} bits and those of the database "
            f"{detected.bits}: encode both with the same model"
        )
    return notes


def least_distances(code: np.ndarray, database: CodeSet) -> np.ndarray:
    """The distance of an object to each image: to the nearest object detected in the image.

    Args:
        code: uint8 (B,), packed.
        database: with ``instances``.

    Returns:
        int64 (N,), K1 + 1 for images without a detection.
    """
    found = database.objects()
    least = np.full(len(database), found.bits + 1, np.int64)
    np.minimum.at(least, found.image_index, hamming_distances(code, found.codes))
    return least


class _BlendedRanks:
    """The ranks of blended distances: whole numbers from 0, equal for equal distances.

    Called with the number of an object it gives those of all images, int64 (N,), and the row of the
    nearest object in each, -1 where there is none.

    Attributes:
        largest: the largest rank that there could be.
    """

    def __init__(
        self, query: CodeSet, objects: InstanceCodes, database: CodeSet, weight: float
    ) -> None:
        self._query, self._objects, self._database = query, objects, database
        by_object, by_image = np.indices((database.objects().bits + 1, database.bits + 1))
        keys, ranks = np.unique(blend_keys(by_object, by_image, weight), return_inverse=True)
        self._ranks = ranks.reshape(by_object.shape)
        self.largest = len(keys) - 1

    def __call__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._database.objects()
        least, nearest = nearest_objects(self._objects.codes[row], found, len(self._database))
        image = self._query.codes[self._objects.image_index[row]]
        return self._ranks[least, hamming_distances(image, self._database.codes)], nearest


def object_recall(objects: InstanceCodes, detected: InstanceCodes) -> float:
    """The share of objects with a detection of their class at an IoU of at least 0.5.

    Args:
        objects: the true ones.
        detected: in the same images; one may count for several objects.
    """
    met = np.zeros(len(objects.codes), bool)
    for image in np.unique(objects.image_index):
        true = np.flatnonzero(objects.image_index == image)
        found = np.flatnonzero(detected.image_index == image)
        overlap = pairwise_iou(_boxes(objects, true), _boxes(detected, found)).numpy() >= _IOU
        same_class = objects.classes[true, None] == detected.classes[found]
        met[true] = (overlap & same_class).any(axis=1)
    return float(met.mean())


def class_recall(codes: CodeSet) -> float:
    """The share of all images' labels for which an object was detected in the image.

    Args:
        codes: with labels and ``instances``.
    """
    labels, objects = codes.column("labels"), codes.objects()
    found = np.zeros(labels.shape, bool)
    found[objects.image_index, objects.classes] = True
    return float(found[labels == 1].mean())


def _means(per_query: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, float]:
    return {name: float(values[rows].mean()) for name, values in per_query.items()}


def _boxes(instances: InstanceCodes, rows: np.ndarray) -> Boxes:
    return Boxes(torch.from_numpy(instances.boxes[rows]))
