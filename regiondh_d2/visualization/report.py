"""One page that shows how well some codes retrieve, and where they fail.

The page is a single file without scripts: pictures and plots are part of it, so it can be mailed,
archived and read offline. It has no clock: the same code files and images give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from ..evaluation import curves
from ..evaluation.ranking_metrics import METRICS, RankingResult
from ..evaluation.retrieval_evaluator import rank_code_sets
from ..evaluation.same_images import find_same_images
from ..retrieval.code_store import read_codes
from ..structures.codes import CodeSet, check_comparable, check_holds
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.file_io import read_json, refuse_inputs, replace_when_complete
from ..utils.marks import GENERATOR
from ..utils.progress import Progress
from . import plots
from .draw import GREEN, RED, Tile, fit_image, retrieval_rows, top_by_distance_then_row, why_absent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

HEADLINE = ("MAP", "MAP_min", "NDCG", "ACG")
RANKED_BY = "MAP_min"  # the MAP of the paper saturates, so it would call too many queries perfect
WORST, BEST, ANSWERS = 10, 4, 6
CHECKED_ANSWERS = 10  # of each query, in the table of classes
PICTURE = (150, 112)
JPEG_QUALITY = 75


@dataclass(frozen=True)
class _Picture:
    """One image of a strip: ``source`` is None where the file can't be read, for this reason."""

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


@dataclass(frozen=True)
class _ClassRow:
    """A line of the table of classes; a number is NaN where it can't be measured."""

    name: str
    queries: int
    images: int
    alone: float
    means: Sequence[float]
    wrong: str


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
    """Measures two labeled code files and writes a page about them, complete or not at all.

    Args:
        path: the page.
        query_file, database_file: code files of one model, with labels. Relative names of images
            in them count from the working directory.
        topk: cut-off of the metrics.
        metrics_file: further numbers to show, a flat JSON object. Those under ``PREFIX/`` that have
            the name of a retrieval metric stand beside it, as references.
        title: heading of the page; the dataset's name if None.
        exclude_self: whether a query that is in the database is left out of its own ranking.
        log: takes lines of progress.
        ranked: what :func:`.rank_code_sets` gave for these codes, if that is known already.

    Returns:
        What the reader should be warned of, a line each; the page shows them as well.

    Raises:
        CodeFileError: a code file is unusable or has no labels, or the two don't fit together.
        OutputExistsError: ``path`` is one of the files or images that are read.
        ValueError: ``metrics_file`` holds no flat JSON object of numbers, or there is nothing to
            measure.
        OSError: a file can't be read or written.
    """
    refuse_inputs(path, [query_file, database_file, metrics_file])
    query, database = _read_labeled(query_file), _read_labeled(database_file)
    refuse_inputs(path, photos=[*query.file_names, *database.file_names])
    others = {} if metrics_file is None else _read_metrics(metrics_file)
    notes = check_comparable(query, database)
    if ranked is None:
        progress = Progress(log, "queries ranked", len(query))
        ranked = rank_code_sets(
            query, database, topk, lambda done, _: progress.show(done), exclude_self=exclude_self
        )
    result, warned = ranked
    exclude = find_same_images(query, database).pairs if exclude_self else None
    counts = curves.count_distances(
        query.codes,
        database.codes,
        query.labels,
        database.labels,
        bits=query.bits,
        exclude=exclude,
    )
    score = result.per_query[f"{RANKED_BY}@{topk}"]
    worst, best = (
        _strips(query, database, counts, score, rows, exclude) for rows in _extremes(score)
    )
    notes += [*warned, *_differences(metrics_file, others, result.metrics)]
    notes += _unread([*worst, *best])
    radii = curves.radius_curve(counts)
    statistics = curves.bit_statistics(database.codes, database.bits)
    figures = {
        "distances": plots.plot_distances(counts),
        "recall": plots.plot_precision_recall({"": radii}),
        "precision": plots.plot_precision_at({"": curves.precision_at(counts, topk)}),
        "balance": plots.plot_bits(statistics),
        "correlation": plots.plot_correlation(statistics),
    }
    if len(query) > 1:
        figures["map"] = plots.plot_code_map(query)
    references = _references(others, topk)
    page = _template().render(
        generator=GENERATOR,
        title=title or f"Retrieval on {query.dataset or Path(query_file).name}",
        topk=topk,
        query=query,
        database=database,
        notes=notes,
        metrics=result.metrics,
        all_metrics=METRICS,
        headline=HEADLINE,
        references=references,
        others=_other_numbers(others, result.metrics, references),
        figures={name: _page_svg(figure, name) for name, figure in figures.items()},
        radii=radii,
        close=min(2, query.bits),
        excluded=exclude_self,
        classes=_class_rows(query, database, result, topk, exclude),
        checked=min(CHECKED_ANSWERS, len(database)),
        ranked_by=RANKED_BY,
        worst=worst,
        best=best,
        statistics=statistics,
        largest=_largest_correlation(statistics.correlation),
        sources={"query": _provenance(query_file), "database": _provenance(database_file)},
    )
    with replace_when_complete(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return notes


def _read_labeled(path: str | os.PathLike) -> CodeSet:
    codes = read_codes(path)
    check_holds(codes, str(path), "labels")
    return codes


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
    """A note if the given numbers aren't of these codes."""
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
    """The given numbers that the page doesn't show elsewhere."""
    return {
        name: value
        for name, value in others.items()
        if name not in measured and name.rpartition("/")[0] not in references
    }


def _provenance(path: str | os.PathLike) -> dict[str, str]:
    path = Path(path)
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return {
        "file": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "date": f"{written:%Y-%m-%d %H:%M} UTC",
    }


# --------------------------------------------------------------------------------------------------
# Classes, queries and bits


def _class_rows(
    query: CodeSet,
    database: CodeSet,
    result: RankingResult,
    topk: int,
    exclude: np.ndarray | None,
) -> list[_ClassRow]:
    """The classes that a query shows, the weakest first."""
    names = query.class_names or [f"class {i}" for i in range(query.labels.shape[1])]
    alone = curves.own_class_metric(
        query.codes,
        database.codes,
        query.labels,
        database.labels,
        bits=query.bits,
        topk=min(topk, len(database)),
        metric=RANKED_BY,
        exclude=exclude,
    )
    per_query = {metric: result.per_query[f"{metric}@{topk}"] for metric in HEADLINE}
    means = curves.class_means(per_query, query.labels)
    answers, _ = top_by_distance_then_row(query.codes, database.codes, CHECKED_ANSWERS, exclude)
    wrong = curves.wrong_answer_labels(answers, query.labels, database.labels)
    queries, images = query.labels.sum(axis=0), database.labels.sum(axis=0)
    rows = [
        _ClassRow(
            name=name,
            queries=int(queries[i]),
            images=int(images[i]),
            alone=alone[i],
            means=[means[metric][i] for metric in HEADLINE],
            wrong=", ".join(f"{names[j]} {wrong[i, j]}" for j in _most_frequent(wrong[i])),
        )
        for i, name in enumerate(names)
        if queries[i]
    ]
    return sorted(rows, key=lambda row: (np.isnan(row.alone), row.alone))


def _most_frequent(counts: np.ndarray, most: int = 3) -> list[int]:
    order = np.argsort(-counts, kind="stable")[:most]
    return [int(i) for i in order if counts[i]]


def _extremes(score: np.ndarray) -> tuple[list[int], list[int]]:
    """Rows of the worst and of the best queries, no query in both; equal ones by row."""
    order = np.argsort(score, kind="stable")
    order = order[~np.isnan(score[order])]
    worst = order[:WORST]
    best = np.argsort(-score, kind="stable")[: len(order)]
    best = best[~np.isin(best, worst)][:BEST]
    return worst.tolist(), best.tolist()


def _strips(
    query: CodeSet,
    database: CodeSet,
    counts: curves.DistanceCounts,
    score: np.ndarray,
    rows: Sequence[int],
    exclude: np.ndarray | None,
) -> list[_Strip]:
    strips = []
    tiles_of = retrieval_rows(query, database, rows, ANSWERS, exclude)
    for row, tiles in zip(rows, tiles_of, strict=True):
        relevant = counts.relevant[row]
        title = (
            f"{query.image_ids[row]}: {RANKED_BY} {score[row]:.3f}, {relevant.sum():,} relevant, "
            f"the nearest at distance {np.flatnonzero(relevant)[0]}"
        )
        kinds = ["query"] + [{GREEN: "hit", RED: "miss"}[tile.frame] for tile in tiles[1:]]
        pictures = [_picture(tile, kind) for tile, kind in zip(tiles, kinds, strict=True)]
        strips.append(_Strip(title, pictures))
    return strips


def _picture(tile: Tile, kind: str) -> _Picture:
    source, reason = None, ""
    try:
        source = _data_url(fit_image(tile.image, PICTURE))
    except Exception as error:  # whatever it is, it must not cost the page
        reason = why_absent(error)
    return _Picture(source, tile.caption, tile.name, tile.names, kind, reason)


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


def _largest_correlation(correlation: np.ndarray) -> tuple[float, int, int] | None:
    """The largest absolute correlation of two bits and the bits, None where there is none."""
    size = np.nan_to_num(np.abs(np.triu(correlation, 1)))
    first, second = np.unravel_index(size.argmax(), size.shape)
    if not size[first, second]:
        return None
    return float(size[first, second]), int(first), int(second)


# --------------------------------------------------------------------------------------------------
# The page


def _page_svg(figure: Figure, name: str) -> Markup:
    """A plot that takes the ink of the page, dark on light or light on dark."""
    return Markup(plots.figure_svg(figure, name).replace(plots.INK, "currentColor"))


def _shown(value: object) -> object:
    """Whatever text the page shows, of a name of a file or of a class, is made harmless first."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return display_name(value)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["last_part"] = lambda name: os.path.basename(os.path.normpath(name))
    environment.filters["number"] = lambda value: "-" if np.isnan(value) else f"{value:.3f}"
    environment.filters["whole"] = lambda value: f"{value:,}"
    return environment.from_string(_PAGE)


_PAGE = """\
{% macro strip_rows(strips) %}
{% for strip in strips %}
<h3>{{ strip.title }}</h3>
<div class="strip">
{% for picture in strip.pictures %}
  <figure class="{{ picture.kind }}">
  {% if picture.source %}
    <img src="{{ picture.source }}" alt="{{ picture.kind }}">
  {% else %}
    <div class="absent">{{ picture.reason }}</div>
  {% endif %}
    <figcaption>{{ picture.caption }}<br>
    <span title="{{ picture.file_name }}">{{ picture.file_name | last_part }}</span><br>
    {% for name, shared in picture.names %}
      <span{% if shared %} class="shared"{% endif %}>{{ name }}</span>{{ "" if loop.last else "," }}
    {% endfor %}
    </figcaption>
  </figure>
{% endfor %}
</div>
{% endfor %}
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{{ generator | safe }}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { --ink: #21252b; --faint: #666c75; --paper: #fff; --card: #f4f5f7; --rule: #dfe2e6;
  --hit: #229653; --miss: #d63a3a; --query: #3862be; --bar: #cfe0f5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --faint: #9aa1ab; --paper: #16181c;
  --card: #22252b; --rule: #373c44; --hit: #3fbf77; --miss: #ef6461; --query: #7ba0f0;
  --bar: #274568; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .4rem; border-top: 1px solid var(--rule);
  padding-top: 1rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 48rem; }
.faint, figcaption, th { color: var(--faint); }
.notes { border-left: 4px solid var(--miss); background: var(--card); padding: .5rem 1rem;
  overflow-wrap: anywhere; }
.cards, .plots { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
.plots div { flex: 1 1 20rem; max-width: 34rem; }
.cards div { flex: 1 1 9rem; background: var(--card); border-radius: .5rem; padding: .7rem 1rem; }
.cards b { display: block; font-size: 1.8rem; line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.bar { background: linear-gradient(to right, var(--bar) var(--share), transparent 0); }
td.long { white-space: normal; overflow-wrap: anywhere; text-align: left; min-width: 14rem; }
svg { width: 100%; height: auto; display: block; }
.map { min-width: 40rem; }
.strip { display: flex; gap: .6rem; overflow-x: auto; padding-bottom: .4rem; }
.strip figure { margin: 0; flex: 0 0 8.7rem; font-size: .8rem; line-height: 1.3; }
.strip figure.query { margin-right: .6rem; }
.strip img, .absent { display: block; width: 100%; height: 6.6rem; object-fit: contain;
  border: 4px solid var(--query); background: var(--card); }
.absent { display: flex; align-items: center; justify-content: center; color: var(--faint); }
.hit img, .hit .absent { border-color: var(--hit); }
.miss img, .miss .absent { border-color: var(--miss); }
figcaption { overflow-wrap: anywhere; }
.shared { color: var(--hit); font-weight: 600; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="faint">{{ query|length|whole }} queries in {{ database|length|whole }} images,
{{ query.bits }} bits, the first {{ topk|whole }} answers</p>
{% if notes %}
<div class="notes">
{% for note in notes %}
<p>{{ note }}</p>
{% endfor %}
</div>
{% endif %}

<div class="cards">
{% for metric in headline %}
{% set name = metric ~ "@" ~ topk %}
<div>{{ name }}<b>{{ metrics[name]|number }}</b>
<span class="faint">{{ metrics[name ~ "-pessimistic"]|number }} to
{{ metrics[name ~ "-optimistic"]|number }}</span></div>
{% endfor %}
</div>
<p>A code of {{ query.bits }} bits has only {{ query.bits + 1 }} distances, so many answers are
equally near. Each number is the mean over all orders of such ties, with the exact worst and best
order beside it; <i>index order</i> sorts ties by their row in the database. MAP divides by the
relevant answers within the first {{ topk|whole }} and so forgives what is not found; MAP_min
divides by what could be found. ACG counts shared labels and may exceed 1.</p>
<div class="wide"><table>
<tr><th></th><th>expected</th><th>worst order</th><th>best order</th><th>index order</th>
{% for prefix in references %}<th>{{ prefix }}</th>{% endfor %}</tr>
{% for metric in all_metrics %}
{% set name = metric ~ "@" ~ topk %}
<tr><td>{{ name }}</td><td><b>{{ metrics[name]|number }}</b></td>
<td>{{ metrics[name ~ "-pessimistic"]|number }}</td>
<td>{{ metrics[name ~ "-optimistic"]|number }}</td>
<td>{{ metrics[name ~ "-index_order"]|number }}</td>
{% for values in references.values() %}
<td>{% if metric in values %}{{ values[metric]|number }}{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</table></div>
{% if metrics.num_queries_without_relevant %}
<p>Left out, because they share no label with any image of the database:
{{ metrics.num_queries_without_relevant|whole }} of the queries.</p>
{% endif %}
{% if excluded and metrics.num_queries_in_database %}
<p>{{ metrics.num_queries_in_database|whole }} of the queries are in the database; they are left out
of their own rankings.</p>
{% endif %}
{% if others %}
<details><summary>Further numbers</summary><div class="wide"><table>
{% for name, value in others.items() %}
<tr><td>{{ name }}</td><td>{{ "%.6g"|format(value) }}</td></tr>
{% endfor %}
</table></div></details>
{% endif %}

<h2>Distances</h2>
<p>Good codes put images that share a label near and the others far. Where the two hills overlap,
answers are mixed. Of a radius, all images within it are the answer: each dot of the precision and
recall curve is one, the smallest at the left. Radius {{ close }} finds anything for
{{ "%.0f"|format(100 * radii.answered[close]) }} % of the queries; the precision is the mean over
these.</p>
<div class="plots">
<div>{{ figures.distances }}</div><div>{{ figures.recall }}</div><div>{{ figures.precision }}</div>
</div>

<h2>Classes</h2>
<p>The weakest first. <i>Alone</i> is {{ ranked_by }} when the class itself is the only label that
counts; the columns after it are means over the queries that show the class, where any shared label
makes an answer relevant, so a class may look well because of what else its images show. The last
column tells what the irrelevant ones of the first {{ checked }} answers show, with their
number.</p>
<div class="wide"><table>
<tr><th>class</th><th>queries</th><th>in the database</th><th>alone</th>
{% for metric in headline %}<th>{{ metric }}</th>{% endfor %}
<th class="text">wrong answers</th></tr>
{% for row in classes %}
<tr><td>{{ row.name }}</td><td>{{ row.queries|whole }}</td><td>{{ row.images|whole }}</td>
<td class="bar" style="--share: {{ '%.0f'|format(100 * row.alone if row.alone == row.alone else 0)
}}%">{{ row.alone|number }}</td>
{% for value in row.means %}<td>{{ value|number }}</td>{% endfor %}
<td class="text">{{ row.wrong }}</td></tr>
{% endfor %}
</table></div>

<h2>The worst queries</h2>
<p>By {{ ranked_by }}. Green frames share a label with the query (blue), red ones share none. Equal
distances stand in index order.</p>
{{ strip_rows(worst) }}
{% if best %}
<h2>The best queries</h2>
{{ strip_rows(best) }}
{% endif %}

<h2>Bits</h2>
<p>Of the {{ database|length|whole }} codes of the database {{ statistics.distinct|whole }} are
different. {{ statistics.saturated.sum() }} of {{ database.bits }} bits are saturated (the same in
at least 99 % of the codes), {{ statistics.constant.sum() }} of them constant. The mean entropy of
a bit is {{ statistics.entropy.mean()|number }} of 1. Because bits are correlated, they spread the
codes like {{ "%.1f"|format(statistics.effective_bits) }} uncorrelated ones.
{% if largest %}The two most alike are bits {{ largest[1] }} and {{ largest[2] }}, with an absolute
correlation of {{ largest[0]|number }}.{% endif %}</p>
<div class="plots"><div>{{ figures.balance }}</div><div>{{ figures.correlation }}</div></div>
{% if "map" in figures %}
<h3>Map of the queries' codes</h3>
<div class="wide"><div class="map">{{ figures.map }}</div></div>
{% endif %}

<h2>Where the codes come from</h2>
<div class="wide"><table>
<tr><th></th><th class="text">queries</th><th class="text">database</th></tr>
{% for label, key in [("file", "file"), ("sha256", "sha256"), ("written", "date")] %}
<tr><td>{{ label }}</td><td class="long">{{ sources.query[key] }}</td>
<td class="long">{{ sources.database[key] }}</td></tr>
{% endfor %}
{% for label, key in [("dataset", "dataset"), ("config", "config"),
  ("model fingerprint", "model_fingerprint"), ("bits", "bits"), ("settings", "settings"),
  ("difficult objects count", "count_difficult")] if query[key] or database[key] %}
<tr><td>{{ label }}</td><td class="long">{{ query[key] }}</td>
<td class="long">{{ database[key] }}</td></tr>
{% endfor %}
<tr><td>images</td><td class="long">{{ query|length|whole }}</td>
<td class="long">{{ database|length|whole }}</td></tr>
</table></div>
</body>
</html>
"""
