"""Does an answer to an object query show the object where it says that it does?

An image that shows the wanted class may have been found by another thing in it. Here an answer
counts only if the box of its nearest object overlaps a true object of the class, at an IoU of at
least 0.5. The measure is the average precision of detection: the precisions at such answers, summed
and divided by the number of images that show the class. So both an object that was not detected and
an answer with the wrong box cost. It is at most the ``MAP_all`` of the same ranking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

from ..structures.codes import CodeSet, InstanceCodes

__all__ = ["TrueObjects", "expected_precisions", "overlapped_classes", "placed_precisions"]

_IOU = 0.5  # as in box AP50


@dataclass
class TrueObjects:
    """Annotated objects of images.

    Attributes:
        image_index: int64 (T,), row of the image.
        boxes: float32 (T, 4), XYXY in pixels of the original image.
        classes: int64 (T,).
    """

    image_index: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


def overlapped_classes(detected: InstanceCodes, true: TrueObjects, num_classes: int) -> np.ndarray:
    """The classes of the true objects that each detection overlaps, bool (M, num_classes).

    Args:
        detected: in some images.
        true: in the same images.
        num_classes: C.
    """
    overlapped = np.zeros((len(detected.codes), num_classes), bool)
    for image in np.unique(true.image_index):
        rows = np.flatnonzero(detected.image_index == image)
        mine = np.flatnonzero(true.image_index == image)
        overlap = pairwise_iou(_boxes(detected.boxes[rows]), _boxes(true.boxes[mine])).numpy()
        met, objects = np.nonzero(overlap >= _IOU)
        overlapped[rows[met], true.classes[mine][objects]] = True
    return overlapped


def placed_precisions(
    nearest: Callable[[int], tuple[np.ndarray, np.ndarray]],
    classes: np.ndarray,
    database: CodeSet,
    overlapped: np.ndarray,
    excluded: list[np.ndarray],
) -> np.ndarray:
    """The measure of this module for each query.

    Args:
        nearest: from the number of a query to the distance of each image, int (N,), by which they
            are ranked, and the row of the nearest object in it, int (N,), -1 where there is none.
        classes: int (Q,), what the queries show.
        database: with labels.
        overlapped: of its detections, see :func:`overlapped_classes`.
        excluded: for each query the rows that it doesn't rank.

    Returns:
        float64 (Q,), expectations over the order of equal distances; NaN for a query without
        relevant image.
    """
    labels = database.column("labels").astype(bool)
    result = np.full(len(classes), np.nan)
    for query, wanted in enumerate(classes):
        ranked = np.ones(len(database), bool)
        ranked[excluded[query]] = False
        relevant = labels[:, wanted] & ranked
        if not relevant.any():
            continue
        distances, rows = nearest(query)
        placed = relevant & (rows >= 0)
        placed[placed] = overlapped[rows[placed], wanted]
        cells = 2 * distances[ranked] + placed[ranked]
        counts = np.bincount(cells, minlength=2 * (int(distances.max()) + 1)).reshape(-1, 2)
        result[query] = expected_precisions(counts) / relevant.sum()
    return result


def expected_precisions(counts: np.ndarray) -> float:
    """The sum of the precisions at all hits, expected over the order of items at equal distance.

    At the j-th of the m items at a distance, behind M nearer ones with R hits, there is a hit with
    probability r / m, where r of them are hits; then R + 1 + (j - 1) (r - 1) / (m - 1) hits are
    expected up to it.

    Args:
        counts: int (D, 2), the items at each distance, and how many of these: misses, hits.
    """
    size, hits = counts.sum(axis=1), counts[:, 1]
    size, hits = size[hits > 0], hits[hits > 0]
    before = (np.cumsum(counts.sum(axis=1)) - counts.sum(axis=1))[counts[:, 1] > 0]
    hits_before = np.cumsum(hits) - hits
    harmonic = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, counts.sum() + 1))))
    inverse = harmonic[before + size] - harmonic[before]  # sum over j of 1 / (M + j)
    further = size - (before + 1) * inverse  # sum over j of (j - 1) / (M + j)
    slope = (hits - 1) / np.maximum(size - 1, 1)
    return float((hits / size * ((hits_before + 1) * inverse + slope * further)).sum())


def _boxes(corners: np.ndarray) -> Boxes:
    return Boxes(torch.from_numpy(np.asarray(corners, np.float32)))
