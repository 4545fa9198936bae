"""Retrieval as a picture: each query beside its nearest images.

Relevant results (those that share a label with the query) have a green frame, others a red one, and
results of unknown labels a gray one. Drawn with Pillow alone.

An image that can't be drawn never costs the picture: a gray tile with its name and the reason
stands in its place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..data.image_reader import on_white, read_rgb
from ..retrieval.engines import create_index
from ..retrieval.queries import Answer, SearchResult
from ..structures.codes import CodeSet, check_comparable
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import replace_when_complete
from ..utils.marks import picture_mark
from ..utils.text import draw_text, drawable, fit_text, text_width, wrap_text

__all__ = [
    "AbsentPicture",
    "GridLayout",
    "Tile",
    "draw_boxes",
    "draw_grid",
    "fit_image",
    "top_by_distance_then_row",
    "picture_format",
    "retrieval_rows",
    "save_image",
    "search_tiles",
    "why_absent",
]

GREEN, RED, GRAY, BLUE = (34, 150, 83), (214, 58, 58), (150, 155, 163), (56, 98, 190)
# Boxes of the first, second, ... object of a query and of what answers it; then again.
BOX_COLORS = (BLUE, (230, 126, 18), (142, 68, 173), (14, 148, 136))
_INK, _FAINT, _PAPER, _RULE = (33, 37, 41), (118, 124, 132), (255, 255, 255), (226, 229, 233)
_ABSENT = (203, 207, 212)


@dataclass(frozen=True)
class AbsentPicture:
    """What stands in a grid for an image that can't be drawn.

    Attributes:
        file_name: of the image.
        reason: why, in half a line; see :func:`why_absent`.
    """

    file_name: str | os.PathLike
    reason: str


def why_absent(error: Exception) -> str:
    """Half a line about what was raised when an image was read."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return display_name(str(reason)) or type(error).__name__


@dataclass(frozen=True)
class Tile:
    """One image of a grid.

    Attributes:
        image: a file, an image, or what is said in place of one.
        caption: a short line under the image, such as the distance.
        names: class names, each with whether it is one of the query's; in small text, the query's
            in green.
        frame: RGB color of the frame.
        file_name: of an ``image`` that is no file; the last part of a file's name stands under the
            caption.
    """

    image: str | os.PathLike | Image.Image | AbsentPicture
    caption: str = ""
    names: Sequence[tuple[str, bool]] = field(default_factory=tuple)
    frame: tuple[int, int, int] = GRAY
    file_name: str | os.PathLike = ""

    @property
    def name(self) -> str:
        """The name of the image's file; "" if there is none."""
        if self.file_name or isinstance(self.image, Image.Image):
            return os.fspath(self.file_name)
        absent = isinstance(self.image, AbsentPicture)
        return os.fspath(self.image.file_name if absent else self.image)


@dataclass(frozen=True)
class GridLayout:
    """Sizes of a grid in pixels.

    Attributes:
        box: width and height that an image is fitted into, its aspect kept.
        frame: width of the frame around an image.
        text: height of the text under an image.
        gap: space between tiles.
        margin: space around the grid.
        header: height of the line above the grid.
        query_gap: further space between the query and its results.
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


def top_by_distance_then_row(
    query_codes: np.ndarray,
    database_codes: np.ndarray,
    topk: int,
    exclude: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest database rows of each query by Hamming distance, ties by ascending row.

    Args:
        query_codes: uint8 (Q, B), packed.
        database_codes: uint8 (N, B), packed.
        topk: how many, at most N.
        exclude: int (P, 2), pairs of a query's and a database row that is no answer to it.

    Returns:
        Rows and distances, int64 (Q, min(topk, N)) each, fewer columns where some query has fewer
        items that are not excluded.
    """
    index = create_index(8 * database_codes.shape[1], "numpy")
    index.add(database_codes)
    if exclude is None or not len(exclude):
        distances, rows = index.search(query_codes, topk)
        return rows, distances.astype(np.int64)
    most = int(np.bincount(exclude[:, 0]).max())
    distances, rows = index.search(query_codes, min(topk + most, len(database_codes)))
    out = np.isin(
        np.arange(len(rows))[:, None] * len(database_codes) + rows,
        exclude[:, 0] * len(database_codes) + exclude[:, 1],
    )
    columns = min(topk, len(database_codes) - most)
    kept = np.argsort(out, axis=1, kind="stable")[:, :columns]
    return (
        np.take_along_axis(rows, kept, axis=1),
        np.take_along_axis(distances, kept, axis=1).astype(np.int64),
    )


def retrieval_rows(
    query: CodeSet,
    database: CodeSet,
    query_rows: Sequence[int],
    topk: int = 5,
    exclude: np.ndarray | None = None,
) -> list[list[Tile]]:
    """The tiles of some queries and their nearest images, for :func:`draw_grid`.

    Args:
        query: codes of the queries; ``file_names`` must be readable from here.
        database: codes to search in, by the same model.
        query_rows: rows of ``query``.
        topk: results a query.
        exclude: int (P, 2), pairs of a query's and a database row that is no answer to it.

    Returns:
        One list a query: its tile, then its results by ascending distance.

    Raises:
        CodeFileError: the two don't fit together.
    """
    check_comparable(query, database)
    if exclude is not None:
        parts = [exclude[exclude[:, 0] == row] for row in query_rows]
        others = [part[:, 1] for part in parts]
        places = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        exclude = np.stack((places, np.concatenate([places[:0], *others])), axis=1)
    found, distances = top_by_distance_then_row(
        query.codes[list(query_rows)], database.codes, topk, exclude
    )
    grid = []
    for query_row, rows, row_distances in zip(query_rows, found, distances, strict=True):
        wanted = _label_ids(query, query_row)
        line = [
            Tile(query.file_names[query_row], "query", _names(query, wanted, wanted), frame=BLUE)
        ]
        for row, distance in zip(rows, row_distances, strict=True):
            labels = _label_ids(database, row)
            if wanted is None or labels is None:
                frame = GRAY
            else:
                frame = GREEN if wanted & labels else RED
            caption = f"distance {distance}"
            line.append(
                Tile(database.file_names[row], caption, _names(database, labels, wanted), frame)
            )
        grid.append(line)
    return grid


def _label_ids(codes: CodeSet, row: int) -> set[int] | None:
    return None if codes.labels is None else set(np.flatnonzero(codes.labels[row]).tolist())


def _names(
    codes: CodeSet, labels: set[int] | None, wanted: set[int] | None
) -> list[tuple[str, bool]]:
    """Class names with whether the query has them, shared ones first."""
    if not labels or not codes.class_names:
        return []
    shared = labels & (wanted or set())
    order = sorted(labels, key=lambda label: (label not in shared, label))
    return [(codes.class_names[label], label in shared) for label in order]


def search_tiles(result: SearchResult) -> list[Tile]:
    """The tiles of a search, the query first, for :func:`draw_grid`.

    An object has its box drawn, in the color of the query's object that it answers. Frames and
    names tell labels where those of the query are known, otherwise names are predicted classes.
    """
    wanted = None if result.labels is None else set(result.labels)
    shown = result.labels or [found.class_name for found in result.objects if found.class_name]
    query = Tile(
        _with_boxes(result.file_name, [found.box for found in result.objects]),
        "query",
        [(name, wanted is not None) for name in dict.fromkeys(shown)],
        BLUE,
        result.file_name,
    )
    return [query, *(_answer_tile(answer, wanted) for answer in result.answers)]


def _answer_tile(answer: Answer, wanted: set[str] | None) -> Tile:
    image = _with_boxes(answer.file_name, [found and found.box for found in answer.objects])
    caption = f"distance {answer.distance}"
    if wanted is None or answer.labels is None:
        classes = [found.class_name for found in answer.objects if found]
        names = dict.fromkeys(classes or answer.labels or ())
        return Tile(image, caption, [(name, False) for name in names], GRAY, answer.file_name)
    names = sorted(answer.labels, key=lambda name: name not in wanted)  # shared ones first
    frame = GREEN if wanted & set(names) else RED
    shared = [(name, name in wanted) for name in names]
    return Tile(image, caption, shared, frame, answer.file_name)


def _with_boxes(
    file_name: str | os.PathLike, boxes: Sequence[Sequence[float] | None]
) -> Image.Image | AbsentPicture:
    """:func:`draw_boxes`, or why there is no picture."""
    try:
        return draw_boxes(file_name, boxes)
    except Exception as error:  # whatever it is, the other pictures are worth seeing
        return AbsentPicture(file_name, why_absent(error))


def draw_boxes(
    file_name: str | os.PathLike, boxes: Sequence[Sequence[float] | None]
) -> Image.Image:
    """An image, upright, with boxes on it, each in its own of :data:`BOX_COLORS`.

    Args:
        file_name: the image.
        boxes: XYXY in pixels of the upright image; None takes a color and draws nothing.

    Raises:
        UnreadableImage: the image can't be read.
    """
    image, size = read_rgb(file_name)
    # Of a photo above the pixel limit, which is read at a smaller size, boxes are as in the file.
    scale = image.width / size.width, image.height / size.height
    draw = ImageDraw.Draw(image)
    width = max(2, round(max(image.size) / 60))  # still seen once the image is small
    for i, box in enumerate(boxes):
        if box is not None:
            box = [side * factor for side, factor in zip(box, scale * 2, strict=True)]
            draw.rectangle(box, outline=BOX_COLORS[i % len(BOX_COLORS)], width=width)
    return image


def draw_grid(
    rows: Sequence[Sequence[Tile]], title: str = "", layout: GridLayout | None = None
) -> Image.Image:
    """Draw rows of tiles, the query of each row first.

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
    picture = Image.new("RGB", layout.size(len(rows), max(map(len, rows))), _PAPER)
    draw = ImageDraw.Draw(picture)
    _text(picture, (layout.margin, layout.margin - 4), title, 20, _INK, picture.width)
    if max(map(len, rows)) > 1:
        # What the colors mean, with a rule between queries and results.
        left, top = layout.corner(0, 1)
        x, y = layout.margin, layout.margin + 26
        for color, text in _legend(rows):
            draw.rectangle((x, y + 2, x + 11, y + 13), fill=color)
            x = _text(picture, (x + 18, y), text, 14, _FAINT, picture.width) + 22
        x = left - (layout.gap + layout.query_gap) // 2
        draw.line((x, top, x, picture.height - layout.margin), fill=_RULE, width=2)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            _draw_tile(picture, draw, tile, layout.corner(i, j), layout)
    return picture


def _legend(rows: Sequence[Sequence[Tile]]) -> list[tuple[tuple[int, int, int], str]]:
    """Colors of frames with their meaning; none where no label is known."""
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
    image = _fit_or_gray(tile.image, layout.box)
    # The frame hugs the image, which stands in the middle of its box.
    x = left + frame + (width - image.width) // 2
    y = top + frame + (height - image.height) // 2
    outer = (x - frame, y - frame, x + image.width + frame - 1, y + image.height + frame - 1)
    draw.rectangle(outer, fill=tile.frame)
    picture.paste(image, (x, y))
    x, y, right = left, top + height + 2 * frame + 5, left + layout.tile[0]
    _text(picture, (x, y), tile.caption, 14, _INK, right)
    y += 20
    if tile.name:
        name = os.path.basename(os.path.normpath(tile.name))
        _text(picture, (x, y), name, 12, _FAINT, right, keep_end=True)
        y += 16
    for index, (name, shared) in enumerate(tile.names):
        text = name if index == len(tile.names) - 1 else f"{name}, "
        if x > left and x + text_width(drawable(text), 13) > right:
            x, y = left, y + 15
            if y + 15 > top + layout.tile[1]:
                break
        x = _text(picture, (x, y), text, 13, GREEN if shared else _FAINT, right)


def _fit_or_gray(
    image: str | os.PathLike | Image.Image | AbsentPicture, box: tuple[int, int]
) -> Image.Image:
    """:func:`fit_image`, or a gray picture of the box's size that says what is missing and why."""
    if not isinstance(image, AbsentPicture):
        try:
            return fit_image(image, box)
        except Exception as error:  # as in _with_boxes
            name = "" if isinstance(image, Image.Image) else image
            image = AbsentPicture(name, why_absent(error))
    gray = Image.new("RGB", box, _ABSENT)
    y = 6
    for text, color in (
        (display_name(os.path.basename(image.file_name)), _INK),
        (image.reason, _FAINT),
    ):
        for line in wrap_text(text, 12, box[0] - 12):
            if y + 14 > box[1]:
                return gray
            _text(gray, (6, y), line, 12, color, box[0] - 6)
            y += 15
    return gray


def fit_image(image: str | os.PathLike | Image.Image, box: tuple[int, int]) -> Image.Image:
    """The image in RGB, a file's upright and on white, enlarged or shrunk to fit into a box.

    Raises:
        UnreadableImage: the file can't be read.
    """
    if not isinstance(image, Image.Image):
        image, _ = read_rgb(image)
    scale = min(box[0] / image.width, box[1] / image.height)
    size = [max(1, round(side * scale)) for side in image.size]
    return on_white(image).resize(size, Image.Resampling.LANCZOS)


def _text(
    picture: Image.Image,
    at: tuple[float, float],
    text: str,
    size: int,
    color: tuple[int, int, int],
    right: float,
    keep_end: bool = False,
) -> float:
    """Draw a line of text, cut short before ``right``; returns where it ends."""
    return draw_text(picture, at, fit_text(text, size, right - at[0], keep_end), size, color)


def picture_format(path: str | os.PathLike) -> str:
    """Pillow's name of the format that a picture of this name is written in.

    Raises:
        RegionDHError: the name's ending tells no format that can be written.
    """
    ending = Path(path).suffix.lower()
    found = Image.registered_extensions().get(ending)
    try:  # some formats have a writer that writes nothing, or no picture in color
        Image.new("RGB", (8, 8)).save(BytesIO(), found or "")
    except (KeyError, OSError, ValueError):
        raise RegionDHError(
            f"{display_name(path)}: {ending or 'no ending'!r} is no image format; use .png"
        ) from None
    return found


def save_image(image: Image.Image, path: str | os.PathLike) -> None:
    """Write an image file with our mark, complete or not at all.

    Its name's ending tells the format. See :mod:`..utils.marks` for the mark, which some formats
    have no place for.
    """
    found = picture_format(path)
    with replace_when_complete(path) as temporary:
        image.save(temporary, format=found, **picture_mark(found))
