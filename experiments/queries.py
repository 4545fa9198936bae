"""Each query's metrics of a run: kept with the results, or measured with the run's code files.

Code files and kept metrics of another network than that of the result are refused.
"""

from pathlib import Path

import numpy as np

from regiondh_d2.checkpoint import read_weights, state_fingerprint
from regiondh_d2.evaluation.retrieval_evaluator import rank_code_sets
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.structures.codes import CodeSet
from regiondh_d2.utils.errors import RegionDHError

from .result_files import ResultFolder, as_dict, retrain
from .rows import Run

__all__ = [
    "SHOWN",
    "check_means",
    "measure_queries",
    "network_fingerprint",
    "per_query",
    "read_run_codes",
]

SHOWN = ("MAP", "MAP_min", "NDCG", "ACG")
"""The metrics of tables and comparisons."""


def per_query(
    run: Run, networks: Path, results: ResultFolder, dataset: str, topk: int
) -> dict[str, np.ndarray] | None:
    """:data:`SHOWN` of each query, as kept with the results, or measured with the code files.

    Measured values are stored, so that the code files may be deleted.

    Args:
        run: a run that may have a result.
        networks: the folder of all networks, with their code files.
        results, dataset: the folder of results, and the dataset.
        topk: the metrics' cut-off.

    Returns:
        Metric names to float64 arrays (Q,), NaN where a query has no relevant image; None if there
        are neither kept values nor code files.

    Raises:
        RegionDHError: the file of kept values is damaged; or it, or a code file, is of another
            network than the result.
    """
    names = {metric: _array_name(dataset, metric, topk) for metric in SHOWN}
    kept = results.read_per_query(run)
    result = results.read(run) or {}
    source, measured = results.per_query_file(run), {}
    if not kept.keys() >= set(names.values()):
        measured = measure_queries(run, networks, dataset, topk)
        if not measured:
            return None
        kept |= measured
        source = networks / run.name / "inference" / dataset
    check_means(run, kept, result.get("metrics", {}).get(dataset, {}), dataset, source)
    if measured:
        results.write_per_query(run, kept)
    return {metric: kept[name].astype(np.float64) for metric, name in names.items()}


def check_means(
    run: Run, arrays: dict[str, np.ndarray], metrics: dict[str, float], dataset: str, source: Path
) -> None:
    """Check that the means of the queries' values are the metrics of the result.

    The means of two networks differ, so this needs no fingerprint.

    Args:
        run: whose result it is.
        arrays: names ``DATASET/METRIC@K`` to values (Q,).
        metrics: of the result, on the dataset.
        dataset: its name.
        source: where the arrays are from, for the message.

    Raises:
        RegionDHError: they are of another network.
    """
    for name, known in metrics.items():
        values = arrays.get(f"{dataset}/{name}")
        if values is None or np.isnan(values).all():
            continue
        values = values.astype(np.float64)
        # Half precision changes a value by at most a factor of 2^-11.
        if abs(np.nanmean(values) - known) > 2.0**-11 * np.nanmean(abs(values)) + 1e-6:
            raise RegionDHError(
                f"{source} is of another network than the result of {run.name}: {name} on "
                f"{dataset} is {np.nanmean(values):.4f} there and {known:.4f} in the result; "
                f"delete {source}, or {retrain(run)}"
            )


def measure_queries(run: Run, networks: Path, dataset: str, topk: int) -> dict[str, np.ndarray]:
    """:data:`SHOWN` of each query of a run's code files; empty if there are no code files.

    Returns:
        Names ``DATASET/METRIC@K`` to float16 arrays (Q,).

    Raises:
        CodeFileError, RegionDHError: see :func:`read_run_codes`.
    """
    codes = read_run_codes(run, networks, dataset)
    if codes is None:
        return {}
    found, _ = rank_code_sets(*codes, topk)
    # Half precision halves the files, to 20 KB for 3,000 queries; it moves a mean by 1e-5.
    return {
        _array_name(dataset, metric, topk): np.float16(found.per_query[f"{metric}@{topk}"])
        for metric in SHOWN
    }


def read_run_codes(run: Run, networks: Path, dataset: str) -> tuple[CodeSet, CodeSet] | None:
    """Codes of a run's queries and of its database; None if their files aren't there.

    Raises:
        CodeFileError: a file is damaged.
        RegionDHError: a file is of another network than the last one in the run's folder.
    """
    folder = networks / run.name / "inference" / dataset
    files = [folder / f"{role}.h5" for role in ("query", "database")]
    if not all(file.is_file() for file in files):
        return None
    codes = tuple(map(read_codes, files))
    network = network_fingerprint(run, networks)
    for file, code_set in zip(files, codes, strict=True):
        if network and code_set.model_fingerprint not in ("", network):
            raise RegionDHError(
                f"{file} was encoded by model {code_set.model_fingerprint[:12]}, not by "
                f"{networks / run.name / 'model_final.pth'} ({network[:12]}): delete the folder "
                f"{folder.parent} and run the row again to measure that"
            )
    return codes


def network_fingerprint(run: Run, networks: Path) -> str:
    """The fingerprint of the trained network in a run's folder, "" if there is none.

    Raises:
        WeightsError: its file is damaged.
        RegionDHError: its file holds something else.
    """
    file = networks / run.name / "model_final.pth"
    if not file.is_file():
        return ""
    content = read_weights(file)
    if "model" not in as_dict(content):
        raise RegionDHError(f"{file} holds no network: delete the folder to train again")
    return state_fingerprint(content["model"])


def _array_name(dataset: str, metric: str, topk: int) -> str:
    return f"{dataset}/{metric}@{topk}"
