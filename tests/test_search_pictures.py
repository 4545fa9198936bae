"""Pictures of a query and its answers."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.queries import Answer, FoundObject, Query, QueryObject, SearchResult
from regiondh_d2.structures.codes import CodeSet, InstanceCodes
from regiondh_d2.visualization.draw import (
    BLUE,
    BOX_COLORS,
    GRAY,
    GREEN,
    RED,
    draw_boxes,
)
from regiondh_d2.visualization.grid import draw_grid
from regiondh_d2.visualization.retrieval_pictures import search_tiles
from searching import BOX, CLASSES, search_index


@pytest.fixture
def pictures(tmp_path):
    """An index of four black images with two objects each, the second one a sofa."""
    names = [str(tmp_path / f"{i}.png") for i in range(4)]
    for name in names:
        Image.new("RGB", (120, 90)).save(name)
    items = CodeSet(
        codes=np.array([[0], [1], [3], [7]], np.uint8),
        bits=8,
        image_ids=names,
        file_names=names,
        labels=np.array([[1, 0, 1], [1, 1, 1], [0, 1, 0], [0, 1, 1]], np.uint8),
        class_names=CLASSES,
        instances=InstanceCodes(
            codes=np.array([[0], [255]] * 4, np.uint8),
            bits=8,
            image_index=np.repeat(np.arange(4), 2),
            boxes=np.tile([[10, 10, 50, 50], [60, 20, 110, 80]], (4, 1)).astype(np.float32),
            scores=np.full(8, 0.5, np.float32),
            classes=np.array([0, 2] * 4),
        ),
    )
    return write_index_folder(tmp_path / "index", items, engine="numpy")


def test_tiles_of_labeled_images(pictures):
    query = Query(pictures.items.file_names[0], pictures.items.codes[:1])
    tiles = search_tiles(search_index(pictures, query, 4))
    assert [tile.caption for tile in tiles] == ["query", *(f"distance {i}" for i in range(4))]
    assert [tile.frame for tile in tiles] == [BLUE, GREEN, GREEN, RED, GREEN]
    assert tiles[0].names == [("cat", True), ("sofa", True)]
    assert tiles[2].names == [("cat", True), ("sofa", True), ("dog", False)]
    assert {tile.image.getpixel((0, 0)) for tile in tiles} == {(0, 0, 0)}


def test_tiles_of_objects_have_boxes_and_neutral_frames(pictures, tmp_path):
    name = str(tmp_path / "other.png")
    Image.new("RGB", (120, 90)).save(name)
    codes = np.array([[0], [255]], np.uint8)
    objects = (
        QueryObject((10.0, 10.0, 50.0, 50.0), "cow", 0.5),
        replace(BOX, box=(60, 20, 110, 80)),
    )
    tiles = search_tiles(search_index(pictures, Query(name, codes, objects), 2))
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


def test_tiles_of_images_that_lack_objects(pictures):
    found = FoundObject((60.0, 20.0, 110.0, 80.0), "sofa", 0.5, 0, 1)
    answer = Answer(9, "0", pictures.items.file_names[0], 0, None, (None, found))
    result = SearchResult(answer.file_name, (BOX, BOX), None, None, 8, 8, (answer,))
    _, tile = search_tiles(result)
    assert tile.names == [("sofa", False)]
    assert tile.image.getpixel((110, 30)) == BOX_COLORS[1]


def test_boxes_are_drawn_on_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    Image.new("RGB", (120, 60)).save(tmp_path / "turned.png", exif=exif)
    image = draw_boxes(tmp_path / "turned.png", [None, (5, 70, 50, 110)])
    assert image.size == (60, 120)
    assert image.getpixel((5, 90)) == BOX_COLORS[1]
