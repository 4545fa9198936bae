"""Groups of photos that show the same, by complete linkage of their codes.

Each photo starts alone. Then the two groups are joined whose farthest photos are nearest to each
other, again and again, as long as no two photos of a group are further apart than the largest
distance, and no group is larger than allowed. Of equally near pairs the one with the first rows is
joined, so the groups are always the same. Copies of a photo, see :mod:`.duplicates`, stand beside
the groups: the first one alone takes part.

Groups lie within connected parts of the graph of all pairs that are near enough. So memory is
needed for the pairs of one part at a time: n * n bytes for one of n photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..structures.codes import CodeSet
from ..structures.packed import to_words
from .duplicates import CopyFinder

__all__ = ["Group", "PhotoGroups", "complete_linkage", "group_photos"]

_BLOCK = 64  # rows that are compared with all others at once


@dataclass(frozen=True)
class Group:
    """Photos that show the same.

    Attributes:
        rows: of the index, ascending; at least two.
        diameter: the largest distance of two of them, in bits.
    """

    rows: tuple[int, ...]
    diameter: int


@dataclass(frozen=True)
class PhotoGroups:
    """What :func:`group_photos` finds.

    Attributes:
        groups: the largest first, then by their first row.
        copies: by the first row of a photo that there are copies of, the rows of these.
        note: a line about photos whose copies can't be told well, or "".
    """

    groups: tuple[Group, ...]
    copies: dict[int, tuple[int, ...]]
    note: str = ""


def group_photos(
    items: CodeSet,
    max_distance: int,
    max_size: int | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
) -> PhotoGroups:
    """The groups of indexed photos, with copies apart.

    Args:
        items: the indexed images.
        max_distance: of two photos of a group, in bits; below 0 there are no groups.
        max_size: the most photos of a group; None for any number.
        rows: int (R,), the photos to group, ascending; by default all.
    """
    rows = np.arange(len(items)) if rows is None else np.asarray(rows, np.int64)
    wanted = set(rows.tolist())
    finder = CopyFinder(items)
    copies: dict[int, tuple[int, ...]] = {}
    taken: set[int] = set()
    for row in rows.tolist():
        if row in taken:
            continue
        found = [x for x in finder.of(row).tolist() if x in wanted and x > row and x not in taken]
        if found:
            copies[row] = tuple(found)
            taken.update(found)
    kept = np.array([row for row in rows.tolist() if row not in taken], np.int64)
    groups = [
        Group(tuple(kept[members].tolist()), diameter)
        for members, diameter in complete_linkage(items.codes[kept], max_distance, max_size)
    ]
    groups.sort(key=lambda group: (-len(group.rows), group.rows[0]))
    return PhotoGroups(tuple(groups), copies, finder.note)


def complete_linkage(
    codes: np.ndarray, max_distance: int, max_size: int | None = None
) -> list[tuple[list[int], int]]:
    """The groups of two and more codes.

    Args:
        codes: packed uint8 (N, B).
        max_distance, max_size: as of :func:`group_photos`.

    Returns:
        Of each group its positions, ascending, and the largest distance of two of them, ordered by
        the first position.
    """
    found = []
    words = to_words(codes)
    limit = len(codes) if max_size is None else max_size
    for part in _connected_parts(words, max_distance):
        for members, diameter in _link(words[part], max_distance, limit):
            found.append((part[members].tolist(), diameter))
    return sorted(found)


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Between words uint64 (M, W) and (N, W): uint16 (M, N)."""
    total = np.zeros((len(some), len(others)), np.uint16)
    for column in range(some.shape[1]):
        total += np.bitwise_count(some[:, column, None] ^ others[:, column])
    return total


def _connected_parts(words: np.ndarray, max_distance: int) -> list[np.ndarray]:
    """Positions of each connected part of two and more codes, ascending."""
    parts: list[np.ndarray] = []
    if max_distance < 0:
        return parts
    left = np.arange(len(words))  # positions that no part has reached
    while len(left):
        part, waiting, left = [left[:1]], [left[:1]], left[1:]
        while waiting and len(left):
            rows = waiting.pop()
            if len(rows) > _BLOCK:
                waiting.append(rows[_BLOCK:])
                rows = rows[:_BLOCK]
            near = (_distances(words[rows], words[left]) <= max_distance).any(axis=0)
            if near.any():
                part.append(left[near])
                waiting.append(left[near])
                left = left[~near]
        whole = np.sort(np.concatenate(part))
        if len(whole) > 1:
            parts.append(whole)
    return parts


def _link(words: np.ndarray, max_distance: int, max_size: int) -> list[tuple[np.ndarray, int]]:
    """The groups of one part: positions in it, and the diameter."""
    count = len(words)
    bits = 64 * words.shape[1]
    kind = np.uint8 if bits < np.iinfo(np.uint8).max else np.uint16
    far = np.iinfo(kind).max
    # Of each group, which stands at its first position, to each other one; ``far`` is never joined.
    linked = np.empty((count, count), kind)
    for start in range(0, count, _BLOCK):
        block = _distances(words[start : start + _BLOCK], words)
        linked[start : start + _BLOCK] = np.where(block <= max_distance, block, far)
    np.fill_diagonal(linked, far)
    if max_size < 2:
        linked[:] = far
    members = [[i] for i in range(count)]
    sizes = np.ones(count, np.int64)
    diameter = np.zeros(count, np.int64)
    least = linked.min(axis=1)
    while True:
        first = int(least.argmin())
        if least[first] == far:
            break
        second = int(linked[first].argmin())  # is the larger one: the smaller would have come first
        diameter[first] = linked[first, second]
        members[first] += members[second]
        members[second] = []
        sizes[first] += sizes[second]
        sizes[second] = 0
        # Rows whose nearest may have been one of the two; distances only grow.
        touched = (linked[first] == least) | (linked[second] == least)
        joined = np.maximum(linked[first], linked[second])
        joined[sizes + sizes[first] > max_size] = far
        joined[[first, second]] = far
        linked[first] = linked[:, first] = joined
        linked[second] = linked[:, second] = far
        least[second] = far
        least[first] = joined.min()
        for row in np.flatnonzero(touched & (least != far)):
            least[row] = linked[row].min()
    return [
        (np.sort(np.array(group)), int(diameter[i]))
        for i, group in enumerate(members)
        if len(group) > 1
    ]
