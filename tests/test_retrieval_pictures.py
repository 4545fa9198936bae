"""Retrieval as pictures: the right neighbors, frames and names, and rows of several methods."""

import numpy as np
import pytest
from PIL import Image

from pictures import plain
from regiondh_d2.config import DEFAULT_MAX_PIXELS
from regiondh_d2.retrieval.search import Answer, SearchResult
from regiondh_d2.structures.codes import CodeFileError, CodeSet
from regiondh_d2.structures.packed import pack_codes
from regiondh_d2.visualization.draw import BLUE, GRAY, GREEN, RED
from regiondh_d2.visualization.grid import AbsentPicture, GridLayout, Tile
from regiondh_d2.visualization.retrieval_pictures import (
    compare_methods,
    retrieval_rows,
    search_tiles,
)


def code_set(codes, labels, files, **more):
    return CodeSet(
        codes=pack_codes(np.array(codes)),
        bits=len(codes[0]),
        image_ids=[str(i) for i in range(len(codes))],
        file_names=files,
        labels=None if labels is None else np.array(labels, np.uint8),
        class_names=["cat", "dog", "sofa"],
        **more,
    )


@pytest.fixture
def files(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, path in enumerate(paths):
        plain((0, 0, 60 * i)).save(path)
    return paths


@pytest.fixture
def sides(files):
    """One query and a database at distances 2, 0, 1, 0."""
    query = code_set([[1, 1, 0, 0]], [[1, 0, 1]], files[:1])
    database = code_set(
        [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]],
        [[0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 1, 1]],
        files,
    )
    return query, database


def test_rows_carry_rank_relevance_and_names(sides, files):
    query, *results = retrieval_rows(*sides, [0], topk=3)[0]
    assert query == Tile(files[0], "query", [("cat", True), ("sofa", True)], BLUE)
    assert [r.image for r in results] == [files[1], files[3], files[2]]
    assert [r.caption for r in results] == ["distance 0", "distance 0", "distance 1"]
    assert [r.frame for r in results] == [GREEN, GREEN, RED]
    assert results[1].names == [("cat", True), ("sofa", True), ("dog", False)]
    assert results[2].names == [("dog", False)]


def test_rows_without_the_query_itself(sides, files):
    (tiles,) = retrieval_rows(*sides, [0], topk=4, exclude=np.array([[0, 1], [3, 2]]))
    assert [tile.image for tile in tiles[1:]] == [files[3], files[2], files[0]]


def test_unknown_labels_are_gray(sides):
    query, database = sides
    query.labels = None
    assert [t.frame for t in retrieval_rows(query, database, [0], 2)[0]] == [BLUE, GRAY, GRAY]
    database.labels = None
    assert retrieval_rows(query, database, [0], 2)[0][1].names == []


def test_codes_of_two_models_are_refused(sides):
    query, database = sides
    query.model_fingerprint, database.model_fingerprint = "a", "b"
    with pytest.raises(CodeFileError, match="same model"):
        retrieval_rows(query, database, [0])


def test_images_are_read_with_the_limit_of_their_code_file(sides):
    query, database = sides
    query.settings = "MODEL.REGION_DH.MAX_PIXELS 1234\n"
    first, *others = retrieval_rows(query, database, [0])[0]
    assert first.max_pixels == 1234
    assert {tile.max_pixels for tile in others} == {DEFAULT_MAX_PIXELS}
    database.settings = "MODEL.REGION_DH.MAX_PIXELS 99"
    assert {tile.max_pixels for tile in retrieval_rows(query, database, [0])[0][1:]} == {99}


def test_a_search_is_drawn_with_a_given_limit(files):
    """An image above it costs no other image."""
    plain((1, 2, 3), 61, 40).save(files[1])
    answers = tuple(Answer(i, str(i), files[i], i, None, ()) for i in (1, 2))
    result = SearchResult(files[0], (), None, None, 8, 3, answers)
    query, large, other = search_tiles(result, 60 * 40)
    assert query.image.size == other.image.size == (60, 40)
    assert isinstance(large.image, AbsentPicture)
    assert "61 x 40 are more than MODEL.REGION_DH.MAX_PIXELS 2400" in large.image.reason
    assert search_tiles(result)[1].image.size == (61, 40)


def test_several_methods_answer_the_same_queries(tmp_path):
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(files):
        Image.new("RGB", (60, 40), (0, 0, 80 * i)).save(path)
    query = code_set([[0, 0], [1, 1]], [[1, 0, 0], [0, 1, 0]], files[:2])
    near = code_set([[0, 0], [0, 1], [1, 1]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], files)
    far = code_set([[1, 1], [0, 1], [0, 0]], near.labels, files)
    picture = compare_methods({"A": (query, near), "B": (query, far)}, ["1", "0"], 2)
    layout = GridLayout()
    assert picture.size == layout.size(4, 3)

    def frame(row, column):
        left, top = layout.corner(row, column)
        middle = left + layout.frame + layout.box[0] // 2
        strip = [picture.getpixel((middle, top + y)) for y in range(layout.frame + layout.box[1])]
        return next(color for color in strip if color != (255, 255, 255))

    # Query 1 (dog) by A: items 2, 1; by B: 0, 1. Query 0 (cat) by A: 0, 1; by B: 2, 1.
    expected = [[RED, GREEN], [RED, GREEN], [GREEN, RED], [RED, RED]]
    assert [[frame(row, column) for column in (1, 2)] for row in range(4)] == expected

    with pytest.raises(CodeFileError, match="B has no query '7'"):
        compare_methods({"B": (query, far)}, ["7"])
