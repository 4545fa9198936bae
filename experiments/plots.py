"""Plots of the study: metrics against bits, curves and maps of codes, and first answers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regiondh_d2.engine.command import CommandError
from regiondh_d2.evaluation.curves import count_distances, precision_at, radius_curve
from regiondh_d2.structures.codes import CodeSet
from regiondh_d2.utils.file_io import refuse_inputs
from regiondh_d2.visualization.draw import save_image
from regiondh_d2.visualization.plots import (
    plot_code_map,
    plot_metric_against_bits,
    plot_precision_at,
    plot_precision_recall,
    save_figure,
)
from regiondh_d2.visualization.retrieval_pictures import compare_methods

from .queries import read_run_codes
from .result_files import ResultFolder, require_metrics
from .rows import Row

__all__ = ["draw_against_bits", "draw_codes", "metrics_against_bits", "plot_files"]

ANSWERS = "answers.jpg"
METRICS = ("MAP", "MAP_min", "ACG")


def plot_files(rows: Sequence[Row], output: Path, answers: bool) -> list[Path]:
    """All files that may be written to the folder ``output``."""
    names = [f"{metric}_against_bits.png" for metric in METRICS]
    names += ["precision_recall.png", "precision_at_k.png"]
    names += [f"map_{row.name}.png" for row in rows]
    return [output / name for name in [*names, *([ANSWERS] if answers else [])]]


def metrics_against_bits(
    rows: Sequence[Row], results: ResultFolder, dataset: str, metric: str, topk: int
) -> dict[str, dict[int, float]]:
    """The mean of a metric over the seeds that are done, by title and bits.

    Rows without any run on the dataset are left out.

    Raises:
        RegionDHError: a result was measured at another cut-off, or is damaged.
    """
    name = f"{metric}@{topk}"
    found = {}
    for row in rows:
        for run in row.runs():
            result = results.read(run)
            if result and dataset in result["metrics"]:
                require_metrics(result["metrics"][dataset], [name], topk, results.row_file(row))
                seeds = found.setdefault(row.title, {}).setdefault(run.bits, [])
                seeds.append(result["metrics"][dataset][name])
    return {
        title: {bits: float(np.mean(seeds)) for bits, seeds in values.items()}
        for title, values in found.items()
    }


def draw_against_bits(
    rows: Sequence[Row], results: ResultFolder, dataset: str, topk: int, output: Path
) -> None:
    """Draw each metric against the code length; a row with a single length is left out.

    Args:
        rows, results, dataset, topk: what is drawn, see :func:`metrics_against_bits`.
        output: the folder of the plots.

    Raises:
        CommandError: there are no results on the dataset.
        RegionDHError: a result was measured at another cut-off, or is damaged.
    """
    for metric in METRICS:
        values = metrics_against_bits(rows, results, dataset, metric, topk)
        if not values:
            raise CommandError(
                f"{results.path} has no results on {dataset}: measure them with "
                "python -m experiments.run"
            )
        values = {title: v for title, v in values.items() if len(v) > 1}
        if values:
            figure = plot_metric_against_bits(values, f"{metric}@{topk}")
            save_figure(figure, output / f"{metric}_against_bits.png")


def draw_codes(
    rows: Sequence[Row],
    networks: Path,
    dataset: str,
    bits: int,
    topk: int,
    output: Path,
    queries: Sequence[str] = (),
) -> bool:
    """Draw precision-recall curves, precision at k, maps of codes and, of some queries, answers.

    They come from the code files of each row's first seed. Rows without code files are left out.

    Args:
        rows: to draw.
        networks: the folder of the trained networks and their code files.
        dataset: the retrieval dataset.
        bits: the code length.
        topk: the last k of precision at k.
        output: the folder of the plots.
        queries: image ids whose first answers are drawn.

    Returns:
        Whether there were code files.

    Raises:
        RegionDHError: a code file can't be used, or a query isn't there.
    """
    methods = _codes_of(rows, networks, dataset, bits)
    if not methods:
        return False
    counts = {
        title: count_distances(q.codes, d.codes, q.labels, d.labels, bits=q.bits)
        for title, (q, d) in methods.items()
    }
    radii = {title: radius_curve(c) for title, c in counts.items()}
    save_figure(plot_precision_recall(radii), output / "precision_recall.png")
    first = {title: precision_at(c, topk) for title, c in counts.items()}
    save_figure(plot_precision_at(first), output / "precision_at_k.png")
    for row in rows:
        if row.title in methods:
            figure = plot_code_map(methods[row.title][0])
            save_figure(figure, output / f"map_{row.name}.png")
    if queries:
        photos = [name for pair in methods.values() for codes in pair for name in codes.file_names]
        refuse_inputs(output / ANSWERS, photos=photos)
        save_image(compare_methods(methods, queries), output / ANSWERS)
    return True


def _codes_of(
    rows: Sequence[Row], networks: Path, dataset: str, bits: int
) -> dict[str, tuple[CodeSet, CodeSet]]:
    """Queries and database by title, of each row's first seed; rows without files are left out."""
    found = {}
    for row in rows:
        run = next((run for run in row.runs() if run.bits == bits), None)
        codes = None if run is None else read_run_codes(run, networks, dataset)
        if codes is not None:
            found[row.title] = codes
    return found
