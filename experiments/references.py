"""Measure the network that comes with the package, and references, on its codes of train and val.

References say what the codes are worth: class probabilities as they are and by SimHash, and true
labels as bits and by their cosine, which is what the similarity loss aims at. Each is measured in
the seen database (val in train) and in the unseen one (one half of val in the other).
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import regiondh_d2
from regiondh_cli.arguments import CommandParser
from regiondh_d2.data.datasets.builtin import SplitByIdDigest
from regiondh_d2.engine.command import CommandError, run_command
from regiondh_d2.evaluation.class_metrics import class_means
from regiondh_d2.evaluation.ranking_metrics import RankingResult, evaluate_distances
from regiondh_d2.evaluation.reference_codes import (
    class_probabilities,
    class_simhash_codes,
    label_codes,
)
from regiondh_d2.evaluation.retrieval_evaluator import rank_code_sets
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.structures.code_rows import take_rows
from regiondh_d2.structures.codes import CodeSet
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.file_io import write_json

from .documents import fill_documents, has_place
from .options import TABLE, add_study_options, check_study_options
from .queries import SHOWN
from .result_files import ResultFolder
from .rows import read_table

STUDY = Path(__file__).parent
CUTOFFS = {"unseen": (100, 200, 1000), "seen": (1000,)}
SIMHASH_BITS, SIMHASH_SEEDS = (32, 48, 64), 5


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m experiments.references", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--query", required=True, metavar="Q.h5", help="codes of val, activations too"
    )
    parser.add_argument(
        "--database", required=True, metavar="D.h5", help="codes of train, likewise"
    )
    parser.add_argument(
        "--network",
        default="effnetlite0_voc07_64",
        metavar="NAME",
        help="that encoded them, for its image classifier (default: %(default)s)",
    )
    add_study_options(parser, rows=None, older_name=None)
    return parser


def run(args: argparse.Namespace) -> None:
    results = check_study_options(args)
    query, database = read_codes(args.query), read_codes(args.database)
    weight, bias = read_classifier(args.network, query)
    in_first = np.array([SplitByIdDigest(2, (0,))(i) for i in query.image_ids])
    pairs = {
        "unseen": (
            take_rows(query, np.flatnonzero(~in_first)),
            take_rows(query, np.flatnonzero(in_first)),
        ),
        "seen": (query, database),
    }
    found: dict[str, Any] = {"network": args.network, "references": [], "classes": []}
    # The unseen database is smaller than the last cut-off.
    warnings.filterwarnings("ignore", "top k of 1000 is above", UserWarning)
    for name, pair in pairs.items():
        found["references"] += measure_references(*pair, name, weight, bias, results)
        found["classes"] += measure_classes(*pair, name)
    write_json(results.references_file, found)
    fill_documents(
        [p for p in sorted(STUDY.glob("*.md")) if has_place(p)], read_table(TABLE), results
    )
    print_line(f"{len(found['references'])} rows in {results.references_file}")


def read_classifier(network: str, codes: CodeSet) -> tuple[np.ndarray, np.ndarray]:
    """Weight (C, K) and bias (C,) of the image classifier of a network in the package.

    Raises:
        CommandError: the codes are of another length.
    """
    photo_network = regiondh_d2.load(network)
    classifier = photo_network.model.roi_heads.image_hash.classifier
    weight, bias = (
        p.detach().cpu().numpy().astype(np.float64) for p in (classifier.weight, classifier.bias)
    )
    if weight.shape[1] != codes.bits:
        raise CommandError(
            f"the classifier of {network} reads {weight.shape[1]} bits, and the codes have "
            f"{codes.bits}: name the network that encoded them with --network"
        )
    return weight, bias


def measure_references(
    query: CodeSet,
    database: CodeSet,
    name: str,
    weight: np.ndarray,
    bias: np.ndarray,
    results: ResultFolder,
) -> list[dict[str, Any]]:
    """The metrics of the codes and of each reference; each query's are stored with the results.

    Args:
        query, database: with labels and activations.
        name: of the database, "seen" or "unseen".
        weight, bias: of the image classifier.
        results: where each query's values go.
    """
    topk = CUTOFFS[name]
    labels = [np.asarray(codes.column("labels"), np.float64) for codes in (query, database)]
    classes = [class_probabilities(codes, weight, bias) for codes in (query, database)]
    rows: dict[str, tuple[str, list[RankingResult]]] = {
        "codes": (f"{query.bits}", [rank_code_sets(query, database, topk)[0]]),
        "class probabilities, cosine": ("float", [rank_cosines(*classes, *labels, topk)]),
    }
    for bits in SIMHASH_BITS:
        drawn = (
            class_simhash_codes(query, database, weight, bias, bits, seed)
            for seed in range(SIMHASH_SEEDS)
        )
        ranked = [rank_code_sets(*pair, topk)[0] for pair in drawn]
        rows[f"class probabilities, SimHash, {bits} bits"] = (f"{bits}", ranked)
    if query.features is not None and database.features is not None:
        features = [np.asarray(codes.features, np.float64) for codes in (query, database)]
        rows["features, cosine"] = ("float", [rank_cosines(*features, *labels, topk)])
    label_bits = rank_code_sets(*label_codes(query, database), topk)[0]
    rows["true labels as bits"] = (f"{labels[0].shape[1]}", [label_bits])
    rows["true labels, cosine"] = ("float", [rank_cosines(*labels, *labels, topk)])
    found = []
    for title, (bits, ranked) in rows.items():
        metrics = {
            f"{m}@{k}": float(np.mean([r.metrics[f"{m}@{k}"] for r in ranked]))
            for k in topk
            for m in SHOWN
        }
        found.append({"title": title, "bits": bits, "database": name, "metrics": metrics})
        arrays = {m: np.mean([r.per_query[m] for r in ranked], axis=0) for m in metrics}
        results.write_reference_queries(title, name, arrays)
        print_line(f"{name}, {title}: " + ", ".join(f"{m} {v:.4f}" for m, v in metrics.items()))
    return found


def rank_cosines(
    query: np.ndarray,
    database: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    topk: Sequence[int],
) -> RankingResult:
    """Rankings by the cosine of float vectors (Q, D) and (N, D); equal cosines are ties.

    Cosines count as equal if they are to nine digits, so that rounding makes no order.
    """
    query, database = (_directions(vectors) for vectors in (query, database))

    def distances(rows: slice) -> np.ndarray:
        cosines = np.round(query[rows] @ database.T, 9)
        return np.stack([np.unique(-row, return_inverse=True)[1] for row in cosines])

    return evaluate_distances(
        distances, query_labels, database_labels, largest=len(database) - 1, topk=topk
    )


def _directions(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1.0, lengths)


def measure_classes(query: CodeSet, database: CodeSet, name: str) -> list[dict[str, Any]]:
    """MAP and MAP_min of each class's queries; a query of several classes counts for each."""
    result = rank_code_sets(query, database, CUTOFFS[name])[0]
    metrics = {m: result.per_query[m] for k in CUTOFFS[name] for m in (f"MAP@{k}", f"MAP_min@{k}")}
    labels = query.column("labels")
    means = class_means(metrics, labels)
    return [
        {
            "class": query.class_names[i],
            "database": name,
            "queries": int(labels[:, i].sum()),
            "images": int(database.column("labels")[:, i].sum()),
            "metrics": {metric: float(values[i]) for metric, values in means.items()},
        }
        for i in range(labels.shape[1])
    ]


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
