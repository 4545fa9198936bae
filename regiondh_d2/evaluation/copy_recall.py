"""How often a copy of a photo finds the photo: recall at k, by codes and by finer orders.

A photo's copy searches all photos. Each order ranks them by a key: :data:`ORDERS`. What is equal by
the whole key is in random order, so that a recall is an expectation: with b photos before the
original and t photos equal to it, itself among them, it is one of the first k with the probability
(k - b) / t, cut off to [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..retrieval.second_stage import fine_distances
from ..structures.codes import CodeSet, check_holds

__all__ = ["ORDERS", "Place", "place_of_original", "recall"]

ORDERS = ("codes", "search", "rerank", "activations")
"""By distance of codes; as a search orders, by distance of codes, then by that of activations; as
one with a rerank of all photos by activations: by the distance of the copy's activations to the
photos' codes, then by that of activations; and by the distance of activations alone."""


@dataclass(frozen=True)
class Place:
    """Where a ranking has the original.

    Attributes:
        before: how many other photos come before it.
        equal: how many photos are equal by the key, the original among them.
    """

    before: int
    equal: int

    def recall(self, k: int) -> float:
        """The probability that the original is one of the first k."""
        return min(1.0, max(0.0, (k - self.before) / self.equal))


def place_of_original(
    code: np.ndarray, activation: np.ndarray, original: int, database: CodeSet
) -> dict[str, Place]:
    """The place of the original in each of :data:`ORDERS`.

    Photos with the content of the original are left out: they are the same photo.

    Args:
        code: uint8 (B,), packed, of the copy.
        activation: float (K,), of the copy.
        original: the photo's row in the database.
        database: codes of all photos, with activations.

    Raises:
        CodeFileError: the database has no activations.
    """
    check_holds(database, "the database codes", "activations")
    hamming = np.bitwise_count(database.codes ^ code).sum(axis=1, dtype=np.int64)
    rows = np.arange(len(database))
    to_codes = fine_distances(activation, database, rows, "activations")
    difference = activation.astype(np.float32) - database.column("activations")
    fine = np.vecdot(difference, difference)
    others = np.ones(len(database), bool)
    contents = database.content_sha256
    if contents is not None and contents[original].any():
        others = (contents != contents[original]).any(axis=1)
    others[original] = False
    keys = {
        "codes": (hamming,),
        "search": (hamming, fine),
        "rerank": (to_codes, fine),
        "activations": (fine,),
    }
    return {order: _place(key, original, others) for order, key in keys.items()}


def _place(keys: Sequence[np.ndarray], original: int, others: np.ndarray) -> Place:
    """The place by several keys, the first one decides first."""
    before = np.zeros(len(others), bool)
    equal = others.copy()
    for key in keys:
        before |= equal & (key < key[original])
        equal &= key == key[original]
    return Place(int(before.sum()), int(equal.sum()) + 1)


def recall(places: Sequence[Place], k: int) -> float:
    """The mean recall at k."""
    return float(np.mean([place.recall(k) for place in places]))
