"""Answers that are restricted to a class, or grouped by class."""

import os
from dataclasses import replace

import numpy as np
import pytest

from index_oracle import MEMORY_ENGINES, STORED_ENGINES
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import Query
from searching import (
    BITS,
    BOX,
    CLASSES,
    INSTANCE_BITS,
    distances_to,
    make_items,
    queries,
    search_by_class,
    search_index,
    sort_pairs,
)


@pytest.fixture(params=["faiss", "numpy"])
def folder(request, tmp_path):
    return write_index_folder(tmp_path / "index", make_items(), engine=request.param)


@pytest.fixture(params=[*MEMORY_ENGINES, *STORED_ENGINES])
def any_engine(request):
    """The options of a folder, for every engine."""
    if request.param == "milvus":
        uri = request.getfixturevalue("milvus_uri")
        return {"engine": "milvus", "uri": uri, "collection": f"c{os.urandom(8).hex()}"}
    return {"engine": request.param} | ({"shard_rows": 90} if request.param == "shards" else {})


def test_answers_by_class(folder):
    """The images in which a detection is of the class, sorted by (distance, row)."""
    items, found = folder.items, folder.items.instances
    query = Query("q.jpg", queries(1, BITS), classes=("sofa", "cat"))
    results = search_by_class(folder, query, 6)
    assert [result.class_name for result in results] == ["sofa", "cat"]
    distances = distances_to(query.codes[0], items.codes, BITS)
    for result in results:
        holders = set(found.image_index[found.classes == CLASSES.index(result.class_name)])
        allowed = [row in holders for row in range(len(items))]
        rows = [(answer.distance, answer.row) for answer in result.answers]
        assert rows == sort_pairs(distances, allowed, 6)
    assert results[0].answers != results[1].answers
    assert search_by_class(folder, replace(query, classes=())) == []


def test_answers_by_class_are_reranked(folder):
    activation = np.random.default_rng(2).random(BITS).astype(np.float32)
    query = Query("q.jpg", queries(1, BITS), activation=activation, classes=("cat", "dog"))
    for result in search_by_class(folder, query, 6, 20):
        assert result == search_index(folder, query, 6, result.class_name, 20)
        assert result.answers[0].fine_distance is not None


def test_objects_of_a_class_on_every_engine(tmp_path, any_engine):
    items = make_items(found=400)
    folder = write_index_folder(tmp_path / "index", items, **any_engine)
    query = Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,))
    found = items.instances
    distances = distances_to(query.codes[0], found.codes, INSTANCE_BITS)
    for number, name in enumerate(CLASSES):
        for topk in (5, 400):
            result = search_index(folder, query, topk, name, all_objects=True)
            rows = [(answer.distance, answer.objects[0].row) for answer in result.answers]
            assert rows == sort_pairs(distances, found.classes == number, topk)


def test_a_filter_is_not_exhausted_by_nearer_codes_of_other_classes(tmp_path, any_engine):
    items = make_items(found=300)
    items.instances.codes[:] = 0
    items.instances.classes[:] = 1
    last = np.arange(290, 300)
    items.instances.codes[last] = 0xF0
    items.instances.classes[last] = 0
    folder = write_index_folder(tmp_path / "index", items, **any_engine)
    query = Query("q.jpg", np.zeros((1, 2), np.uint8), (BOX,))
    result = search_index(folder, query, 4, "cat", all_objects=True)
    assert [answer.objects[0].row for answer in result.answers] == [290, 291, 292, 293]


def test_unknown_classes(tmp_path):
    query = Query("q.jpg", queries(1, BITS))
    for class_names, message in (
        (CLASSES, "class 'cow' is not known: use one of cat, dog, sofa"),
        ([], "class 'cow' is not known: use one of the numbers of classes, which have no names"),
    ):
        items = make_items(class_names=class_names)
        folder = write_index_folder(tmp_path / "index", items, engine="numpy")
        with pytest.raises(ValueError, match=message):
            search_index(folder, query, 3, "cow")
    # Without names a class is called by its number, and is asked for by it, too.
    asked = replace(query, classes=("2", "0"))
    for result in search_by_class(folder, asked, 60):
        chosen = items.instances.classes == int(result.class_name)
        expected = set(items.instances.image_index[chosen].tolist())
        assert {answer.row for answer in result.answers} == expected
    result = search_index(folder, Query("q.jpg", queries(1, INSTANCE_BITS), (BOX,)), 1)
    (one,) = result.answers[0].objects
    assert one.class_name == str(items.instances.classes[one.row])
