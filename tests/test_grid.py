"""Grids: the right images, frames, names and reasons in the right places."""

import os

import numpy as np
import pytest
from PIL import Image

from pictures import plain
from regiondh_d2.data.image_reader import UnreadableImage
from regiondh_d2.visualization.draw import BLUE, GREEN, RED
from regiondh_d2.visualization.grid import AbsentPicture, GridLayout, Tile, draw_grid, why_absent

LAYOUT = GridLayout(box=(60, 40))


def test_pixels_of_frames_and_images():
    rows = [
        [Tile(plain((1, 2, 3)), frame=BLUE), Tile(plain((9, 9, 9)), frame=GREEN)],
        [Tile(plain((4, 5, 6)), frame=BLUE)],
        [Tile(plain((7, 8, 9)), frame=BLUE), Tile(plain((7, 7, 7)), "x", [("y", True)], RED)],
    ]
    picture = draw_grid(rows, "title", LAYOUT)
    assert picture.mode == "RGB"
    assert picture.size == LAYOUT.size(3, 2)
    (width, height), frame = LAYOUT.box, LAYOUT.frame
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            left, top = LAYOUT.corner(i, j)
            right, bottom = left + width + 2 * frame - 1, top + height + 2 * frame - 1
            corners = [(left, top), (right, top), (left, bottom), (right, bottom)]
            inside = [(left + frame, top + frame), (right - frame, bottom - frame)]
            assert {picture.getpixel(p) for p in corners} == {tile.frame}
            assert {picture.getpixel(p) for p in inside} == {tile.image.getpixel((0, 0))}
            assert picture.getpixel((left - 1, top)) == (255, 255, 255)
    left, top = LAYOUT.corner(1, 1)  # no tile there
    assert picture.getpixel((left + 20, top + 20)) == (255, 255, 255)


def test_aspect_is_kept_and_the_frame_hugs_the_image():
    upright = Image.new("RGB", (20, 40), (9, 9, 9))
    picture = draw_grid([[Tile(upright, frame=RED)]], layout=LAYOUT)
    left, top = LAYOUT.corner(0, 0)
    y = top + LAYOUT.frame + 20
    line = [picture.getpixel((left + x, y)) for x in range(60 + 2 * LAYOUT.frame)]
    assert line == (
        [(255, 255, 255)] * 20
        + [RED] * LAYOUT.frame
        + [(9, 9, 9)] * 20
        + [RED] * LAYOUT.frame
        + [(255, 255, 255)] * 20
    )


def test_text_stays_inside_its_tile():
    names = [(f"class number {i}", i % 2 == 0) for i in range(30)]
    tile = Tile(plain((0, 0, 0)), "a caption that is far too long for a tile", names, GREEN)
    picture = np.asarray(draw_grid([[tile]], layout=LAYOUT))
    left, top = LAYOUT.corner(0, 0)
    width, height = LAYOUT.tile
    assert (picture[top + height - LAYOUT.text : top + height, left : left + width] < 255).any()
    blank = picture.copy()
    blank[top : top + height, left : left + width] = 255
    assert (blank == 255).all()


def test_tiles_carry_the_names_of_their_files(tmp_path):
    """Any name: its last part, escaped, in a line that its tile holds."""
    path = tmp_path / "a.png"
    plain((0, 0, 0)).save(path)
    undecodable = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\n\x1b[31m.png")
    for tile, name in (
        (Tile(path), str(path)),
        (Tile(undecodable), undecodable),
        (Tile(AbsentPicture("x/y.png", "gone")), "x/y.png"),
        (Tile(plain((0, 0, 0)), file_name="x/\u4e16.png"), "x/\u4e16.png"),
        (Tile(plain((0, 0, 0))), ""),
    ):
        assert tile.name == name
        picture = np.asarray(draw_grid([[tile]], layout=LAYOUT))
        left, top = LAYOUT.corner(0, 0)
        line = picture[top + LAYOUT.tile[1] - LAYOUT.text + 25 :, left:]
        assert (line < 255).any() == bool(name)


def gray_share(picture, row, column):
    """How much of a tile's box is the gray of an image that is absent."""
    left, top = (at + LAYOUT.frame for at in LAYOUT.corner(row, column))
    box = np.asarray(picture)[top : top + LAYOUT.box[1], left : left + LAYOUT.box[0]]
    return (box == (203, 207, 212)).all(axis=2).mean()


def test_an_image_that_cannot_be_drawn_is_a_gray_tile(tmp_path):
    """Whatever is wrong with it, the others are drawn, and the tile has name and reason."""
    bomb = tmp_path / "a folder.png"
    bomb.mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    good = tmp_path / "good.png"
    plain((1, 2, 3)).save(good)
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:50])
    undecodable = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\n\x1b[31m.png")
    bad = [tmp_path / "gone.png", bomb, *(tmp_path / n for n in ("empty.png", "text.jpg"))]
    bad += [tmp_path / "half.png", undecodable, AbsentPicture("x.png", "left out")]
    picture = draw_grid([[Tile(good), *map(Tile, bad)]], layout=LAYOUT)
    left, top = LAYOUT.corner(0, 0)
    assert picture.getpixel((left + 20, top + 20)) == (1, 2, 3)
    assert gray_share(picture, 0, 0) == 0
    for column in range(1, len(bad) + 1):
        assert 0.5 < gray_share(picture, 0, column) < 0.99, bad[column - 1]


def test_an_image_is_read_with_the_limit_of_its_tile(tmp_path):
    """A larger one is a gray tile, a larger JPEG is read at a smaller size."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8))
    for name in ("a.png", "a.jpg"):
        picture.save(tmp_path / name)
    for limit, share in ((120 * 80, 0), (120 * 80 - 1, 0.5)):
        tiles = [Tile(tmp_path / name, max_pixels=limit) for name in ("a.png", "a.jpg")]
        drawn = draw_grid([tiles], layout=LAYOUT)
        assert gray_share(drawn, 0, 0) >= share
        assert (gray_share(drawn, 0, 0) > 0) == bool(share)
        assert gray_share(drawn, 0, 1) == 0
    whole, half = (Tile(tmp_path / "a.jpg", max_pixels=n).fit((120, 80)) for n in (9600, 2400))
    assert np.asarray(whole).std() > 1.2 * np.asarray(half).std()  # its details are gone


def test_the_reason_for_a_gray_tile():
    assert why_absent(FileNotFoundError(2, "No such file or directory", "x")) == (
        "No such file or directory"
    )
    assert why_absent(UnreadableImage("x.png", "the file is empty")) == "the file is empty"
    assert why_absent(ValueError("a\nb")) == "a\\nb"
    assert why_absent(MemoryError()) == "MemoryError"


def test_nothing_to_draw():
    for rows in ([], [[]]):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw_grid(rows)
