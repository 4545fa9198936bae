"""Retrieval as pictures: the right neighbors, frames and names, and rows of several methods."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from builders import CLASS_NAMES, code_set, object_codes
from pictures import plain
from regiondh_d2.config import DEFAULT_MAX_PIXELS
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import Answer, FoundObject, Query, QueryObject, SearchResult
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.visualization.draw import BLUE, BOX_COLORS, GRAY, GREEN, RED
from regiondh_d2.visualization.grid import AbsentPicture, GridLayout, Tile, draw_grid
from regiondh_d2.visualization.retrieval_pictures import (
    compare_methods,
    retrieval_rows,
    search_tiles,
)
from searching import BOX, search_index


def make_codes(codes, labels, files, **more):
    values = {"file_names": files, "labels": labels, "class_names": list(CLASS_NAMES)}
    return code_set(np.array(codes, bool), **values, **more)


@pytest.fixture
def files(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, path in enumerate(paths):
        plain((0, 0, 60 * i)).save(path)
    return paths


@pytest.fixture
def sides(files):
    """One query and a database at distances 2, 0, 1, 0."""
    query = make_codes([[1, 1, 0, 0]], [[1, 0, 1]], files[:1])
    database = make_codes(
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
    query = make_codes([[0, 0], [1, 1]], [[1, 0, 0], [0, 1, 0]], files[:2])
    near = make_codes([[0, 0], [0, 1], [1, 1]], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], files)
    far = make_codes([[1, 1], [0, 1], [0, 0]], near.labels, files)
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


# Answers of a search


@pytest.fixture
def indexed(tmp_path):
    """An index of four black images with two objects each, the second one a sofa."""
    names = [str(tmp_path / f"{i}.png") for i in range(4)]
    for name in names:
        Image.new("RGB", (120, 90)).save(name)
    items = code_set(
        np.array([[0], [1], [3], [7]], np.uint8),
        names=names,
        labels=[[1, 0, 1], [1, 1, 1], [0, 1, 0], [0, 1, 1]],
        class_names=list(CLASS_NAMES),
        instances=object_codes(
            np.array([[0], [255]] * 4, np.uint8),
            np.repeat(np.arange(4), 2),
            boxes=np.tile([[10, 10, 50, 50], [60, 20, 110, 80]], (4, 1)).astype(np.float32),
            classes=np.array([0, 2] * 4),
        ),
    )
    return write_index_folder(tmp_path / "index", items, engine="numpy")


def test_tiles_of_labeled_images(indexed):
    query = Query(indexed.items.file_names[0], indexed.items.codes[:1])
    tiles = search_tiles(search_index(indexed, query, 4))
    assert [tile.caption for tile in tiles] == ["query", *(f"distance {i}" for i in range(4))]
    assert [tile.frame for tile in tiles] == [BLUE, GREEN, GREEN, RED, GREEN]
    assert tiles[0].names == [("cat", True), ("sofa", True)]
    assert tiles[2].names == [("cat", True), ("sofa", True), ("dog", False)]
    assert {tile.image.getpixel((0, 0)) for tile in tiles} == {(0, 0, 0)}


def test_tiles_of_objects_have_boxes_and_neutral_frames(indexed, tmp_path):
    name = str(tmp_path / "other.png")
    Image.new("RGB", (120, 90)).save(name)
    codes = np.array([[0], [255]], np.uint8)
    objects = (
        QueryObject((10.0, 10.0, 50.0, 50.0), "cow", 0.5),
        replace(BOX, box=(60, 20, 110, 80)),
    )
    tiles = search_tiles(search_index(indexed, Query(name, codes, objects), 2))
    assert [tile.frame for tile in tiles] == [BLUE, GRAY, GRAY]
    assert [tile.names for tile in tiles] == [
        [("cow", False)],
        *[[("cat", False), ("sofa", False)]] * 2,
    ]
    for tile in tiles:
        assert tile.image.getpixel((10, 30)) == BOX_COLORS[0]
        assert tile.image.getpixel((110, 30)) == BOX_COLORS[1]
        assert tile.image.getpixel((30, 30)) == (0, 0, 0)
    picture = np.asarray(draw_grid([tiles]))
    assert not (picture == RED).all(axis=2).any()  # no legend of colors that aren't used
    assert not (picture == GREEN).all(axis=2).any()


def test_tiles_of_images_that_lack_objects(indexed):
    found = FoundObject((60.0, 20.0, 110.0, 80.0), "sofa", 0.5, 0, 1)
    answer = Answer(9, "0", indexed.items.file_names[0], 0, None, (None, found))
    result = SearchResult(answer.file_name, (BOX, BOX), None, None, 8, 8, (answer,))
    _, tile = search_tiles(result)
    assert tile.names == [("sofa", False)]
    assert tile.image.getpixel((110, 30)) == BOX_COLORS[1]
