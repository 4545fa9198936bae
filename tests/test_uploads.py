"""Uploaded photos are limited in number, bytes and hours."""

import numpy as np
import pytest

from regiondh_d2.retrieval.queries import Query
from regiondh_d2.web.decoder import DecodedImage, Picture
from regiondh_d2.web.limits import Limits
from regiondh_d2.web.uploads import UploadStore

QUERY = Query("", np.zeros((1, 1), np.uint8))


@pytest.fixture
def image():
    return DecodedImage(np.zeros((3, 10, 10), np.uint8), b"", Picture(b"x" * 99, 10, 10))


def test_each_has_an_id_that_nobody_guesses(image):
    store = UploadStore(Limits())
    ids = {store.add(image, QUERY, QUERY).id for _ in range(20)}
    assert len(ids) == 20
    assert min(map(len, ids)) >= 22  # 128 bits
    assert store.get(min(ids)).image is image
    assert store.get("other") is None


def test_they_expire(image):
    now = [0.0]
    store = UploadStore(Limits(upload_hours=2), lambda: now[0])
    first = store.add(image, QUERY, QUERY)
    assert first.expires == 7200
    now[0] = 7199
    second = store.add(image, QUERY, QUERY)
    assert store.get(first.id) is first
    now[0] = 7200
    assert store.get(first.id) is None
    assert store.get(second.id) is second
    assert len(store) == 1


@pytest.mark.parametrize("limits", [Limits(uploads=3), Limits(kept_bytes=3 * 400 + 10)])
def test_the_oldest_go_first(image, limits):
    store = UploadStore(limits)  # of 300 + 99 + 1 bytes each
    ids = [store.add(image, QUERY, QUERY).id for _ in range(5)]
    assert [store.get(one) is not None for one in ids] == [False, False, True, True, True]


def test_they_can_be_removed(image):
    store = UploadStore(Limits())
    upload = store.add(image, QUERY, QUERY)
    store.remove(upload.id)
    store.remove(upload.id)
    assert store.get(upload.id) is None
