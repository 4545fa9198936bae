"""What is drawn on images: boxes, their texts, captions; and the files of pictures."""

import numpy as np
import pytest
from PIL import Image

from pictures import plain
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.text import text_width
from regiondh_d2.visualization.draw import (
    BOX_COLORS,
    RED,
    Label,
    draw_above,
    draw_box,
    draw_boxes,
    draw_labels,
    fit_image,
    picture_format,
    save_image,
)

SKY, NIGHT = (90, 200, 250), (20, 20, 90)


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


def test_a_box_is_an_outline_inside_its_corners():
    picture = plain((0, 0, 0), 100, 80)
    draw_box(picture, (10, 20, 69, 59), SKY, 3)
    drawn = np.asarray(picture).any(axis=2)
    expected = np.zeros((80, 100), bool)
    expected[20:60, 10:70] = True
    expected[23:57, 13:67] = False
    np.testing.assert_array_equal(drawn, expected)
    swapped = plain((0, 0, 0), 100, 80)
    draw_box(swapped, (69, 59, 10, 20), SKY, 3)
    np.testing.assert_array_equal(np.asarray(swapped), np.asarray(picture))


@pytest.mark.parametrize("box", [(10, 20, 69, 59), (3, 3, 12, 40), (5, 5, 9, 8), (7, 7, 7, 7)])
def test_a_dashed_box_has_its_corners_and_gaps(box):
    """Also one of a few pixels, and never outside the whole one."""
    whole, dashed = plain((0, 0, 0), 100, 80), plain((0, 0, 0), 100, 80)
    draw_box(whole, box, SKY, 2)
    draw_box(dashed, box, SKY, 2, dashed=True)
    whole, dashed = (np.asarray(picture).any(axis=2) for picture in (whole, dashed))
    assert not (dashed & ~whole).any()
    x1, y1, x2, y2 = box
    assert dashed[[y1, y1, y2, y2], [x1, x2, x1, x2]].all()
    if x2 - x1 > 8:
        assert 0.4 < dashed[y1, x1 : x2 + 1].mean() < 0.95
        assert 0.4 < dashed[y1 : y2 + 1, x2].mean() < 0.95


def test_a_box_beyond_the_picture_is_cut_off():
    for dashed in (False, True):
        picture = plain((0, 0, 0), 40, 30)
        draw_box(picture, (-50, 10, 500, 400), SKY, 2, dashed)
        drawn = np.asarray(picture).any(axis=2)
        assert drawn[10:12].any()
        assert not drawn[:10].any()
        assert not drawn[12:].any()


def places_of(picture, colors):
    """The box XYXY around the pixels of each color."""
    pixels = np.asarray(picture)
    found = []
    for color in colors:
        rows, columns = np.nonzero((pixels == color).all(axis=2))
        found.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    return found


def test_texts_stand_above_their_boxes_and_not_on_each_other():
    """Five boxes at one place, and one below the upper edge, where there is no room above."""
    colors = [(200, 10 * i, 0) for i in range(5)]
    box, edge = (100, 100, 180, 160), (200, 0, 280, 60)
    picture = plain((255, 255, 255), 300, 300)
    labels = [Label("sofa", box, color) for color in colors]
    draw_labels(picture, [*labels, Label("sofa", edge, SKY)], 15)
    places = places_of(picture, [*colors, SKY])
    assert places[0][0] == 100
    assert places[0][3] == 100
    assert places[5][1] == 0
    for i, a in enumerate(places):
        assert 0 <= a[0] < a[2] <= 300
        assert 0 <= a[1] < a[3] <= 300
        for b in places[:i]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


@pytest.mark.parametrize(("color", "ink"), [(SKY, (33, 37, 41)), (NIGHT, (255, 255, 255))])
def test_a_text_stands_out_from_its_color(color, ink):
    picture = plain((128, 128, 128), 200, 100)
    draw_labels(picture, [Label("dog", (20, 50, 100, 90), color)], 16)
    pixels = np.asarray(picture).reshape(-1, 3)
    assert (pixels == color).all(axis=1).sum() > 300
    assert (pixels == ink).all(axis=1).sum() > 10


@pytest.mark.parametrize("text", ["x" * 300, "沙发" * 60, "a\nb\x1b[31m" * 20, "سلام 😀 " * 40])
def test_a_long_text_leaves_half_the_picture(text):
    for width in (20, 400):
        picture = plain((255, 255, 255), width, 100)
        draw_labels(picture, [Label(text, (width // 2, 40, width // 2 + 5, 60), SKY)], 15)
        drawn = np.flatnonzero((np.asarray(picture) != 255).any(axis=(0, 2)))
        if width > 100:
            assert len(drawn) < 0.6 * width


def test_a_caption_has_as_many_lines_as_it_needs():
    picture = plain((9, 9, 9), 480, 50)
    heights = []
    for count in (1, 20):
        framed = draw_above(picture, [f"class number {i}, " for i in range(count)], 18)
        assert framed.width == 480
        above = framed.height - 50
        assert framed.crop((0, above, 480, framed.height)).getcolors() == [(480 * 50, (9, 9, 9))]
        lines = np.asarray(framed)[:above].min(axis=2) < 128
        ink = np.flatnonzero(lines.any(axis=0))
        assert ink[0] > 5
        assert ink[-1] < 475
        heights.append(above)
    per_line = int(480 // text_width("class number 0, ", 18))
    assert heights[1] - heights[0] == pytest.approx((-(-20 // per_line) - 1) * 25, abs=26)


def test_a_long_part_of_a_caption_is_cut_in_its_middle():
    """So that the ending of a file's name is seen; a narrow picture gets a wider frame."""
    framed = [
        draw_above(plain((9, 9, 9), 1, 1), [name], 18)
        for name in ("a" * 500 + ".png", "a" * 500 + ".gnp", "a" * 600 + ".png")
    ]
    assert {picture.size for picture in framed} == {(450, framed[0].height)}
    png, other, longer = (np.asarray(picture)[:-1] for picture in framed)
    assert (png != other).any()
    assert (png == longer).all()
    assert not (png != other)[:, :300].any()


def test_names_of_picture_formats():
    assert [picture_format(f"a.{e}") for e in ("png", "JPG", "webp")] == ["PNG", "JPEG", "WEBP"]
    # Pillow reads PSD and HDF5 and writes none, and XBM has no colors.
    for name in ("a", "a.txt", "a.psd", ".png", "a.h5", "a.grib", "a.xbm"):
        with pytest.raises(RegionDHError, match=r"is no image format; use \.png"):
            picture_format(name)


def test_saved_complete_or_not_at_all(tmp_path):
    save_image(plain(RED), tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.size == (60, 40)
    with pytest.raises(ValueError, match=r"grid\.xyz.*use \.png"):
        save_image(plain(RED), tmp_path / "grid.xyz")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "gif", "tif"])
def test_a_full_disk_leaves_no_half_picture(ending, tmp_path, full_disk):
    path = tmp_path / f"grid.{ending}"
    save_image(plain(RED), path)
    size = path.stat().st_size
    path.unlink()
    for limit in (0, size // 2, size - 1):
        with full_disk(limit), pytest.raises(OSError, match="grid"):
            save_image(plain(RED), path)
        assert list(tmp_path.iterdir()) == []


def test_boxes_are_drawn_on_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    Image.new("RGB", (120, 60)).save(tmp_path / "turned.png", exif=exif)
    image = draw_boxes(tmp_path / "turned.png", [None, (5, 70, 50, 110)])
    assert image.size == (60, 120)
    assert image.getpixel((5, 90)) == BOX_COLORS[1]
