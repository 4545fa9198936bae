r"""Text in pictures, in any script, since names of files and classes may have any letters.

A letter is drawn in the first font that has it: Pillow's own font; DejaVu Sans, which comes with
matplotlib and has Latin, Greek, Cyrillic, Arabic, Hebrew and symbols; then the fonts of this
machine, first those for Chinese, Japanese, Korean and emoji. A letter that no font has is replaced
by its number, such as ``\u4e16``. To draw such letters, install a font, such as Debian's
``fonts-noto-cjk`` or ``fonts-noto-color-emoji``, or put its file into ``~/.fonts``.
"""

from __future__ import annotations

import os
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

from .display import display_name

__all__ = ["draw_text", "drawable", "fit_text", "font_families", "text_width", "wrap_text"]

# Fonts with many letters, by their file names, the most useful first.
_WIDE = re.compile(
    r"noto\w*sans\w*cjk|sourcehan|notosans(sc|tc|jp|kr|hk)|pingfang|hiragino|applesdgothic|applegothic"
    r"|msyh|msgothic|yugoth|meiryo|malgun|simsun|wqy|wenquanyi|droidsansfallback|ipaex|ipag|nanum"
    r"|unbatang|arial ?unicode|segoeui|seguiemj|emoji|symbola|notosans|freesans|unifont|dejavu",
    re.IGNORECASE,
)
_FILES = (".ttf", ".otf", ".ttc", ".otc")
# Fonts of colored bitmaps, such as those for emoji, exist only in one or a few of these sizes.
_BITMAP_SIZES = (109, 136, 128, 160, 96, 64)
_UNSEEN = "\u200d\ufe0f"  # kept by display_name, but without a shape
_MISSING = "\U0010ffff"  # in no font, so it is drawn like any missing letter


@dataclass(frozen=True)
class _Font:
    """A font at one size. ``scale`` is not 1 for a font that exists only in another size."""

    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    scale: float = 1.0

    def width(self, text: str) -> float:
        return self.font.getlength(text) * self.scale

    def draw(self, picture: Image.Image, at: tuple[float, float], text: str, color, size) -> None:
        draw = ImageDraw.Draw(picture)
        if self.scale == 1:
            draw.text(at, text, color, self.font, anchor="ls", embedded_color=True)
            return
        left, top, right, bottom = self.font.getbbox(text, anchor="ls")
        glyphs = Image.new("RGBA", (max(1, round(right)), max(1, round(bottom - top))))
        ImageDraw.Draw(glyphs).text(
            (0, -top), text, (*color, 255), self.font, anchor="ls", embedded_color=True
        )
        small = (
            max(1, round(glyphs.width * self.scale)),
            max(1, round(glyphs.height * self.scale)),
        )
        glyphs = glyphs.resize(small, Image.Resampling.LANCZOS)
        place = (round(at[0]), round(at[1] + top * self.scale))
        picture.paste(glyphs, place, glyphs)


def _usable_font(source: str, size: int) -> _Font:
    """A font file at a size; "" is Pillow's own font.

    Raises:
        OSError: the file can't be used.
    """
    font = _font(source, size)
    if font is None:
        raise OSError(f"{source}: no font that can be used")
    return font


@lru_cache(maxsize=256)
def _font(source: str, size: int) -> _Font | None:
    if not source:
        return _Font(ImageFont.load_default(size))
    for used in (size, *_BITMAP_SIZES):
        try:
            return _Font(ImageFont.truetype(source, used), size / used)
        except OSError:  # damaged, or of bitmaps and not of this size
            continue
    return None


@lru_cache(maxsize=1)
def _fonts() -> Sequence[str]:
    """Pillow's own font and the font files of this machine, those with the most letters first."""
    from matplotlib import font_manager, get_data_path  # imported here, since it takes a second

    own = os.path.join(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    found = {path for path in font_manager.findSystemFonts() if path.lower().endswith(_FILES)}
    return ("", own, *sorted(found - {own}, key=_likeliness))


def _likeliness(path: str) -> tuple:
    name = os.path.basename(path).lower()
    wide = _WIDE.search(name.replace("-", "").replace("_", ""))
    plain = not re.search("bold|italic|oblique|black|thin|light|mono|serif", name)
    return (wide is None, not plain, path)


@lru_cache(maxsize=4096)
def _source(letter: str) -> str | None:
    """The font that has a letter; None if none has."""
    if letter.isspace() or _has("", letter):  # without looking for fonts
        return ""
    return next((source for source in _fonts() if source and _has(source, letter)), None)


def _has(source: str, letter: str) -> bool:
    try:
        return _shape(source, letter) != _shape(source, _MISSING)
    except (OSError, ValueError):  # a damaged font
        return False


@lru_cache(maxsize=4096)
def _shape(source: str, letter: str) -> tuple:
    found = _usable_font(source, 16)
    font = found.font
    if isinstance(font, ImageFont.FreeTypeFont):
        # Raqm, the other layout engine, puts a dotted circle under a single accent.
        font = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    mask = font.getmask(letter, "L" if found.scale == 1 else "RGBA")
    return mask.size, hash(tuple(mask))


def drawable(text: str) -> str:
    r"""One line of text that can be drawn on this machine.

    As :func:`.display.display_name`, with a letter that no font has replaced by its number, such as
    ``\u4e16``.
    """
    text = unicodedata.normalize("NFC", display_name(text))
    return "".join(
        letter
        if letter in _UNSEEN or _source(letter) is not None
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def _runs(text: str, size: int) -> Iterator[tuple[str, _Font]]:
    """Split a drawable text into parts, each with its font."""
    seen = "".join(letter for letter in text if letter not in _UNSEEN)
    for source, letters in groupby(seen, lambda letter: _source(letter) or ""):
        yield "".join(letters), _usable_font(source, size)


def text_width(text: str, size: int) -> float:
    """The width in pixels of a line of :func:`drawable` text."""
    return sum(font.width(part) for part, font in _runs(text, size))


def draw_text(
    picture: Image.Image, at: tuple[float, float], text: str, size: int, color: Sequence[int]
) -> float:
    """Draws a line of text.

    Args:
        picture: the RGB picture to draw on.
        at: left and top of the line, in pixels.
        text: any letters, see :func:`drawable`.
        size: font size in pixels.
        color: RGB.

    Returns:
        The right end of the line, in pixels from the left of the picture.
    """
    x, baseline = at[0], at[1] + _ascent(size)
    for part, font in _runs(drawable(text), size):
        font.draw(picture, (x, baseline), part, tuple(color), size)
        x += font.width(part)
    return x


@lru_cache(maxsize=64)
def _ascent(size: int) -> int:
    return -round(_usable_font("", size).font.getbbox("A", anchor="ls")[1]) + round(size * 0.24)


def fit_text(text: str, size: int, width: float, keep_end: bool = False) -> str:
    """Drawable text of at most ``width`` pixels; a longer text is shortened with "...".

    Args:
        text: any letters.
        size: font size in pixels.
        width: in pixels.
        keep_end: shorten in the middle, since the end of a file name tells as much as its start.
    """
    text = drawable(text)
    if text_width(text, size) <= width:
        return text

    def shortened(kept: int) -> str:
        end = kept // 2 if keep_end else 0
        return f"{text[: kept - end]}...{text[len(text) - end :]}"

    # The most letters that fit; the first is kept in any case.
    kept = bisect_right(
        range(1, len(text)), width, key=lambda kept: text_width(shortened(kept), size)
    )
    return shortened(max(1, kept))


def wrap_text(text: str, size: int, width: float) -> list[str]:
    """Drawable text as lines of at most ``width`` pixels, broken anywhere: names have no spaces."""
    lines = [""]
    for letter in drawable(text):
        if lines[-1] and text_width(lines[-1] + letter, size) > width:
            lines.append("")
        lines[-1] += letter
    return lines


def font_families(text: str) -> list[str]:
    """Families for matplotlib that together have the letters of a :func:`drawable` text."""
    from matplotlib import font_manager

    families = ["DejaVu Sans"]
    for source in dict.fromkeys(_source(letter) for letter in text if letter not in _UNSEEN):
        if source:
            font_manager.fontManager.addfont(source)
            name = font_manager.FontProperties(fname=source).get_name()
            families += [name] * (name not in families)
    return families
