"""Compares rows by bootstraps over queries and seeds together; corrects p values for their number.

One training is no method: two seeds of a row differ by as much as many rows do. So an interval
draws the seeds of either row as well as the queries.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from regiondh_d2.engine.training_record import same_data
from regiondh_d2.utils.errors import RegionDHError

from .queries import SHOWN, per_query
from .result_files import ResultFolder, as_dict, retrain
from .rows import Row, Run

__all__ = ["Interval", "bootstrap_difference", "differences", "holm"]

LEVEL = 0.95
SAMPLES_AT_ONCE = 200  # 20 MB of values for 3 seeds of 2,000 queries


@dataclass(frozen=True)
class Interval:
    """A difference of two rows.

    Attributes:
        difference: the mean over queries and seeds.
        low, high: its 95 % interval.
        p: the two-sided p value of no difference: twice the share of draws on the other side of 0.
    """

    difference: float
    low: float
    high: float
    p: float


def bootstrap_difference(
    a: np.ndarray, b: np.ndarray, samples: int = 10_000, seed: int = 0
) -> Interval:
    """The difference of two rows on the same queries, by a bootstrap over queries and seeds.

    A draw takes, each with replacement, as many queries, seeds of ``a`` and seeds of ``b`` as there
    are. Of S seeds the draws would vary by (S - 1) / S of what S new seeds would, half of it for
    two, so deviations of a seed from the mean of its row are first stretched by sqrt(S / (S - 1)).
    A row with one seed adds no variation: then the interval is of these networks alone.

    Args:
        a, b: float (seeds, Q), one metric of each query by each training; NaN (in all) where a
            query has no relevant image.
        samples: how often is drawn.
        seed: of the draws.

    Raises:
        RegionDHError: the two don't have the same queries, or no query has a relevant image.
    """
    a, b = (np.atleast_2d(np.asarray(x, np.float64)) for x in (a, b))
    empty = np.isnan(a[0])
    if a.shape[1] != b.shape[1] or any((np.isnan(x) != empty).any() for x in (a, b)):
        raise RegionDHError(f"not the same queries: {a.shape[1]} and {b.shape[1]} values")
    a, b = a[:, ~empty], b[:, ~empty]
    if not a.size:
        raise RegionDHError("no query has a relevant image: there is nothing to compare")
    mean = float((a.mean(axis=0) - b.mean(axis=0)).mean())
    parts = [_stretched(a), _stretched(b)]
    drawn = [np.arange(n) for n in (len(a), len(b), a.shape[1]) if n > 1]
    if not drawn:  # every draw is the same
        return Interval(mean, mean, mean, float(mean == 0.0))

    def statistic(*indices: np.ndarray, axis: int) -> np.ndarray:
        left = list(indices)
        of_a, of_b = (x[left.pop(0)].mean(axis=-2) if len(x) > 1 else x[0] for x in parts)
        values = of_a - of_b
        if left:  # values of one row of each have no axis of draws
            values = np.broadcast_to(values, (*left[0].shape[:-1], values.shape[-1]))
            values = np.take_along_axis(values, left[0], axis=-1)
        return values.mean(axis=-1)

    from scipy.stats import bootstrap  # imported here, since it is slow and trainings don't need it

    found = bootstrap(
        drawn,
        statistic,
        n_resamples=samples,
        batch=SAMPLES_AT_ONCE,
        vectorized=True,
        axis=-1,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    draws = found.bootstrap_distribution
    # The difference itself counts as a draw, so that no p is 0.
    beyond = [1 + np.count_nonzero(side) for side in (draws <= 0, draws >= 0)]
    p = min(1.0, 2.0 * min(beyond) / (samples + 1))
    return Interval(mean, float(low), float(high), float(p))


def _stretched(values: np.ndarray) -> np.ndarray:
    """(seeds, Q) whose deviations from the mean over seeds are those of the bootstrap."""
    seeds = len(values)
    if seeds == 1:
        return values
    mean = values.mean(axis=0)
    return mean + (values - mean) * np.sqrt(seeds / (seeds - 1))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, 1979), in the same order.

    The i-th smallest of m is multiplied by m - i + 1; none is below a smaller one, or above 1. If
    those below .05 are claimed, the chance that any of these claims is false is at most 5 %.
    """
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    found = np.empty(len(p))
    found[order] = np.minimum(1.0, np.maximum.accumulate(np.asarray(p)[order] * factors))
    return found.tolist()


def differences(
    runs: Sequence[Run],
    reference: Row,
    networks: Path,
    results: ResultFolder,
    dataset: str,
    topk: int = 1000,
    earlier: Sequence[dict] = (),
) -> tuple[list[dict], list[str]]:
    """Each row against a reference row at the same length, see :func:`bootstrap_difference`.

    Only finished runs with each query's metrics (:func:`.per_query`) are compared.

    Args:
        runs: those of the reference and of the rows to compare it with.
        reference: the row from which the others' metrics are subtracted.
        networks, results, dataset, topk: see :func:`.per_query`.
        earlier: an earlier result for the same reference. Its differences stay where nothing, or
            only fewer seeds of a row, can be measured now.

    Returns:
        The differences, by row, length and metric, and the names of those kept from ``earlier``.

    Raises:
        RegionDHError: runs were measured on different data, or a file of results is damaged.
    """
    values, measured_on = {}, {}
    for run in runs:
        result = results.read(run)
        if not result or dataset not in result["metrics"]:
            continue
        found = per_query(run, networks, results, dataset, topk)
        if found is None:
            continue
        values.setdefault((run.row.name, run.bits), []).append(found)
        checksum = as_dict(result.get("data_sha256")).get(dataset)
        if checksum is None:
            raise RegionDHError(
                f"{results.row_file(run.row)} is damaged ({run.name}: no data_sha256 of "
                f"{dataset}): restore it, or {retrain(run)}"
            )
        for other, name in measured_on.items():
            if not same_data(other, checksum):
                raise RegionDHError(
                    f"{name} and {run.name} were measured on different images or labels of "
                    f"{dataset}: train one of them again to compare them"
                )
        measured_on.setdefault(checksum, run.name)
    asked = [(run.row.name, run.bits) for run in runs if run.row.name != reference.name]
    found, kept = [], []
    for name, bits in dict.fromkeys([*asked, *((d["against"], d["bits"]) for d in earlier)]):
        old = [d for d in earlier if (d["against"], d["bits"]) == (name, bits)]
        seeds = [values.get((row, bits), []) for row in (reference.name, name)]
        if all(seeds) and not any(_has_more_seeds(d, *map(len, seeds)) for d in old):
            found += _row_differences(reference.name, name, bits, *seeds)
        elif old:
            found += old
            kept.append(f"{name} {bits}")
    return found, kept


def _has_more_seeds(difference: dict, reference: int, against: int) -> bool:
    # Older files don't give the number of the reference's seeds, which was at least the same.
    seeds = difference.get("seeds", 1)
    return difference.get("reference_seeds", seeds) > reference or seeds > against


def _row_differences(
    reference: str, against: str, bits: int, a: Sequence[dict], b: Sequence[dict]
) -> list[dict]:
    """An entry for each metric; ``a`` and ``b`` hold each seed's :func:`.per_query`."""
    found = []
    for metric in SHOWN:
        pair = (np.array([seed[metric] for seed in seeds]) for seeds in (a, b))
        found.append(
            {"row": reference, "against": against, "bits": bits, "metric": metric}
            | asdict(bootstrap_difference(*pair))
            | {"seeds": len(b), "reference_seeds": len(a)}
        )
    return found
