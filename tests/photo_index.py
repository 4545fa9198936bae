"""Ten photos, an index of them, and the order in which they answer."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from builders import object_codes, photo_code_set
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import Query, QueryObject

BITS = 8
BOX = QueryObject((1.0, 2.0, 3.0, 4.0))
# Codes of the photos: how far each is from the code 0. There are four at distance 0.
DISTANCES = [1, 0, 2, 0, 3, 0, 0, 2, 1, 4]
ZERO = np.zeros((1, 1), np.uint8)


def code_at(distance):
    return (1 << distance) - 1


def make_photos(tmp_path):
    """A folder of ten photos; those of rows 3 and 6 are copies of each other."""
    for i in range(len(DISTANCES)):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo %d" % (3 if i == 6 else i))
    return tmp_path / "photos"


def path_of(root, i):
    return root / "ab"[i % 2] / f"{i}.jpg"


def make_items(root, **changes):
    """Each photo has two objects: one at the photo's distance, and one 3 further."""
    count = len(DISTANCES)
    objects = object_codes(
        np.array([[code_at(d + e)] for d in DISTANCES for e in (0, 3)], np.uint8),
        np.repeat(np.arange(count), 2),
        classes=np.tile([0, 1], count),
    )
    values = {
        "labels": np.eye(count, dtype=np.uint8)[:, :3],
        "class_names": ["cat", "dog", "sofa"],
        "instances": objects,
    }
    codes = np.array([[code_at(d)] for d in DISTANCES], np.uint8)
    files = [path_of(root, i) for i in range(count)]
    return photo_code_set(files, codes, roots=[root], **(values | changes))


def query_of(root, i, objects=0, **changes):
    """The query that is photo ``i``'s file, with the code 0 whatever the photo's own is."""
    name = str(path_of(root, i))
    values = {"activation": np.full(BITS, 0.1, np.float32)}
    if Path(name).exists():
        values["content_sha256"] = hashlib.sha256(Path(name).read_bytes()).digest()
    return Query(name, np.repeat(ZERO, max(1, objects), 0), (BOX,) * objects, **values | changes)


def rows(result):
    return [answer.row for answer in result.answers]


def expected_rows(itself=None, copy=None, without=()):
    """The oracle: rows by (distance, not same file, not same content, row)."""
    keys = [(d, i != itself, i != copy, i) for i, d in enumerate(DISTANCES) if i not in without]
    return [key[-1] for key in sorted(keys)]


SEARCHES = {
    "images": (0, {}),
    "reranked": (0, {"rerank": 4}),
    "reranked, all": (0, {"rerank": 99}),
    "one object": (1, {}),
    "several objects": (2, {}),
}


# Fixtures; a test module imports them by these names, and tests ask for them by those in quotes.


@pytest.fixture(name="root")
def photo_root(tmp_path):
    return make_photos(tmp_path)


@pytest.fixture(name="folder", params=["numpy", "faiss"])
def photo_folder(request, root, tmp_path):
    """An index folder of the photos, by each engine."""
    return write_index_folder(tmp_path / "index", make_items(root), engine=request.param)
