"""Pictures of retrieval: queries beside their nearest images, and the answers of a search.

Relevant results (those that share a label with the query) have a green frame, others a red one, and
results of unknown labels a gray one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from ..config import DEFAULT_MAX_PIXELS, recorded_max_pixels
from ..retrieval.queries import Answer, SearchResult
from ..retrieval.ranking import top_by_distance_then_row
from ..structures.code_checks import check_comparable
from ..structures.codes import CodeFileError, CodeSet
from .draw import BLUE, GRAY, GREEN, RED, draw_boxes
from .grid import AbsentPicture, Tile, draw_grid, why_absent

__all__ = ["compare_methods", "retrieval_rows", "search_tiles"]


def retrieval_rows(
    query: CodeSet,
    database: CodeSet,
    query_rows: Sequence[int],
    topk: int = 5,
    exclude: np.ndarray | None = None,
) -> list[list[Tile]]:
    """The tiles of some queries and their nearest images, for :func:`~.grid.draw_grid`.

    Images are read with the pixel limit in their code file.

    Args:
        query: codes of the queries; ``file_names`` must be readable from here.
        database: codes to search in, by the same model.
        query_rows: rows of ``query``.
        topk: results a query.
        exclude: int (P, 2), pairs of a query's row and a database row that may not answer it.

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
    limits = recorded_max_pixels(query.settings), recorded_max_pixels(database.settings)
    grid = []
    for query_row, rows, row_distances in zip(query_rows, found, distances, strict=True):
        wanted = _label_ids(query, query_row)
        names = _names(query, wanted, wanted)
        line = [Tile(query.file_names[query_row], "query", names, BLUE, max_pixels=limits[0])]
        for row, distance in zip(rows, row_distances, strict=True):
            labels = _label_ids(database, row)
            if wanted is None or labels is None:
                frame = GRAY
            else:
                frame = GREEN if wanted & labels else RED
            names = _names(database, labels, wanted)
            image, caption = database.file_names[row], f"distance {distance}"
            line.append(Tile(image, caption, names, frame, max_pixels=limits[1]))
        grid.append(line)
    return grid


def _label_ids(codes: CodeSet, row: int) -> set[int] | None:
    return None if codes.labels is None else set(np.flatnonzero(codes.labels[row]).tolist())


def _names(
    codes: CodeSet, labels: set[int] | None, wanted: set[int] | None
) -> list[tuple[str, bool]]:
    """Class names, each with whether the query has it; shared ones first."""
    if not labels or not codes.class_names:
        return []
    shared = labels & (wanted or set())
    order = sorted(labels, key=lambda label: (label not in shared, label))
    return [(codes.class_names[label], label in shared) for label in order]


def search_tiles(result: SearchResult, max_pixels: int = DEFAULT_MAX_PIXELS) -> list[Tile]:
    """The tiles of a search, the query first, for :func:`~.grid.draw_grid`.

    The box of an object is drawn in the color of the query's object that it answers. If the query's
    labels are known, frames and names show labels; otherwise names are predicted classes.

    Args:
        result: its files must be readable from here.
        max_pixels: as ``MODEL.REGION_DH.MAX_PIXELS``.
    """
    wanted = None if result.labels is None else set(result.labels)
    shown = result.labels or [found.class_name for found in result.objects if found.class_name]
    query = Tile(
        _with_boxes(result.file_name, [found.box for found in result.objects], max_pixels),
        "query",
        [(name, wanted is not None) for name in dict.fromkeys(shown)],
        BLUE,
        result.file_name,
    )
    return [query, *(_answer_tile(answer, wanted, max_pixels) for answer in result.answers)]


def _answer_tile(answer: Answer, wanted: set[str] | None, max_pixels: int) -> Tile:
    boxes = [None if found is None else found.box for found in answer.objects]
    image = _with_boxes(answer.file_name, boxes, max_pixels)
    caption = f"distance {answer.distance}"
    if wanted is None or answer.labels is None:
        classes = [found.class_name for found in answer.objects if found]
        predicted = dict.fromkeys(classes or answer.labels or ())
        return Tile(image, caption, [(name, False) for name in predicted], GRAY, answer.file_name)
    names = sorted(answer.labels, key=lambda name: name not in wanted)  # shared ones first
    frame = GREEN if wanted & set(names) else RED
    shared = [(name, name in wanted) for name in names]
    return Tile(image, caption, shared, frame, answer.file_name)


def _with_boxes(
    file_name: str, boxes: Sequence[Sequence[float] | None], max_pixels: int
) -> Image.Image | AbsentPicture:
    """:func:`~.draw.draw_boxes`, or a placeholder."""
    try:
        return draw_boxes(file_name, boxes, max_pixels)
    except Exception as error:  # after any error, still draw the other pictures
        return AbsentPicture(file_name, why_absent(error))


def compare_methods(
    methods: Mapping[str, tuple[CodeSet, CodeSet]], image_ids: Sequence[str], topk: int = 5
) -> Image.Image:
    """The first answers of several methods to the same queries, a row for each query and method.

    Args:
        methods: codes of queries and of the database by each method.
        image_ids: the queries to draw, in this order.
        topk: answers in a row.

    Returns:
        A picture: the query under the method's name, then its answers, framed green where they
        share a label with the query and red where they share none.

    Raises:
        CodeFileError: a method lacks a query, or its two sets don't fit together.
        OSError: an image can't be read.
    """
    rows: list[list[Tile]] = []
    for image_id in image_ids:
        for name, (query, database) in methods.items():
            if image_id not in query.image_ids:
                raise CodeFileError(
                    f"{name} has no query {image_id!r}: draw queries that all methods encoded"
                )
            (row,) = retrieval_rows(query, database, [query.image_ids.index(image_id)], topk)
            source = row[0]
            rows.append([replace(source, caption=name), *row[1:]])
    return draw_grid(rows, f"The first {topk} answers of {len(methods)} methods")
