"""Retrieval grids: the right neighbors, the right colors in the right places."""

import os

import numpy as np
import pytest
from PIL import Image

from regiondh_d2.retrieval.images import UnreadableImage
from regiondh_d2.structures.codes import CodeFileError, CodeSet
from regiondh_d2.structures.packed import pack_codes
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.visualization.draw import (
    BLUE,
    GRAY,
    GREEN,
    RED,
    AbsentPicture,
    GridLayout,
    Tile,
    draw_grid,
    fit_image,
    picture_format,
    retrieval_rows,
    save_image,
    top_by_distance_then_row,
    why_absent,
)

LAYOUT = GridLayout(box=(60, 40))


def color(value):
    return Image.new("RGB", (60, 40), value)


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
        color((0, 0, 60 * i)).save(path)
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


def test_nearest_agrees_with_counting_bits_and_breaks_ties_by_row():
    rng = np.random.default_rng(0)
    query, database = rng.random((7, 12)) < 0.5, rng.random((40, 12)) < 0.5
    rows, distances = top_by_distance_then_row(pack_codes(query), pack_codes(database), 9)
    assert rows.shape == distances.shape == (7, 9)
    for q, found, at in zip(query, rows, distances, strict=True):
        ranked = sorted((int((q != d).sum()), i) for i, d in enumerate(database))[:9]
        assert list(zip(at.tolist(), found.tolist(), strict=True)) == ranked


def test_nearest_of_a_small_database():
    codes = np.array([[3], [1]], np.uint8)
    rows, distances = top_by_distance_then_row(codes[:1], codes, 5)
    assert rows.tolist() == [[0, 1]]
    assert distances.tolist() == [[0, 1]]


def test_nearest_without_excluded_rows():
    rng = np.random.default_rng(1)
    query, database = rng.random((6, 5)) < 0.5, rng.random((30, 5)) < 0.5
    out = rng.random((6, 30)) < 0.2
    rows, distances = top_by_distance_then_row(
        pack_codes(query), pack_codes(database), 8, np.argwhere(out)
    )
    for q, (found, at) in enumerate(zip(rows, distances, strict=True)):
        ranked = sorted((int((query[q] != d).sum()), i) for i, d in enumerate(database))
        ranked = [pair for pair in ranked if not out[q, pair[1]]][:8]
        assert list(zip(at.tolist(), found.tolist(), strict=True)) == ranked


def test_rows_without_the_query_itself(sides, files):
    (tiles,) = retrieval_rows(*sides, [0], topk=4, exclude=np.array([[0, 1], [3, 2]]))
    assert [tile.image for tile in tiles[1:]] == [files[3], files[2], files[0]]


def test_rows_carry_rank_relevance_and_names(sides, files):
    query, *results = retrieval_rows(*sides, [0], topk=3)[0]
    assert query == Tile(files[0], "query", [("cat", True), ("sofa", True)], BLUE)
    assert [r.image for r in results] == [files[1], files[3], files[2]]
    assert [r.caption for r in results] == ["distance 0", "distance 0", "distance 1"]
    assert [r.frame for r in results] == [GREEN, GREEN, RED]
    assert results[1].names == [("cat", True), ("sofa", True), ("dog", False)]
    assert results[2].names == [("dog", False)]


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


def test_pixels_of_frames_and_images():
    rows = [
        [Tile(color((1, 2, 3)), frame=BLUE), Tile(color((9, 9, 9)), frame=GREEN)],
        [Tile(color((4, 5, 6)), frame=BLUE)],
        [Tile(color((7, 8, 9)), frame=BLUE), Tile(color((7, 7, 7)), "x", [("y", True)], RED)],
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


def test_photographs_stand_upright(tmp_path):
    photo = Image.new("RGB", (40, 20), (255, 255, 255))
    photo.paste((0, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left of the pixels is the top of the picture
    photo.save(tmp_path / "photo.png", exif=exif)
    shown = fit_image(tmp_path / "photo.png", (40, 40))
    assert shown.size == (20, 40)
    assert shown.getpixel((10, 3)) == (0, 0, 0)
    assert shown.getpixel((10, 36)) == (255, 255, 255)


def test_text_stays_inside_its_tile():
    names = [(f"class number {i}", i % 2 == 0) for i in range(30)]
    tile = Tile(color((0, 0, 0)), "a caption that is far too long for a tile", names, GREEN)
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
    color((0, 0, 0)).save(path)
    undecodable = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\n\x1b[31m.png")
    for tile, name in (
        (Tile(path), str(path)),
        (Tile(undecodable), undecodable),
        (Tile(AbsentPicture("x/y.png", "gone")), "x/y.png"),
        (Tile(color((0, 0, 0)), file_name="x/\u4e16.png"), "x/\u4e16.png"),
        (Tile(color((0, 0, 0))), ""),
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
    color((1, 2, 3)).save(good)
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


def test_the_reason_for_a_gray_tile():
    assert why_absent(FileNotFoundError(2, "No such file or directory", "x")) == (
        "No such file or directory"
    )
    assert why_absent(UnreadableImage("x.png", "the file is empty")) == "the file is empty"
    assert why_absent(ValueError("a\nb")) == "a\\nb"
    assert why_absent(MemoryError()) == "MemoryError"


def test_names_of_picture_formats():
    assert [picture_format(f"a.{e}") for e in ("png", "JPG", "webp")] == ["PNG", "JPEG", "WEBP"]
    # Pillow reads PSD and HDF5 and writes none, and XBM has no colors.
    for name in ("a", "a.txt", "a.psd", ".png", "a.h5", "a.grib", "a.xbm"):
        with pytest.raises(RegionDHError, match=r"is no image format; use \.png"):
            picture_format(name)


def test_nothing_to_draw():
    for rows in ([], [[]]):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw_grid(rows)


def test_saved_complete_or_not_at_all(tmp_path):
    save_image(color(RED), tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.size == (60, 40)
    with pytest.raises(ValueError, match=r"grid\.xyz.*use \.png"):
        save_image(color(RED), tmp_path / "grid.xyz")

    class Broken:
        def save(self, path, format, **options):
            path.write_bytes(b"half")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_image(Broken(), tmp_path / "grid.png")
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
