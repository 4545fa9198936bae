"""Plots of curves, distances and bits of a retrieval, as the field draws them.

Functions that plot return a matplotlib figure that belongs to no window and no global state. Save
it with :func:`save_figure`, or put :func:`figure_svg` into a page. matplotlib is imported when the
first one is drawn. Pictures of images are drawn by :mod:`.draw`.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.code_map import code_map
from ..structures.codes import CodeSet, check_holds
from ..utils.display import display_name
from ..utils.errors import MissingPackageError, RegionDHError
from ..utils.file_io import replace_when_complete
from ..utils.marks import figure_mark
from ..utils.text import drawable, font_families

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..evaluation.bit_statistics import BitStatistics
    from ..evaluation.curves import DistanceCounts, RadiusCurve

__all__ = [
    "INK",
    "figure_svg",
    "plot_bits",
    "plot_code_map",
    "plot_correlation",
    "plot_distances",
    "plot_metric_against_bits",
    "plot_precision_at",
    "plot_precision_recall",
    "require_matplotlib",
    "save_figure",
]

INK = "#21252b"
"""Color of text, ticks and axes, and of nothing else, so that a page can replace it."""

# Okabe and Ito's colors, distinguishable for color-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES = ("-", "--", "-.", ":")
OTHER = "#9a9fa6"
MAP_CLASSES = 20  # more colors can't be distinguished


def require_matplotlib(what: str) -> None:
    """Check early that matplotlib is installed.

    Args:
        what: what needs it, for the message.

    Raises:
        MissingPackageError: it isn't installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingPackageError(
            f"{what} needs matplotlib, which isn't installed: pip install 'regiondh_d2[demo]'"
        ) from None


def _axes(
    title: str, x: str = "", y: str = "", size: tuple[float, float] = (5.6, 3.8)
) -> tuple[Figure, Axes]:
    """An empty plot in the common style; ``size`` in inches."""
    require_matplotlib("a plot")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    )
    style |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    axes.grid(color=OTHER, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes, **where) -> None:
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, **where)


def _line(index: int) -> dict:
    """Color and dashes of the line of a method, distinguishable in gray, too."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index // len(COLORS) % len(LINES)],
        "linewidth": 1.8,
    }


def plot_precision_recall(curves: Mapping[str, RadiusCurve]) -> Figure:
    """Precision against recall, a point for each Hamming radius.

    Args:
        curves: the curve of each method, see
            :func:`~regiondh_d2.evaluation.curves.radius_curve`. Radii in which no query finds
            anything have no point.
    """
    figure, axes = _axes("Precision and recall over Hamming radii", "recall", "precision")
    for index, (name, curve) in enumerate(curves.items()):
        axes.plot(curve.recall, curve.precision, "o", markersize=3, label=name, **_line(index))
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, 1.02)
    if len(curves) > 1:
        _legend(axes)
    return figure


def plot_precision_at(curves: Mapping[str, np.ndarray]) -> Figure:
    """Expected precision within the first k answers.

    Args:
        curves: for each method the precision at k = 1, 2, ..., see
            :func:`~regiondh_d2.evaluation.curves.precision_at`.
    """
    figure, axes = _axes("Precision within the first k answers", "k", "expected precision")
    for index, (name, curve) in enumerate(curves.items()):
        axes.plot(np.arange(1, len(curve) + 1), curve, label=name, **_line(index))
    axes.set_ylim(0, 1.02)
    if len(curves) > 1:
        _legend(axes)
    return figure


def plot_metric_against_bits(results: Mapping[str, Mapping[int, float]], metric: str) -> Figure:
    """A metric against the length of the code.

    Args:
        results: for each method its value at each number of bits.
        metric: name of the values.
    """
    figure, axes = _axes(f"{metric} against code length", "bits", metric, (7.4, 3.8))
    for index, (name, values) in enumerate(results.items()):
        bits = sorted(values)
        axes.plot(bits, [values[b] for b in bits], "o", markersize=4, label=name, **_line(index))
    axes.set_xticks(sorted({bits for values in results.values() for bits in values}))
    _legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_distances(counts: DistanceCounts) -> Figure:
    """Distances of relevant and other items from their queries: the less overlap, the better.

    All pairs have equal weight.

    Args:
        counts: see :func:`~regiondh_d2.evaluation.curves.count_distances`.
    """
    figure, axes = _axes("Distances of all pairs", "Hamming distance", "share of the pairs")
    relevant = counts.relevant.sum(axis=0)
    other = counts.items.sum(axis=0) - relevant
    kinds = {"share a label": (relevant, COLORS[0]), "share none": (other, COLORS[1])}
    for name, (pairs, color) in kinds.items():
        shares = pairs / max(1, pairs.sum())
        edges = np.arange(len(shares) + 1) - 0.5
        axes.stairs(shares, edges, fill=True, alpha=0.35, color=color)
        axes.stairs(shares, edges, color=color, linewidth=1.5, label=name)
    _legend(axes)
    return figure


def plot_bits(statistics: BitStatistics) -> Figure:
    """The share of codes in which each bit is set; saturated bits stand out."""
    figure, axes = _axes("Balance of the bits", "bit", "share of codes with the bit set")
    bits = np.arange(len(statistics.ones))
    groups = {"saturated": (statistics.saturated, COLORS[1])}
    groups = {"in use": (~statistics.saturated, COLORS[0])} | groups
    for name, (chosen, color) in groups.items():
        if chosen.any():
            # Bars start at one half, so that a bit that is never set is as visible as one that
            # always is.
            axes.bar(bits[chosen], statistics.ones[chosen] - 0.5, bottom=0.5, color=color)
            axes.plot([], [], "s", color=color, label=name)
    axes.axhline(0.5, color=INK, linewidth=0.8)
    axes.set_ylim(0, 1)
    axes.set_xlim(-1, len(bits))
    if statistics.saturated.any():
        _legend(axes, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def plot_correlation(statistics: BitStatistics) -> Figure:
    """A heat map of the correlation of each pair of bits; gray if one of them is constant."""
    figure, axes = _axes("Correlation of the bits", "bit", "bit")
    from matplotlib import colormaps

    axes.grid(visible=False)
    colors = colormaps["RdBu_r"].with_extremes(bad=OTHER)
    image = axes.imshow(
        statistics.correlation, cmap=colors, vmin=-1, vmax=1, interpolation="nearest"
    )
    bar = figure.colorbar(image)
    bar.ax.tick_params(colors=INK)
    bar.outline.set_visible(False)
    return figure


def plot_code_map(codes: CodeSet) -> Figure:
    """A 2-D map of the codes of images that show one class, colored by the class.

    Args:
        codes: with labels; images of no or several classes are left out.

    Raises:
        CodeFileError: the codes have no labels.
        ValueError: as :func:`~regiondh_d2.evaluation.code_map.code_map`.
    """
    check_holds(codes, "the codes of the map", "labels")
    places, meaning = code_map(codes)
    labels = np.asarray(codes.labels).astype(bool)
    single = labels.sum(axis=1) == 1
    classes = labels.argmax(axis=1)
    images = np.bincount(classes[single], minlength=labels.shape[1])
    frequent = np.argsort(-images, kind="stable")[:MAP_CLASSES]
    names = codes.class_names or [f"class {i}" for i in range(labels.shape[1])]

    figure, axes = _axes(f"Codes of images of one class: {meaning}", size=(9.2, 5.4))
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    axes.set_xticks([])
    axes.set_yticks([])
    tab20 = colormaps["tab20"]
    assert isinstance(tab20, ListedColormap)
    colors = np.asarray(tab20.colors).tolist()
    style: dict[str, Any] = {"linestyle": "", "markersize": 3.5, "markeredgewidth": 0, "alpha": 0.8}
    style["rasterized"] = True  # or a page would have a path for every image
    for class_id in sorted(frequent):
        chosen = single & (classes == class_id)
        if chosen.any():
            color = colors[class_id % len(colors)]
            marker = "os^D"[class_id // len(colors) % 4]
            axes.plot(*places[chosen].T, marker=marker, color=color, label=names[class_id], **style)
    rest = single & ~np.isin(classes, frequent)
    if rest.any():
        axes.plot(*places[rest].T, marker="o", color=OTHER, label="other classes", **style)
    if single.any():
        _legend(axes, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    return figure


def _show_names(figure: Figure, shown: Callable[[str], str]) -> None:
    """Make names of classes and methods safe to show."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # or "$" in a name begins a formula
        text.set_text(shown(text.get_text()))
        families = font_families(drawable(text.get_text()))
        if len(families) > 1:
            text.set_fontfamily(families)


def figure_svg(figure: Figure, name: str = "figure") -> str:
    """A figure as an ``svg`` element for a page, the same text for the same plot.

    It has no background and no fixed size.

    Args:
        figure: a plot.
        name: unique in a page, since figures must not share ids.
    """
    from matplotlib import rc_context

    _show_names(figure, display_name)  # a page is shown with the fonts of its reader
    buffer = io.StringIO()
    # Without these, random names and the date would change with every call.
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts draw it
        figure.savefig(buffer, format="svg", dpi=150, transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Ids of groups would repeat in every figure of a page, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    return re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure with our mark, complete or not at all; the name's ending gives the format.

    Raises:
        ValueError: matplotlib knows no such format.
    """
    ending = Path(path).suffix.lower().lstrip(".")
    if ending not in figure.canvas.get_supported_filetypes():
        raise RegionDHError(
            f"{display_name(path)}: {ending or 'no ending'!r} is no plot format; use .svg or .png"
        )
    _show_names(figure, drawable)
    with replace_when_complete(path) as temporary:
        content = io.BytesIO()  # written at once: Pillow loses the end on a full disk
        figure.savefig(content, format=ending, dpi=150, **figure_mark(ending))
        temporary.write_bytes(content.getvalue())
