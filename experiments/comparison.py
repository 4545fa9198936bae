"""Compares rows by paired bootstraps over queries, with each query's metric averaged over seeds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regiondh_d2.engine.training_record import same_data
from regiondh_d2.utils.errors import RegionDHError

from .queries import SHOWN, per_query
from .result_files import ResultFolder, as_dict, retrain
from .rows import Row, Run

__all__ = ["differences", "paired_bootstrap"]

LEVEL = 0.95
SAMPLES_AT_ONCE = 500  # 8 MB of draws for 2,000 queries, where all would be 160 MB


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, samples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean difference of two methods on the same queries, and its 95 % interval.

    Args:
        a, b: float (Q,), one metric of each query by each method; NaN (in both) where a query has
            no relevant image.
        samples: how often the queries are drawn with replacement.
        seed: of the draws.

    Returns:
        The mean of ``a - b``, and the 2.5 and 97.5 percentiles of its bootstrap distribution.

    Raises:
        RegionDHError: the two don't have the same queries, or no query has a relevant image.
    """
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        raise RegionDHError(f"not the same queries: {a.shape} and {b.shape} values")
    # A query is drawn for both methods, so it suffices to draw differences.
    difference = (a - b)[~np.isnan(a)]
    if not difference.size:
        raise RegionDHError("no query has a relevant image: there is nothing to compare")
    mean = float(difference.mean())
    if difference.size == 1:  # every draw is the same
        return mean, mean, mean
    from scipy.stats import bootstrap  # imported here, since it is slow and trainings don't need it

    found = bootstrap(
        (difference,),
        np.mean,
        n_resamples=samples,
        batch=SAMPLES_AT_ONCE,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return mean, float(low), float(high)


def differences(
    runs: Sequence[Run],
    reference: Row,
    networks: Path,
    results: ResultFolder,
    dataset: str,
    topk: int = 1000,
    earlier: Sequence[dict] = (),
) -> tuple[list[dict], list[str]]:
    """Each row against a reference row at the same length, each query's metric averaged over seeds.

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
        pair = (np.mean([seed[metric] for seed in seeds], axis=0) for seeds in (a, b))
        mean, low, high = paired_bootstrap(*pair)
        found.append(
            {"row": reference, "against": against, "bits": bits, "metric": metric}
            | {"difference": mean, "low": low, "high": high}
            | {"seeds": len(b), "reference_seeds": len(a)}
        )
    return found
