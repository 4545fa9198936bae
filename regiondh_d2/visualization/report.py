"""One page that shows how well some codes retrieve, and where they fail.

The page is a single file without scripts: pictures and plots are part of it, so it can be mailed,
archived and read offline. It has no clock: the same code files and images give the same bytes.

Its numbers come from :mod:`~regiondh_d2.evaluation.retrieval_analysis`, its text is
``templates/report.html``.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.ranking_metrics import METRICS, RankingResult
from ..evaluation.retrieval_analysis import (
    MAIN_METRICS,
    RANKED_BY,
    RetrievalAnalysis,
    analyze_retrieval,
)
from ..retrieval.code_store import read_codes
from ..structures.code_checks import check_comparable
from ..structures.codes import CodeSet, check_holds
from ..utils.display import display_name
from ..utils.errors import MissingPackageError, RegionDHError
from ..utils.file_io import file_sha256, read_json, refuse_inputs, replace_when_complete
from ..utils.marks import GENERATOR
from ..utils.progress import Progress
from . import plots
from .draw import GREEN, RED
from .grid import AbsentPicture, Tile
from .retrieval_pictures import retrieval_rows

if TYPE_CHECKING:
    import jinja2
    from PIL import Image

__all__ = ["write_report"]

ANSWERS = 6  # in a strip
PICTURE = (150, 112)
JPEG_QUALITY = 75


@dataclass(frozen=True)
class _Picture:
    """One image of a strip; if the file can't be read, ``source`` is None and ``reason`` says
    why."""

    source: str | None
    caption: str
    file_name: str
    names: Sequence[tuple[str, bool]]
    kind: str
    reason: str = ""


@dataclass(frozen=True)
class _Strip:
    """A query and its first answers."""

    title: str
    pictures: Sequence[_Picture]


def write_report(
    path: str | os.PathLike,
    query_file: str | os.PathLike,
    database_file: str | os.PathLike,
    *,
    topk: int = 1000,
    metrics_file: str | os.PathLike | None = None,
    title: str | None = None,
    exclude_self: bool = False,
    log: Callable[[str], None] | None = None,
    ranked: tuple[RankingResult, list[str]] | None = None,
) -> list[str]:
    """Measure two labeled code files and write a page about them, whole or not at all.

    Args:
        path: the page.
        query_file, database_file: code files of one model, with labels. Relative names of images
            are relative to the working directory. Images are read with the pixel limit in their
            code file.
        topk: cut-off of the metrics.
        metrics_file: further numbers to show, a flat JSON object. Those under ``PREFIX/`` with the
            name of a retrieval metric are shown beside it, as references.
        title: heading of the page; the dataset's name if None.
        exclude_self: whether a query that is in the database is left out of its own ranking.
        log: takes lines of progress.
        ranked: the result of :func:`.rank_code_sets` for these codes, if there is one already.

    Returns:
        Warnings for the reader, a line each; the page shows them, too.

    Raises:
        CodeFileError: a code file is unusable or has no labels, or the two don't fit together.
        OutputExistsError: ``path`` is one of the files or images that are read.
        MissingPackageError: Jinja2 or matplotlib isn't installed.
        ValueError: ``metrics_file`` holds no flat JSON object of numbers, or there is nothing to
            measure.
        OSError: a file can't be read or written.
    """
    template = _template()
    refuse_inputs(path, [query_file, database_file, metrics_file])
    query, database = _read_labeled(query_file), _read_labeled(database_file)
    refuse_inputs(path, photos=[*query.file_names, *database.file_names])
    others = {} if metrics_file is None else _read_metrics(metrics_file)
    notes = check_comparable(query, database)
    progress = Progress(log, "queries ranked", len(query))
    found = analyze_retrieval(
        query,
        database,
        topk,
        exclude_self=exclude_self,
        progress=lambda done, _: progress.show(done),
        ranked=ranked,
    )
    metrics = found.result.metrics
    worst, best = (_strips(query, database, found, rows) for rows in (found.worst, found.best))
    notes += [*found.notes, *_differences(metrics_file, others, metrics)]
    notes += _unread([*worst, *best])
    references = _references(others, topk)
    page = template.render(
        generator=GENERATOR,
        title=title or f"Retrieval on {query.dataset or Path(query_file).name}",
        topk=topk,
        query=query,
        database=database,
        notes=notes,
        metrics=metrics,
        all_metrics=METRICS,
        headline=MAIN_METRICS,
        references=references,
        others=_other_numbers(others, metrics, references),
        figures=_figures(query, found),
        radii=found.radii,
        close=min(2, query.bits),
        excluded=exclude_self,
        classes=found.classes,
        checked=found.checked_answers,
        ranked_by=RANKED_BY,
        worst=worst,
        best=best,
        bits=found.bits,
        sources={"query": _provenance(query_file), "database": _provenance(database_file)},
    )
    with replace_when_complete(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return notes


def _read_labeled(path: str | os.PathLike) -> CodeSet:
    codes = read_codes(path)
    check_holds(codes, str(path), "labels")
    return codes


def _provenance(path: str | os.PathLike) -> dict[str, str]:
    written = datetime.fromtimestamp(os.stat(path).st_mtime, UTC)
    return {
        "file": str(path),
        "sha256": file_sha256(path).hex(),
        "date": f"{written:%Y-%m-%d %H:%M} UTC",
    }


# --------------------------------------------------------------------------------------------------
# Numbers from elsewhere


def _read_metrics(path: str | os.PathLike) -> dict[str, float]:
    values = read_json(path)
    if not isinstance(values, dict) or not all(type(v) in (int, float) for v in values.values()):
        raise RegionDHError(
            f"{display_name(path)}: not a flat JSON object of numbers; give a metrics.json"
        )
    return values


def _differences(
    path: str | os.PathLike | None, others: Mapping[str, float], measured: Mapping[str, float]
) -> list[str]:
    """A note if the given numbers don't belong to these codes."""
    for name, value in measured.items():
        if name in others and not np.isclose(others[name], value, rtol=0, atol=1e-6):
            return [
                f"{path}: {name} is {others[name]:.6g} there and {value:.6g} here: "
                "its numbers are of other codes"
            ]
    return []


def _references(others: Mapping[str, float], topk: int) -> dict[str, dict[str, float]]:
    """The metrics under each prefix, by their names without cut-off."""
    found: dict[str, dict[str, float]] = {}
    for name, value in others.items():
        prefix, _, metric = name.rpartition("/")
        metric, _, cut = metric.partition("@")
        if prefix and metric in METRICS and cut == str(topk):
            found.setdefault(prefix, {})[metric] = value
    return found


def _other_numbers(
    others: Mapping[str, float], measured: Mapping[str, float], references: Mapping[str, Mapping]
) -> dict[str, float]:
    """The given numbers that are not shown elsewhere on the page."""
    return {
        name: value
        for name, value in others.items()
        if name not in measured and name.rpartition("/")[0] not in references
    }


# --------------------------------------------------------------------------------------------------
# Pictures


def _strips(
    query: CodeSet, database: CodeSet, found: RetrievalAnalysis, rows: Sequence[int]
) -> list[_Strip]:
    """The first answers to these queries."""
    strips = []
    tiles_of = retrieval_rows(query, database, rows, ANSWERS, found.exclude)
    for row, tiles in zip(rows, tiles_of, strict=True):
        relevant = found.counts.relevant[row]
        title = (
            f"{query.image_ids[row]}: {RANKED_BY} {found.score[row]:.3f}, "
            f"{relevant.sum():,} relevant, the nearest at distance {np.flatnonzero(relevant)[0]}"
        )
        kinds = ["query"] + [{GREEN: "hit", RED: "miss"}[tile.frame] for tile in tiles[1:]]
        pictures = [_picture(tile, kind) for tile, kind in zip(tiles, kinds, strict=True)]
        strips.append(_Strip(title, pictures))
    return strips


def _picture(tile: Tile, kind: str) -> _Picture:
    image = tile.fit(PICTURE)
    if isinstance(image, AbsentPicture):
        return _Picture(None, tile.caption, tile.name, tile.names, kind, image.reason)
    return _Picture(_data_url(image), tile.caption, tile.name, tile.names, kind)


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _unread(strips: Sequence[_Strip]) -> list[str]:
    """A note if pictures are missing."""
    pictures = [picture for strip in strips for picture in strip.pictures]
    unread = [display_name(picture.file_name) for picture in pictures if picture.source is None]
    if not unread:
        return []
    return [
        f"{len(unread)} of {len(pictures)} pictures could not be read; first {unread[0]} (a "
        "relative name counts from the working directory)"
    ]


def _figures(query: CodeSet, found: RetrievalAnalysis) -> dict[str, str]:
    """The plots as elements of the page, in its text color, dark or light."""
    figures = {
        "distances": plots.plot_distances(found.counts),
        "recall": plots.plot_precision_recall({"": found.radii}),
        "precision": plots.plot_precision_at({"": found.precision}),
        "balance": plots.plot_bits(found.bits),
        "correlation": plots.plot_correlation(found.bits),
    }
    if len(query) > 1:
        figures["map"] = plots.plot_code_map(query)
    return {
        name: plots.figure_svg(figure, name).replace(plots.INK, "currentColor")
        for name, figure in figures.items()
    }


# --------------------------------------------------------------------------------------------------
# The page


def _template() -> jinja2.Template:
    """The page's template.

    Raises:
        MissingPackageError: a package that the page needs isn't installed.
    """
    plots.require_matplotlib("the report")
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise MissingPackageError(
            "the report needs Jinja2, which isn't installed: pip install 'regiondh_d2[demo]'"
        ) from None

    def shown(value: object) -> object:
        """Make text for the page, such as names of files and classes, harmless."""
        if isinstance(value, Markup) or not isinstance(value, str):
            return value
        return display_name(value)

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["last_part"] = lambda name: os.path.basename(os.path.normpath(name))
    environment.filters["number"] = lambda value: "-" if np.isnan(value) else f"{value:.3f}"
    environment.filters["whole"] = lambda value: f"{value:,}"
    return environment.get_template("report.html")
