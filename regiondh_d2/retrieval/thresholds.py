"""How near is "the same": a distance calibrated on the index itself.

Two photos in which the network sees no class in common are taken to show different things. Of
random pairs of such photos, the share that is no further apart than a distance is its rate of false
"same". The calibrated distance is the largest one whose rate is at most 1 %.

What that can't tell: photos without any detected object are in no pair. The network's classes are
all that is known of a photo, so photos of two different cats are no pair, and how often those count
as the same is not measured. And the rate is that of random pairs: of many photos compared with one
query, each has that chance to be a false answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..structures.codes import CodeSet
from ..utils.errors import RegionDHError

__all__ = [
    "AUTO",
    "MAX_RATE",
    "Threshold",
    "calibrate_distance",
    "calibrate_index",
    "check_distance",
]

AUTO = "auto"
"""Stands for the calibrated distance."""

MAX_RATE = 0.01

_PAIRS = 200_000
_LEAST_PAIRS = 100  # a rate of 1 % is one of them
_BLOCK = 100_000  # pairs drawn at once
_ROUNDS = 50


@dataclass(frozen=True)
class Threshold:
    """A distance up to which codes count as the same.

    Attributes:
        distance: in bits; -1 if even equal codes are too often false.
        rate: the share of the pairs that are as near, in [0, 1].
        pairs: how many pairs were compared.
    """

    distance: int
    rate: float
    pairs: int

    def __str__(self) -> str:
        return (
            f"distance {self.distance} by calibration: {self.rate:.2%} of {self.pairs} random "
            "pairs without a class in common are as near"
        )


def calibrate_distance(
    codes: np.ndarray,
    classes: np.ndarray,
    owner: np.ndarray | None = None,
    *,
    max_rate: float = MAX_RATE,
    max_pairs: int = _PAIRS,
) -> Threshold:
    """The largest distance at which at most ``max_rate`` of the pairs are false.

    A pair is two codes of different owners that have classes, and none in common. All pairs are
    compared if there are few codes, otherwise a random sample, the same one in every run.

    Args:
        codes: packed uint8 (N, B).
        classes: bool (N, C), which classes are seen in each.
        owner: int (N,), such as the photo of each object; by default each code is its own.
        max_rate: in [0, 1).
        max_pairs: how many pairs to compare at most.

    Raises:
        RegionDHError: there are fewer than 100 pairs.
    """
    owner = np.arange(len(codes)) if owner is None else owner
    known = np.flatnonzero(classes.any(axis=1))
    codes, classes, owner = codes[known], classes[known], owner[known]
    distances = _pair_distances(codes, classes, owner, max_pairs)
    if len(distances) < _LEAST_PAIRS:
        raise RegionDHError(
            f"no distance can be calibrated: the index has {len(distances)} pairs of photos without"
            f" a detected class in common, and {_LEAST_PAIRS} are needed; give a number of bits "
            "instead of auto"
        )
    rates = np.cumsum(np.bincount(distances)) / len(distances)
    distance = int(np.searchsorted(rates, max_rate, side="right")) - 1
    rate = float(rates[distance]) if distance >= 0 else 0.0
    return Threshold(distance, rate, len(distances))


def calibrate_index(
    items: CodeSet, granularity: str = "image", *, max_rate: float = MAX_RATE
) -> Threshold:
    """:func:`calibrate_distance` on what is indexed.

    Args:
        items: with detected objects, which tell the classes of a photo.
        granularity: "image"; or "instance", the codes of detected objects of different photos and
            classes.
        max_rate: as of :func:`calibrate_distance`.

    Raises:
        RegionDHError: nothing is known of the objects in the photos, or there are too few pairs.
    """
    found = items.instances
    if found is None:
        raise RegionDHError(
            "no distance can be calibrated: the index has no detected objects to know classes "
            "from; give a number of bits instead of auto"
        )
    count = max(len(items.class_names), int(found.classes.max(initial=-1)) + 1)
    if granularity == "instance":
        classes = np.zeros((len(found.codes), count), bool)
        classes[np.arange(len(found.codes)), found.classes] = True
        return calibrate_distance(found.codes, classes, found.image_index, max_rate=max_rate)
    classes = np.zeros((len(items), count), bool)
    classes[found.image_index, found.classes] = True
    return calibrate_distance(items.codes, classes, max_rate=max_rate)


def _pair_distances(
    codes: np.ndarray, classes: np.ndarray, owner: np.ndarray, max_pairs: int
) -> np.ndarray:
    """The distances of pairs, int64 (P,)."""
    count = len(codes)
    parts = [np.empty(0, np.int64)]

    def compare(first: np.ndarray, second: np.ndarray) -> None:
        fits = owner[first] != owner[second]
        fits &= ~(classes[first] & classes[second]).any(axis=1)
        xor = codes[first[fits]] ^ codes[second[fits]]
        parts.append(np.bitwise_count(xor).sum(axis=1, dtype=np.int64))

    if count * (count - 1) // 2 <= max_pairs:
        for row in range(count - 1):
            others = np.arange(row + 1, count)
            compare(np.full(len(others), row), others)
        return np.concatenate(parts)
    rng = np.random.default_rng(0)
    for _ in range(_ROUNDS):
        compare(*rng.integers(0, count, (2, _BLOCK)))
        if sum(map(len, parts)) >= max_pairs:
            break
    return np.concatenate(parts)[:max_pairs]


def check_distance(value: Any) -> None:
    """Check a largest distance that isn't "auto".

    Raises:
        RegionDHError: it is no whole number of at least 0.
    """
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not (0 <= value < math.inf and int(value) == value):
        raise RegionDHError(
            f"max_distance must be auto or a whole number of at least 0, not {value!r}"
        )
