"""Text in pictures: each letter in a font that has it, or by its number, and never as a box."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from regiondh_d2.utils import text
from regiondh_d2.utils.text import (
    draw_text,
    drawable,
    fit_text,
    font_families,
    text_width,
    wrap_text,
)

INK = (33, 37, 41)


def make_font(path, letters, name):
    """A font file with these letters, each a square of its own height."""
    builder = FontBuilder(1000, isTTF=True)
    glyphs = {".notdef": 900, **{f"letter{ord(x)}": 300 + 50 * i for i, x in enumerate(letters)}}
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(x): f"letter{ord(x)}" for x in letters})
    shapes = {}
    for glyph, height in glyphs.items():
        pen = TTGlyphPen(None)
        pen.moveTo((50, 0))
        for point in ((50, height), (750, height), (750, 0)):
            pen.lineTo(point)
        pen.closePath()
        shapes[glyph] = pen.glyph()
    builder.setupGlyf(shapes)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (800, 50)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def machine(monkeypatch):
    """A function that gives the machine these font files beside Pillow's own and DejaVu Sans."""

    def clear():
        for cached in (text._fonts, text._source, text._font, text._shape):
            cached.cache_clear()

    def have(*files):
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda *args: list(files))
        clear()

    yield have
    clear()


def test_letters_that_no_font_has_are_numbers(machine):
    machine()
    assert drawable("世界.jpg") == r"\u4e16\u754c.jpg"
    assert drawable("\U0001f9ff") == r"\U0001f9ff"
    assert drawable("हि") == r"\u0939\u093f"  # an accent is a letter, too
    # What DejaVu Sans and Pillow's own font have is drawn.
    for name in ("a b.jpg", "Ünï", "Ελλάδα", "Москва", "עברית", "العربية", "→ ½ ☃"):
        assert drawable(name) == name


def test_letters_of_the_fonts_of_this_machine(machine, tmp_path):
    machine(make_font(tmp_path / "a.ttf", "世界", "A"), make_font(tmp_path / "b.ttf", "한", "B"))
    assert drawable("世界 한국.jpg") == r"世界 한\uad6d.jpg"
    assert text_width("世", 20) == pytest.approx(16, abs=1)
    assert font_families("世 한 a") == ["DejaVu Sans", "A", "B"]


def test_a_font_that_cannot_be_read_is_passed_over(machine, tmp_path):
    (tmp_path / "noto-sans-cjk.ttf").write_bytes(b"no font")
    good = make_font(tmp_path / "x.ttf", "世", "X")
    machine(str(tmp_path / "noto-sans-cjk.ttf"), str(tmp_path / "gone.otf"), good)
    assert drawable("世界") == r"世\u754c"


def test_fonts_of_many_letters_are_tried_first(machine, tmp_path):
    names = ["aaa.ttf", "NotoSansCJK-Bold.ttc", "NotoSansCJK-Regular.ttc", "msyh.ttc", "x.pcf"]
    machine(*names)
    own, dejavu, *others = text._fonts()
    assert own == ""
    assert dejavu.endswith("DejaVuSans.ttf")
    assert others == ["NotoSansCJK-Regular.ttc", "msyh.ttc", "NotoSansCJK-Bold.ttc", "aaa.ttf"]


def test_control_characters_and_bytes_are_escaped():
    assert drawable("a\nb\x1b[31m\udce9\u202e.jpg") == r"a\nb\x1b[31m\xe9\u202e.jpg"
    assert drawable("e\u0301") == "é"  # as macOS writes names


def drawn(value, size=20):
    picture = Image.new("RGB", (300, 40), (255, 255, 255))
    end = draw_text(picture, (10, 8), value, size, INK)
    dark = np.flatnonzero((np.asarray(picture) < 200).any(axis=(0, 2)))
    return end, dark


def test_parts_of_different_fonts_stand_side_by_side(machine, tmp_path):
    machine(make_font(tmp_path / "a.ttf", "世", "A"))
    end, dark = drawn("ab世cd")
    assert end == pytest.approx(10 + text_width("ab世cd", 20))
    assert dark.min() >= 10
    assert dark.max() <= end
    square = 10 + text_width("ab", 20)
    assert set(range(round(square) + 3, round(square) + 13)) <= set(dark.tolist())


def test_a_font_of_one_size_is_scaled(machine, tmp_path, monkeypatch):
    """As colored emoji are, which have bitmaps alone."""
    path = make_font(tmp_path / "emoji.ttf", "\U0001f9ff", "E")
    real = text.ImageFont.truetype

    def of_one_size(file, size, **options):
        if file == path and size != 109:
            raise OSError("invalid pixel size")
        return real(file, size, **options)

    monkeypatch.setattr(text.ImageFont, "truetype", of_one_size)
    machine(path)
    end, dark = drawn("\U0001f9ff")
    assert end - 10 == pytest.approx(16, abs=1)
    assert 10 <= dark.min() < dark.max() <= end + 1


def test_long_text_is_cut():
    name = "a photo with a rather long name 0001.jpg"
    for keep_end, start, last in ((False, "a photo", "..."), (True, "a photo", "01.jpg")):
        short = fit_text(name, 14, 150, keep_end)
        assert text_width(short, 14) <= 150
        assert short.startswith(start)
        assert short.endswith(last)
        assert "..." in short
    assert fit_text("short", 14, 150) == "short"
    assert fit_text("abc", 14, 1) == "a..."  # there is no less
    assert len(fit_text("x" * 5000, 14, 150)) < 40


def test_lines_are_broken_anywhere():
    lines = wrap_text("a" * 50, 12, 60)
    assert "".join(lines) == "a" * 50
    assert all(text_width(line, 12) <= 60 for line in lines)
    assert wrap_text("", 12, 60) == [""]
