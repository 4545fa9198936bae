"""Is a search by an object's code better than one by the code of the whole image?

Every annotated object is a query, and the images of a database that hold its class are relevant to
it. The database is ranked twice:

* by **objects**: the distance of an image is that of the nearest object detected in it, by their
    codes (H1). An image without detections comes last, at distance K1 + 1.
* by **images**: with the code (H2) of the object's image as the query.

Both rankings are measured over the whole database by the ``MAP_all`` of :mod:`.ranking_metrics`,
exact under ties. A search by objects can't find undetected objects, so the detector's recalls are
reported, too. If the object's own image is in the database, it is found first, unless such matches
are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

from ..structures.codes import CodeFileError, CodeSet, InstanceCodes, check_comparable, check_holds
from ..utils.errors import RegionDHError
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

RANKINGS = ("objects", "images")
"""The two rankings of a database."""

_IOU = 0.5  # at which a detection counts for an object, as in box AP50


def evaluate_object_queries(
    query: CodeSet,
    objects: InstanceCodes,
    database: CodeSet,
    progress: Callable[[int, int], None] | None = None,
    *,
    exclude_self: bool = False,
) -> RankingResult:
    """Rank a database for annotated objects, by the codes of the objects and of their images.

    Args:
        query: codes of the objects' images, with labels and, as ``instances``, detections.
        objects: the annotated objects; ``image_index`` are rows of ``query``. Scores don't count.
        database: codes to search in, by the same model, with labels and detections.
        progress: called as ``progress(objects done, objects)`` after each chunk of objects.
        exclude_self: whether an object's own image is left out of its rankings.

    Returns:
        ``metrics``, where ``<ranking>`` is one of :data:`RANKINGS` and ``<order>`` one of
        :data:`.ranking_metrics.TIE_ORDERS`:

        * ``<ranking>/MAP_all<order>``: the mean over the objects,
        * ``several_classes/<ranking>/MAP_all<order>``: over those in images of two or more labels;
            absent if there are none,
        * ``num_queries``, ``several_classes/num_queries``: the numbers of these objects,
        * ``num_queries_without_relevant``: objects of a class that the database lacks, which count
            only in the recall,
        * ``num_queries_in_database``: how many objects are in an image of the database,
        * ``num_database``: how many images the database has,
        * ``query/object_recall``: see :func:`object_recall`,
        * ``query/class_recall``, ``database/class_recall``: see :func:`class_recall`.

        ``per_query`` holds ``<ranking>/MAP_all<order>`` of each object, NaN without relevant image.

    Raises:
        CodeFileError: see :func:`check_object_queries`.
        ValueError: there are no objects, or none of a class that the database holds.
    """
    check_object_queries(query, objects, database)
    if not len(objects.codes):
        raise RegionDHError("there are no annotated objects to search with")
    labels = database.column("labels")
    wanted = np.eye(labels.shape[1], dtype=np.bool_)[objects.classes]
    same = find_same_images(query, database)
    own_rows = [same.rows_of(row) for row in objects.image_index]
    pairs = [(row, own) for row, rows in enumerate(own_rows) for own in rows]
    exclude = np.array(pairs, np.int64).reshape(-1, 2) if exclude_self else None

    def object_distances(rows: slice) -> np.ndarray:
        return np.stack([least_distances(code, database) for code in objects.codes[rows]])

    with warnings.catch_warnings():
        # A ranking without the object's own image is shorter than the database.
        warnings.simplefilter("ignore")
        found = {
            "objects": evaluate_distances(
                object_distances,
                wanted,
                labels,
                largest=database.objects().bits + 1,
                topk=len(database),
                exclude=exclude,
                progress=progress,
            ),
            "images": evaluate_ranking(
                query.codes[objects.image_index],
                database.codes,
                wanted,
                labels,
                bits=database.bits,
                topk=len(database),
                exclude=exclude,
            ),
        }
    per_query = {
        f"{ranking}/MAP_all{order}": found[ranking].per_query[f"MAP_all@{len(database)}{order}"]
        for ranking in RANKINGS
        for order in TIE_ORDERS
    }
    measurable = ~np.isnan(per_query["images/MAP_all"])

    several = measurable & (query.column("labels").sum(axis=1) > 1)[objects.image_index]
    metrics = _means(per_query, measurable)
    if several.any():
        means = _means(per_query, several)
        metrics |= {f"several_classes/{name}": value for name, value in means.items()}
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
        Warnings, as :func:`~regiondh_d2.structures.codes.check_comparable` returns them.

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
    distances = np.bitwise_count(found.codes ^ code).sum(axis=1, dtype=np.int64)
    least = np.full(len(database), found.bits + 1, np.int64)
    np.minimum.at(least, found.image_index, distances)
    return least


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
