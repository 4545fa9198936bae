"""Which queries are in the database: by content, file or id, and what is said of it."""

from types import SimpleNamespace

import numpy as np
import pytest

from regiondh_d2.evaluation.same_images import find_same_images


class Images(SimpleNamespace):
    def __len__(self):
        return len(self.image_ids)


def images(*rows):
    """Rows (id, file), or (id, file, content), where a content is a number, 0 if unknown."""
    contents = None
    if any(len(row) == 3 for row in rows):
        contents = np.zeros((len(rows), 32), np.uint8)
        contents[:, 0] = [(*row, 0)[2] for row in rows]
    return Images(
        image_ids=[row[0] for row in rows],
        file_names=[row[1] for row in rows],
        content_sha256=contents,
    )


@pytest.mark.parametrize(
    ("query", "database", "same"),
    [
        (("1", "a.jpg"), ("1", "a.jpg"), True),
        (("1", "a.jpg"), ("2", "a.jpg"), True),  # numbered anew
        (("1", "d/../a.jpg"), ("2", "./a.jpg"), True),
        (("1", "q/1.jpg"), ("1", "d/1.jpg"), False),  # both folders number from 1
        (("1", ""), ("1", "a.jpg"), True),
        (("1", "a.jpg"), ("1", ""), True),
        (("1", ""), ("1", ""), True),
        (("1", ""), ("2", ""), False),
        (("1", "a.jpg", 5), ("2", "copy of a.jpg", 5), True),
        (("1", "a.jpg", 5), ("1", "a.jpg", 6), False),  # edited between
        (("1", "", 5), ("1", "", 6), False),
        (("1", "a.jpg", 5), ("1", "a.jpg", 0), True),  # one content isn't known
        (("1", "a.jpg", 0), ("2", "b.jpg", 0), False),
        (("1", "a.jpg", 5), ("1", "a.jpg"), True),
    ],
)
def test_two_images(query, database, same):
    found = find_same_images(images(query), images(database))
    assert found.pairs.tolist() == ([[0, 0]] if same else [])
    assert found.num_queries_in_database == int(same)
    twice = find_same_images(images(("q", "q.jpg")), images(query, (*database, 0)[:3]))
    assert twice.repeated.tolist() == ([1] if same else [])


def test_pairs_and_notes():
    query = images(("0", "x.jpg"), ("1", "b.jpg"), ("2", "a.jpg"))
    database = images(("5", "a.jpg"), ("6", "b\n.jpg"), ("7", "a.jpg"), ("8", "b.jpg"))
    found = find_same_images(query, database)
    assert found.pairs.tolist() == [[1, 3], [2, 0], [2, 2]]
    assert found.rows_of(0).tolist() == []
    assert found.rows_of(2).tolist() == [0, 2]
    assert found.repeated.tolist() == [2]
    first, second = found.notes(False)
    assert first.startswith("2 of 3 queries are in the database and find themselves first")
    assert "--exclude-self" in first
    assert second.startswith("1 database images are there already")
    assert second.endswith("first a.jpg")
    assert found.notes(True) == [second]
    assert find_same_images(query, images(("9", "n.jpg"))).notes(False) == []
