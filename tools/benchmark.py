#!/usr/bin/env python
"""Time what the performance table of the README claims, on this machine."""

import argparse
import math
import os
import platform
import sys
import time

import numpy as np

from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking
from regiondh_d2.retrieval.code_store import pack_codes, unpack_codes, write_json

# PASCAL VOC 2007: test queries in trainval, 20 classes, about 1.5 of them an image.
VOC_QUERIES, VOC_DATABASE, VOC_CLASSES = 4952, 5011, 20


def describe_machine() -> dict[str, str | int]:
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        name = names[0] if names else name
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return {
        "cpu": name,
        "cores": cores,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def make_labels(rng: np.random.Generator, rows: int, classes: int) -> np.ndarray:
    """Multi-hot uint8 (rows, classes), one class in a third of the images, as "person" in VOC."""
    share = np.full(classes, 0.04)
    share[0] = 0.35
    labels = (rng.random((rows, classes)) < share).astype(np.uint8)
    labels[np.arange(rows), rng.integers(0, classes, rows)] = 1
    return labels


def make_codes(rng: np.random.Generator, labels: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Packed codes that know the labels, with noise: random hyperplanes of the label vectors."""
    logits = labels @ projection
    return pack_codes(logits + rng.standard_normal(logits.shape) > 0)


def rank_in_python(
    query: np.ndarray,
    database: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    k: int,
) -> dict[str, float]:
    """One query the usual way: sort (distance, row) pairs, then walk over the top k.

    Args:
        query: bool (K,).
        database: bool (N, K).
        query_labels: int (C,), multi-hot.
        database_labels: int (N, C), multi-hot.
        k: cut-off.
    """
    distances = np.count_nonzero(database != query, axis=1).tolist()
    shared = (database_labels @ query_labels).tolist()
    ranking = sorted(zip(distances, range(len(distances)), strict=True))
    hits = label_sum = 0
    ap = wap = dcg = 0.0
    for rank, (_, row) in enumerate(ranking[:k], start=1):
        s = shared[row]
        label_sum += s
        if s:
            hits += 1
            ap += hits / rank
            wap += label_sum / rank
            dcg += (2**s - 1) / math.log2(rank + 1)
    ideal = sorted(shared, reverse=True)[:k]
    idcg = sum((2**s - 1) / math.log2(rank + 1) for rank, s in enumerate(ideal, start=1))
    relevant = sum(s > 0 for s in shared)
    return {
        "MAP": ap / hits if hits else 0.0,
        "MAP_min": ap / min(relevant, k),
        "MAP_all": ap / relevant,
        "WMAP": wap / hits if hits else 0.0,
        "ACG": label_sum / k,
        "NDCG": dcg / idcg,
        "P": hits / k,
    }


def benchmark_evaluation(args: argparse.Namespace) -> dict:
    """Our metrics against sorting in Python, on codes and labels of VOC 2007's size."""
    rng = np.random.default_rng(0)
    projection = rng.standard_normal((VOC_CLASSES, args.bits))
    query_labels = make_labels(rng, args.queries, VOC_CLASSES)
    database_labels = make_labels(rng, args.items, VOC_CLASSES)
    query = make_codes(rng, query_labels, projection)
    database = make_codes(rng, database_labels, projection)
    k = min(args.topk, args.items)

    seconds = []
    for _ in range(args.repeat):
        start = time.perf_counter()
        result = evaluate_ranking(
            query, database, query_labels, database_labels, bits=args.bits, topk=k
        )
        seconds.append(time.perf_counter() - start)
    ours = min(seconds)

    sample = min(args.baseline_queries, args.queries)
    query_bits, database_bits = unpack_codes(query, args.bits), unpack_codes(database, args.bits)
    labels, items = query_labels.astype(int), database_labels.astype(int)
    measurable = np.flatnonzero((labels[:sample] @ items.T).any(axis=1))
    start = time.perf_counter()
    plain = [rank_in_python(query_bits[q], database_bits, labels[q], items, k) for q in measurable]
    per_query = (time.perf_counter() - start) / max(1, len(measurable))
    for q, values in zip(measurable, plain, strict=True):
        for metric, value in values.items():
            found = result.per_query[f"{metric}@{k}-index_order"][q]
            if abs(found - value) > 1e-9:
                raise ValueError(f"{metric}@{k} of query {q}: {found}, but sorting says {value}")
    baseline = per_query * args.queries
    return {
        "queries": args.queries,
        "database": args.items,
        "bits": args.bits,
        "topk": k,
        "seconds": ours,
        "baseline_seconds": baseline,
        "baseline_queries_measured": len(measurable),
        "ratio": baseline / ours,
    }


def print_evaluation(numbers: dict) -> None:
    print(
        f"{numbers['queries']} queries, {numbers['database']} codes of {numbers['bits']} bits, "
        f"k = {numbers['topk']}"
    )
    print(f"ours, all metrics with expectation, bounds and index order: {numbers['seconds']:.3f} s")
    print(
        f"sorting every query in Python, index order only: {numbers['baseline_seconds']:.1f} s "
        f"(scaled from {numbers['baseline_queries_measured']} queries)"
    )
    print(f"ratio: {numbers['ratio']:.0f}")


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(dest="benchmark", required=True)
    evaluation = subparsers.add_parser(
        "evaluation", help="retrieval metrics against a sort per query in Python"
    )
    for name, default, text in (
        ("--queries", VOC_QUERIES, "number of queries"),
        ("--items", VOC_DATABASE, "number of codes in the database"),
        ("--bits", 64, "code length"),
        ("--topk", 1000, "cut-off"),
        ("--repeat", 5, "runs of ours, of which the fastest counts"),
        ("--baseline-queries", 500, "queries to measure the baseline on; it is scaled to all"),
    ):
        evaluation.add_argument(
            name, type=positive_int, default=default, help=f"{text} (default: {default})"
        )
    evaluation.set_defaults(run=benchmark_evaluation, show=print_evaluation)
    for subparser in subparsers.choices.values():
        subparser.add_argument("--json", metavar="OUT.json", help="also write the numbers")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    machine = describe_machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    try:
        numbers = args.run(args)
        if args.json:
            write_json(args.json, {args.benchmark: numbers, "machine": machine})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    args.show(numbers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
