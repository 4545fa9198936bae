"""Grids of tiles: each query beside its answers, with the names of their files and classes.

An image that can't be read is replaced by a gray tile with its name and the reason.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from ..config import DEFAULT_MAX_PIXELS
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.text import wrap_text
from .draw import (
    FAINT,
    GRAY,
    GREEN,
    INK,
    PAPER,
    RED,
    Color,
    break_lines,
    draw_line,
    draw_words,
    fit_image,
)

__all__ = ["AbsentPicture", "GridLayout", "Tile", "draw_grid", "why_absent"]

_RULE, _ABSENT = (226, 229, 233), (203, 207, 212)


@dataclass(frozen=True)
class AbsentPicture:
    """The placeholder for an image that can't be drawn.

    Attributes:
        file_name: the image's file.
        reason: why it can't be drawn, see :func:`why_absent`.
    """

    file_name: str | os.PathLike
    reason: str


def why_absent(error: Exception) -> str:
    """Why an image can't be read, from the exception: a line without the name of the file."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return display_name(str(reason)) or type(error).__name__


@dataclass(frozen=True)
class Tile:
    """One image of a grid.

    Attributes:
        image: a file, an image, or a placeholder.
        caption: a short line under the image, such as the distance.
        names: class names in small text, each with whether the query shows it, which makes it
            green.
        frame: color of the frame.
        file_name: the name to show if ``image`` isn't a file. Its last part is shown under the
            caption.
        max_pixels: as ``MODEL.REGION_DH.MAX_PIXELS``, if ``image`` is a file.
    """

    image: str | os.PathLike | Image.Image | AbsentPicture
    caption: str = ""
    names: Sequence[tuple[str, bool]] = field(default_factory=tuple)
    frame: Color = GRAY
    file_name: str | os.PathLike = ""
    max_pixels: int = DEFAULT_MAX_PIXELS

    @property
    def name(self) -> str:
        """The name of the image's file; "" if there is none."""
        if self.file_name or isinstance(self.image, Image.Image):
            return os.fspath(self.file_name)
        if isinstance(self.image, AbsentPicture):
            return os.fspath(self.image.file_name)
        return os.fspath(self.image)

    def fit(self, box: tuple[int, int]) -> Image.Image | AbsentPicture:
        """:func:`fit_image`, or a placeholder after any exception."""
        if isinstance(self.image, AbsentPicture):
            return self.image
        try:
            return fit_image(self.image, box, self.max_pixels)
        except Exception as error:  # after any error, still draw the other pictures
            return AbsentPicture(self.name, why_absent(error))


@dataclass(frozen=True)
class GridLayout:
    """Sizes of a grid in pixels.

    Attributes:
        box: width and height into which an image is fitted, keeping its aspect ratio.
        frame: width of the frame around an image.
        text: height of the text under an image.
        gap: space between tiles.
        margin: space around the grid.
        header: height of the line above the grid.
        query_gap: additional space between the query and its results.
    """

    box: tuple[int, int] = (176, 146)
    frame: int = 5
    text: int = 70
    gap: int = 16
    margin: int = 24
    header: int = 58
    query_gap: int = 28

    @property
    def tile(self) -> tuple[int, int]:
        """Width and height of a tile: image, frame and text."""
        width, height = self.box
        return width + 2 * self.frame, height + 2 * self.frame + self.text

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Left and top of a tile; column 0 is the query."""
        width, height = self.tile
        left = self.margin + column * (width + self.gap) + (self.query_gap if column else 0)
        return left, self.margin + self.header + row * (height + self.gap)

    def size(self, rows: int, columns: int) -> tuple[int, int]:
        """Width and height of a picture of ``rows`` x ``columns`` tiles, queries included."""
        left, top = self.corner(max(rows, 1) - 1, max(columns, 1) - 1)
        width, height = self.tile
        return left + width + self.margin, top + height + self.margin


def draw_grid(
    rows: Sequence[Sequence[Tile]], title: str = "", layout: GridLayout | None = None
) -> Image.Image:
    """Draws rows of tiles, the query of each row first.

    Args:
        rows: at least one tile a row; rows may differ in length.
        title: a line above the grid.
        layout: sizes; the default if None.

    Returns:
        An RGB image of ``layout.size(len(rows), longest row)``. An image that can't be read is
        a gray tile in it.

    Raises:
        RegionDHError: there is nothing to draw.
    """
    if not rows or not all(rows):
        raise RegionDHError("there is nothing to draw: every row needs at least one tile")
    layout = layout or GridLayout()
    picture = Image.new("RGB", layout.size(len(rows), max(map(len, rows))), PAPER)
    draw = ImageDraw.Draw(picture)
    draw_line(picture, (layout.margin, layout.margin - 4), title, 20, INK, picture.width)
    if max(map(len, rows)) > 1:
        # A legend of the colors, and a line between queries and results.
        left, top = layout.corner(0, 1)
        x: float = layout.margin
        y = layout.margin + 26
        for color, text in _legend(rows):
            draw.rectangle((x, y + 2, x + 11, y + 13), fill=color)
            x = draw_line(picture, (x + 18, y), text, 14, FAINT, picture.width) + 22
        x = left - (layout.gap + layout.query_gap) // 2
        draw.line((x, top, x, picture.height - layout.margin), fill=_RULE, width=2)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            _draw_tile(picture, draw, tile, layout.corner(i, j), layout)
    return picture


def _legend(rows: Sequence[Sequence[Tile]]) -> list[tuple[Color, str]]:
    """Colors of frames with their meaning; none if no label is known."""
    if {GREEN, RED}.isdisjoint(tile.frame for row in rows for tile in row[1:]):
        return []
    return [(GREEN, "shares a label with the query"), (RED, "shares none")]


def _draw_tile(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    tile: Tile,
    corner: tuple[int, int],
    layout: GridLayout,
) -> None:
    (left, top), (width, height), frame = corner, layout.box, layout.frame
    image = tile.fit(layout.box)
    if isinstance(image, AbsentPicture):
        image = _gray_picture(image, layout.box)
    # The frame is tight around the image, which is centered in its box.
    x = left + frame + (width - image.width) // 2
    y = top + frame + (height - image.height) // 2
    outer = (x - frame, y - frame, x + image.width + frame - 1, y + image.height + frame - 1)
    draw.rectangle(outer, fill=tile.frame)
    picture.paste(image, (x, y))
    y, right = top + height + 2 * frame + 5, left + layout.tile[0]
    draw_line(picture, (left, y), tile.caption, 14, INK, right)
    y += 20
    if tile.name:
        name = os.path.basename(os.path.normpath(tile.name))
        draw_line(picture, (left, y), name, 12, FAINT, right, keep_end=True)
        y += 16
    for line in _name_lines(tile.names, right - left, (top + layout.tile[1] - y) // 15):
        draw_words(picture, (left, y), line, 13, right)
        y += 15


def _name_lines(
    names: Sequence[tuple[str, bool]], width: int, most: int
) -> list[list[tuple[str, Color]]]:
    """The class names of a tile in at most ``most`` lines."""
    pieces = [
        (name if i == len(names) else f"{name}, ", GREEN if shared else FAINT)
        for i, (name, shared) in enumerate(names, 1)
    ]
    return break_lines(pieces, 13, width)[: max(1, most)]


def _gray_picture(absent: AbsentPicture, box: tuple[int, int]) -> Image.Image:
    """A gray picture of the box's size with the name of the image and the reason."""
    gray = Image.new("RGB", box, _ABSENT)
    name = display_name(os.path.basename(absent.file_name))
    y = 6
    for text, color in ((name, INK), (absent.reason, FAINT)):
        for line in wrap_text(text, 12, box[0] - 12):
            if y + 14 > box[1]:
                return gray
            draw_line(gray, (6, y), line, 12, color, box[0] - 6)
            y += 15
    return gray
