"""Groups by complete linkage, against a loop over all pairs of groups."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from regiondh_d2.retrieval.groups import Group, complete_linkage, group_photos
from regiondh_d2.structures.packed import pack_codes
from searching import make_items


def plain_linkage(bits, max_distance, max_size):
    """Joins the nearest two groups by the definition, until none may be joined."""

    def distance(a, b):
        return max(int((bits[i] != bits[j]).sum()) for i in a for j in b)

    groups = [[i] for i in range(len(bits))]
    while True:
        pairs = [
            (distance(a, b), a[0], b[0], a, b)
            for a, b in combinations(sorted(groups), 2)
            if len(a) + len(b) <= (max_size or len(bits))
        ]
        pairs = [pair for pair in pairs if pair[0] <= max_distance]
        if not pairs:
            break
        *_, a, b = min(pairs)
        groups = [g for g in groups if g not in (a, b)] + [sorted(a + b)]
    return sorted(
        (g, max(distance([i], [j]) for i, j in combinations(g, 2))) for g in groups if len(g) > 1
    )


@pytest.mark.parametrize("max_size", [None, 1, 2, 3, 5])
@pytest.mark.parametrize("max_distance", [-1, 0, 2, 4, 9])
def test_against_the_definition(max_distance, max_size):
    rng = np.random.default_rng(max_distance + 1)
    bits = rng.random((40, 12)) < 0.3
    bits[30:34] = bits[2]
    expected = plain_linkage(bits, max_distance, max_size)
    assert complete_linkage(pack_codes(bits), max_distance, max_size) == expected
    if max_distance > 0 and max_size != 1:
        assert len(expected) >= 2


def test_long_codes():
    rng = np.random.default_rng(0)
    bits = (rng.random((6, 300)) < 0.5)[np.arange(24) % 6] ^ (rng.random((24, 300)) < 0.05)
    found = complete_linkage(pack_codes(bits), 60)
    assert found == plain_linkage(bits, 60, None)
    assert [members for members, _ in found] == [list(range(i, 24, 6)) for i in range(6)]


def test_many_codes_in_one_part():
    """A chain: every code has a neighbor, so all are one part."""
    bits = np.tril(np.ones((250, 250), bool), -1)
    found = complete_linkage(pack_codes(bits), 4)
    assert {len(members) for members, _ in found} <= {2, 3, 4, 5}
    assert sorted(i for members, _ in found for i in members) == list(range(250))
    assert all(members[-1] - members[0] == diameter <= 4 for members, diameter in found)
    assert complete_linkage(pack_codes(bits[:0]), 4) == []


def test_copies_stand_beside_the_groups():
    codes = make_items().codes.copy()
    contents = np.random.default_rng(0).integers(1, 256, (60, 32), dtype=np.uint8)
    codes[:] = pack_codes(np.random.default_rng(0).random((60, 20)) < 0.5)
    codes[[4, 5, 9, 20, 33]] = codes[4]
    contents[[9, 20]] = contents[4]
    items = replace(make_items(content_sha256=contents), codes=codes)
    found = group_photos(items, 0)
    assert found.copies == {4: (9, 20)}
    assert found.groups[0] == Group((4, 5, 33), 0)
    without = group_photos(items, 0, rows=[5, 9, 20, 33, 40])
    assert without.copies == {9: (20,)}
    assert without.groups == (Group((5, 9, 33), 0),)
    sizes = [len(group.rows) for group in group_photos(items, 5).groups]
    assert sizes == sorted(sizes, reverse=True)
