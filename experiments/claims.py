"""The claims of the study: a list of comparisons, with intervals and corrected p values.

``claims.yaml`` lists them. A claim *holds* if its row is ahead and its p value, corrected for the
number of all claims (:func:`.comparison.holm`), is below .05.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from regiondh_d2.utils.errors import InputNotFoundError, RegionDHError

from .comparison import Interval, bootstrap_difference, holm
from .queries import SHOWN, per_query
from .result_files import ResultFolder
from .rows import Row, Run

__all__ = ["Claim", "markdown_claims", "measure_claims", "read_claims"]

DATASETS = {"unseen": "voc_2007_retrieval_vala_valb", "seen": "voc_2007_retrieval_train_val"}
SIGNIFICANT = 0.05
TOPK = 1000


@dataclass(frozen=True)
class Claim:
    """A row is ahead of another in one metric.

    Attributes:
        name: in documents and results.
        says: the claim, for readers.
        row, against: names of rows.
        bits: of both.
        dataset: "unseen" or "seen" (:data:`DATASETS`).
        metric: one of :data:`.queries.SHOWN`.
    """

    name: str
    says: str
    row: str
    against: str
    bits: int
    dataset: str = "unseen"
    metric: str = "MAP"


def read_claims(path: str | os.PathLike, rows: Sequence[Row]) -> list[Claim]:
    """The claims of a file: by name, the other attributes of :class:`Claim`.

    Args:
        path: of the yaml file.
        rows: of the study's table.

    Raises:
        InputNotFoundError: there is no such file.
        RegionDHError: it holds something else; the text names the claim.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputNotFoundError(f"{path}: no such file of claims") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RegionDHError(
            f"{path} is no file of claims: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(found, dict) or not found:
        raise RegionDHError(f"{path} is no file of claims: NAME: and its values must stand there")
    return [_claim(str(name), values, rows, path) for name, values in found.items()]


def _claim(name: str, values: Any, rows: Sequence[Row], path: str | os.PathLike) -> Claim:
    whose = f"{path}: claim {name}"
    try:
        claim = Claim(name, **values)
    except TypeError as error:
        needed = "says, row, against, bits and, if need be, dataset and metric"
        raise RegionDHError(f"{whose} needs {needed}, and nothing else: {error}") from error
    known = {
        "row": {row.name for row in rows},
        "against": {row.name for row in rows},
        "dataset": DATASETS,
        "metric": SHOWN,
    }
    for key, legal in known.items():
        if getattr(claim, key) not in legal:
            shown = "a row of the table" if key in ("row", "against") else ", ".join(legal)
            raise RegionDHError(f"{whose}: {key} is {getattr(claim, key)!r}, not {shown}")
    for row in rows:
        if row.name in (claim.row, claim.against) and claim.bits not in row.bits:
            raise RegionDHError(f"{whose}: row {row.name} has no runs of {claim.bits} bits")
    return claim


def measure_claims(
    claims: Sequence[Claim], rows: Sequence[Row], networks: Path, results: ResultFolder
) -> list[dict[str, Any]]:
    """Each claim with its difference, interval, p values and whether it holds.

    Args:
        claims: all claims, since the correction counts them.
        rows, networks, results: the study's table and where its results are.

    Returns:
        A dict for each claim: its attributes, those of :class:`.Interval`, ``seeds`` of either row,
        ``p_corrected``, ``holds``, and ``queries_of_one_seed``: whether the interval was put
        together by :func:`_with_seeds_of_results`.

    Raises:
        RegionDHError: a claim can't be measured; the text names it.
    """
    by_name = {row.name: row for row in rows}
    found = []
    for claim in claims:
        sides = [_Side.of(by_name[n], claim, networks, results) for n in (claim.row, claim.against)]
        one_seed = any(len(side.values) < 2 <= len(side.means) for side in sides)
        interval = bootstrap_difference(*(side.values for side in sides))
        if one_seed:
            interval = _with_seeds_of_results(interval, *sides)
        seeds = [len(side.means if one_seed else side.values) for side in sides]
        found.append(
            {**asdict(claim), **asdict(interval), "seeds": seeds, "queries_of_one_seed": one_seed}
        )
    for entry, p in zip(found, holm([entry["p"] for entry in found]), strict=True):
        entry["p_corrected"] = p
        entry["holds"] = bool(p < SIGNIFICANT and entry["difference"] > 0)
    return found


@dataclass(frozen=True)
class _Side:
    """What is known of one row: each query's metric of some seeds, and the means of all."""

    values: np.ndarray  # (seeds, Q)
    means: np.ndarray  # (seeds,)

    @classmethod
    def of(cls, row: Row, claim: Claim, networks: Path, results: ResultFolder) -> "_Side":
        dataset = DATASETS[claim.dataset]
        values, means = [], []
        for run in (Run(row, claim.bits, seed) for seed in row.seeds):
            metrics = (results.read(run) or {"metrics": {}})["metrics"].get(dataset)
            if metrics is None:
                continue
            means.append(metrics[f"{claim.metric}@{TOPK}"])
            kept = per_query(run, networks, results, dataset, TOPK)
            if kept is not None:
                values.append(kept[claim.metric])
        if not values:
            raise RegionDHError(
                f"claim {claim.name}: no queries' metrics of row {row.name} at {claim.bits} bits "
                f"in {results.path}: train it with python -m experiments.run {row.name}"
            )
        return cls(np.array(values), np.array(means))


def _with_seeds_of_results(queries: Interval, a: _Side, b: _Side) -> Interval:
    """An interval where each query's metrics were kept of one seed only.

    Older results have the means of all seeds, but each query's values of the last one. The variance
    of the difference is then that over queries, of the bootstrap, plus that of the means over
    seeds, and the interval is that of a normal distribution.
    """
    from scipy.stats import norm

    two_sided = norm.ppf(0.975)
    variance = ((queries.high - queries.low) / 2 / two_sided) ** 2
    for side in (a, b):
        # Several seeds are in the bootstrap already.
        if len(side.values) == 1 < len(side.means):
            variance += side.means.var(ddof=1) / len(side.means)
    difference = float(a.means.mean() - b.means.mean())
    error = float(np.sqrt(variance))
    p = float(2 * norm.sf(abs(difference) / error)) if error else float(difference == 0.0)
    return Interval(difference, difference - two_sided * error, difference + two_sided * error, p)


def markdown_claims(found: Sequence[dict[str, Any]], names: Sequence[str] = ()) -> str:
    """A table of the result of :func:`measure_claims`, of some claims or of all."""
    lines = [
        "| claim | rows | bits | database | metric | difference (95 % interval) | p, corrected "
        "| holds |",
        f"|{'---|' * 8}",
    ]
    by_name = {entry["name"]: entry for entry in found}
    for name in names or by_name:
        if name not in by_name:
            raise RegionDHError(f"the document asks for an unknown claim: {name}")
        entry = by_name[name]
        mark = " ‡" if entry["queries_of_one_seed"] else ""
        p = entry["p_corrected"]
        cells = [
            entry["says"],
            f"`{entry['row']}`, `{entry['against']}`",
            str(entry["bits"]),
            entry["dataset"],
            entry["metric"],
            f"{entry['difference']:+.3f} ({entry['low']:+.3f} to {entry['high']:+.3f}){mark}",
            f"{p:.3f}" if p >= 0.001 else "< 0.001",
            "yes" if entry["holds"] else "**no**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
