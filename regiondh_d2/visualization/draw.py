"""Draws boxes, captions and text on images, with Pillow.

Grids of tiles, pictures of searches, the strips of the report and pictures of datasets use these
functions. :mod:`.plots` draws curves, with matplotlib.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw

from ..config import DEFAULT_MAX_PIXELS
from ..data.image_reader import on_white, read_rgb
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import replace_when_complete
from ..utils.marks import picture_mark
from ..utils.text import draw_text, drawable, fit_text, text_width

__all__ = [
    "BLUE",
    "BOX_COLORS",
    "FAINT",
    "GRAY",
    "GREEN",
    "INK",
    "PAPER",
    "RED",
    "Color",
    "Label",
    "break_lines",
    "draw_above",
    "draw_box",
    "draw_boxes",
    "draw_labels",
    "draw_line",
    "draw_words",
    "fit_image",
    "picture_format",
    "save_image",
]

Color = tuple[int, int, int]
"""Red, green and blue, each 0 to 255."""

GREEN, RED, GRAY, BLUE = (34, 150, 83), (214, 58, 58), (150, 155, 163), (56, 98, 190)
# Colors of the first, second, ... object of a query and its answers, repeated from the start.
BOX_COLORS = (BLUE, (230, 126, 18), (142, 68, 173), (14, 148, 136))
INK, FAINT, PAPER = (33, 37, 41), (118, 124, 132), (255, 255, 255)  # text, small text, paper
_CAPTION_PAPER = (240, 241, 243)


# --------------------------------------------------------------------------------------------------
# Images


def fit_image(
    image: str | os.PathLike | Image.Image,
    box: tuple[int, int],
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image:
    """The image in RGB, scaled to fit into a box; a file is read upright and on white.

    Args:
        image: a file, or an image.
        box: width and height in pixels.
        max_pixels: for a file, as ``MODEL.REGION_DH.MAX_PIXELS``.

    Raises:
        UnreadableImage: the file can't be read.
    """
    if not isinstance(image, Image.Image):
        image, _ = read_rgb(image, max_pixels)
    scale = min(box[0] / image.width, box[1] / image.height)
    size = [max(1, round(side * scale)) for side in image.size]
    return on_white(image).resize(size, Image.Resampling.LANCZOS)


# --------------------------------------------------------------------------------------------------
# Boxes and their labels


def draw_box(
    picture: Image.Image,
    box: Sequence[float],
    color: Color,
    width: int = 3,
    dashed: bool = False,
) -> None:
    """Draws the outline of a box.

    Args:
        picture: the RGB picture to draw on.
        box: XYXY in pixels of the picture; the outline lies inside.
        color: color of the outline.
        width: width of the outline, in pixels.
        dashed: whether the outline has gaps.
    """
    draw = ImageDraw.Draw(picture)
    x1, x2 = sorted(box[::2])
    y1, y2 = sorted(box[1::2])
    if not dashed:
        draw.rectangle((x1, y1, x2, y2), outline=color, width=width)
        return
    # Pillow's rectangles include their last row and column.
    left, right = min(x1 + width - 1, x2), max(x2 - width + 1, x1)
    top, bottom = min(y1 + width - 1, y2), max(y2 - width + 1, y1)
    for start, end in _dashes(x1, x2, width):
        draw.rectangle((start, y1, end, top), fill=color)
        draw.rectangle((start, bottom, end, y2), fill=color)
    for start, end in _dashes(y1, y2, width):
        draw.rectangle((x1, start, left, end), fill=color)
        draw.rectangle((right, start, x2, end), fill=color)


def _dashes(start: float, end: float, width: int) -> list[tuple[float, float]]:
    """Start and end of the drawn parts of an edge, both corners included."""
    length = end - start
    gap = min(3 * width, length / 3)
    count = max(2, round((length + gap) / (8 * width)))
    dash = (length - (count - 1) * gap) / count
    starts = [start + i * (dash + gap) for i in range(count)]
    return [(at, at + dash) for at in starts]


def draw_boxes(
    file_name: str | os.PathLike,
    boxes: Sequence[Sequence[float] | None],
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image:
    """An image, upright, with boxes on it, each in its own of :data:`BOX_COLORS`.

    Args:
        file_name: the image.
        boxes: XYXY in pixels of the upright image; None draws nothing and skips its color.
        max_pixels: as ``MODEL.REGION_DH.MAX_PIXELS``.

    Raises:
        UnreadableImage: the image can't be read.
    """
    image, size = read_rgb(file_name, max_pixels)
    # A photo above the pixel limit is read at a smaller size; boxes refer to the size of the file.
    scale = image.width / size.width, image.height / size.height
    width = max(2, round(max(image.size) / 60))  # visible even when the image is scaled down
    for i, box in enumerate(boxes):
        if box is not None:
            box = [side * factor for side, factor in zip(box, scale * 2, strict=True)]
            draw_box(image, box, BOX_COLORS[i % len(BOX_COLORS)], width)
    return image


@dataclass(frozen=True)
class Label:
    """The text of a box.

    Attributes:
        text: any letters.
        box: XYXY in pixels of the picture.
        color: color of the box and of the text's background.
    """

    text: str
    box: Sequence[float]
    color: Color


def draw_labels(picture: Image.Image, labels: Sequence[Label], size: int) -> None:
    """Draw the texts at their boxes, if possible without overlap.

    A text wider than its box and half the picture is shortened in the middle. Draw all boxes first,
    so that no box crosses a text.

    Args:
        picture: the RGB picture to draw on.
        labels: earlier labels have priority.
        size: font size in pixels.
    """
    draw = ImageDraw.Draw(picture)
    margin = max(2, size // 5)
    height = size + 2 * margin
    taken: list[tuple[float, ...]] = []
    for label in labels:
        widest = min(picture.width, max(picture.width / 2, abs(label.box[2] - label.box[0])))
        text = fit_text(label.text, size, widest - 2 * margin, keep_end=True)
        width = round(text_width(text, size)) + 2 * margin
        places = _label_places(label.box, (width, height), picture.size)
        place = min(places, key=lambda at: sum(_overlap(at, other) for other in taken))
        taken.append(place)
        x1, y1, x2, y2 = map(round, place)
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=label.color)
        draw_text(picture, (x1 + margin, y1 + margin), text, size, _ink_on(label.color))


def _label_places(
    box: Sequence[float], size: tuple[int, int], bounds: tuple[int, int]
) -> list[tuple[float, ...]]:
    """Possible places of a label, XYXY, the best first: above its box, inside it, below it."""
    (width, height), (x1, x2), (y1, y2) = size, sorted(box[::2]), sorted(box[1::2])
    lefts = (x1, x2 + 1 - width)
    places: list[tuple[float, ...]] = []
    for top in (y1 - height, y1, y2 + 1, y2 + 1 - height):
        for left in lefts:
            left = min(max(left, 0), max(0, bounds[0] - width))
            inside = min(max(top, 0), max(0, bounds[1] - height))
            places.append((left, inside, left + width, inside + height))
    return places


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area of the intersection of two boxes, XYXY."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def _ink_on(color: Color) -> Color:
    """Dark on a light color, white on a dark one."""
    red, green, blue = color
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER


# --------------------------------------------------------------------------------------------------
# Text


def draw_above(picture: Image.Image, parts: Sequence[str], size: int) -> Image.Image:
    """The picture with a caption above it.

    Args:
        picture: RGB; a narrow one is put into a wider frame.
        parts: parts of the caption. Lines break between parts; a part longer than a line is
            shortened in the middle.
        size: font size in pixels.
    """
    margin, line_height = size // 2, round(1.4 * size)
    width = max(picture.width, 25 * size)
    room = width - 2 * margin
    pieces = [(fit_text(part, size, room, keep_end=True), INK) for part in parts]
    lines = break_lines(pieces, size, room)
    height = len(lines) * line_height + round(0.6 * size)
    framed = Image.new("RGB", (width, height + picture.height), _CAPTION_PAPER)
    framed.paste(picture, (0, height))
    for i, line in enumerate(lines):
        draw_words(framed, (margin, margin - size // 8 + i * line_height), line, size, width)
    return framed


def break_lines(
    pieces: Sequence[tuple[str, Color]], size: int, width: float
) -> list[list[tuple[str, Color]]]:
    """Break pieces of text into lines of at most ``width`` pixels; a longer piece gets its own
    line.

    Args:
        pieces: texts, each with its color.
        size: font size in pixels.
        width: in pixels.
    """
    lines: list[list[tuple[str, Color]]] = [[]]
    end = 0.0
    for text, color in pieces:
        needed = text_width(drawable(text), size)
        if lines[-1] and end + needed > width:
            lines.append([])
            end = 0.0
        lines[-1].append((text, color))
        end += needed
    return lines


def draw_words(
    picture: Image.Image,
    at: tuple[float, float],
    pieces: Sequence[tuple[str, Color]],
    size: int,
    right: float,
) -> None:
    """Draws a line of several pieces, see :func:`draw_line` and :func:`break_lines`."""
    x, y = at
    for text, color in pieces:
        x = draw_line(picture, (x, y), text, size, color, right)


def draw_line(
    picture: Image.Image,
    at: tuple[float, float],
    text: str,
    size: int,
    color: Color,
    right: float,
    keep_end: bool = False,
) -> float:
    """Draw a line of text, shortened before ``right``.

    Args:
        picture: the RGB picture to draw on.
        at: left and top of the line, in pixels.
        text: any letters.
        size: font size in pixels.
        color: color of the letters.
        right: the line's largest right end, in pixels from the left of the picture.
        keep_end: as of :func:`~regiondh_d2.utils.text.fit_text`.

    Returns:
        The right end of the line, in pixels from the left of the picture.
    """
    return draw_text(picture, at, fit_text(text, size, right - at[0], keep_end), size, color)


# --------------------------------------------------------------------------------------------------
# Files


def picture_format(path: str | os.PathLike) -> str:
    """Pillow's name of the format, from the ending of a file name.

    Raises:
        RegionDHError: no format with this ending can be written.
    """
    ending = Path(path).suffix.lower()
    found = Image.registered_extensions().get(ending, "")
    try:  # the writers of some formats write nothing, or no color
        Image.new("RGB", (8, 8)).save(BytesIO(), found)
    except (KeyError, OSError, ValueError):
        raise RegionDHError(
            f"{display_name(path)}: {ending or 'no ending'!r} is no image format; use .png"
        ) from None
    return found


def save_image(image: Image.Image, path: str | os.PathLike) -> None:
    """Writes an image file with our mark, complete or not at all.

    The ending of the name gives the format. Some formats have no place for the mark, see
    :mod:`~regiondh_d2.utils.marks`.
    """
    found = picture_format(path)
    # In memory first: in a file Pillow loses the end without an error where the disk becomes full.
    content = BytesIO()
    image.save(content, format=found, **picture_mark(found))
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(content.getvalue())
