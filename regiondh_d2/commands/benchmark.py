"""Time metrics against a sort in Python, search against FAISS, a network, and the page."""

import argparse
import contextlib
import math
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from ..engine.defaults import build_cfg, config_inputs
from ..engine.step_times import compare_fusions, time_numbers_at_once, time_steps
from ..engine.user_code import import_user_code
from ..evaluation.ranking_metrics import evaluate_ranking
from ..retrieval.engines import MilvusIndex, create_index
from ..structures.packed import pack_codes, unpack_codes
from ..utils.errors import RegionDHError
from ..utils.file_io import check_output_file, write_json
from .serve import check_web_packages

# PASCAL VOC 2007, about 1.5 of them an image.
VOC_CLASSES = 20

# A search of one query takes a millisecond, so a few runs are too noisy.
LEAST_QUERIES = 300
MANY_ITEMS = 1_000_000

# Of a slow way to search, which runs more often than was asked for only within these.
SECONDS = 10.0

# Timed beside the engine in memory where asked for. The last is Milvus's again, without waiting for
# what may have been added within the last seconds.
EXTRA_ENGINES = ("shards", "milvus", "milvus_bounded")

# Packed queries and k in, distances and rows out.
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


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
    """Packed codes made from labels with noise: random hyperplanes of the label vectors."""
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
                raise RegionDHError(f"{metric}@{k} of query {q}: {found}, but sorting says {value}")
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


def benchmark_search(args: argparse.Namespace) -> dict:
    """Our index against FAISS alone with either of its two ways of selection, by batch size."""
    index = create_index(args.bits)
    import faiss  # after ours, which says what to install if it is missing

    rng = np.random.default_rng(0)

    def random_codes(rows: int) -> np.ndarray:
        if args.bits % 8 == 0:  # needs an eighth of the memory
            return rng.integers(256, size=(rows, args.bits // 8), dtype=np.uint8)
        return pack_codes(rng.integers(2, size=(rows, args.bits), dtype=np.uint8))

    database = random_codes(args.items)
    index.add(database)
    ways: dict[str, Search] = {"seconds": index.search}
    # A separate index for each: otherwise the cache of one search would help the next.
    for name, use_heap in (("faiss_heap_seconds", True), ("faiss_counting_seconds", False)):
        # Any: FAISS's types are those of its C++ classes, which Python's wrappers change.
        raw: Any = faiss.IndexBinaryFlat(8 * database.shape[1])
        raw.add(database)
        raw.use_heap = use_heap
        ways[name] = raw.search
    k = min(args.topk, args.items)
    numbers: dict[str, Any] = {"database": args.items, "bits": args.bits, "topk": k}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for name, options in other_engines(args, folder).items():
            before, start = anonymous_bytes(), time.perf_counter()
            other = create_index(args.bits, name, **options)
            if isinstance(other, MilvusIndex):
                stack.callback(other.drop)
            other.add(database)
            ways[f"{name}_seconds"] = other.search
            numbers[f"{name}_build_seconds"] = time.perf_counter() - start
            numbers[f"{name}_memory_bytes"] = anonymous_bytes() - before
            if isinstance(other, MilvusIndex):
                bounded = create_index(args.bits, name, **options, consistency="Bounded")
                ways[f"{name}_bounded_seconds"] = bounded.search
        numbers["batches"] = [
            compare_search(ways, random_codes(n), k, args.repeat, args.items) for n in args.batches
        ]
    return numbers


def other_engines(args: argparse.Namespace, folder: str) -> dict[str, dict[str, Any]]:
    """The engines to time beside ours in memory, and their options."""
    engines: dict[str, dict[str, Any]] = {}
    if args.shard_rows:
        path = os.path.join(folder, "shards")
        engines["shards"] = {"path": path, "shard_rows": args.shard_rows}
    if args.uri:
        engines["milvus"] = {"uri": args.uri, "collection": f"benchmark_{uuid.uuid4().hex}"}
    return engines


def anonymous_bytes() -> int:
    """Memory of this process that is no mapped file; 0 where unknown."""
    if not os.path.exists("/proc/self/status"):
        return 0
    with open("/proc/self/status") as file:
        found = [line.split()[1] for line in file if line.startswith("RssAnon:")]
    return int(found[0]) << 10 if found else 0


def compare_search(
    ways: Mapping[str, Search],
    query: np.ndarray,
    k: int,
    repeat: int,
    items: int = 0,
) -> dict[str, float]:
    """The fastest of some runs of every way to search, in turns; small batches run more often.

    Args:
        ways: search functions by the name of their result, ours as "seconds".
        query: uint8 (Q, B), packed.
        k: how many answers.
        repeat: the least number of runs.
        items: codes of the database; in a large one a search takes longer, so fewer are enough.

    Raises:
        ValueError: two ways find other distances, or two engines of ours other rows.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers = {}
    least = LEAST_QUERIES // max(1, items // MANY_ITEMS)
    for turn in range(max(repeat, least // len(query))):
        for name, search in ways.items():
            if turn < repeat or sum(seconds[name]) < SECONDS:
                start = time.perf_counter()
                answers[name] = search(query, k)
                seconds[name].append(time.perf_counter() - start)
    best = {name: min(times) for name, times in seconds.items()}
    others = ["seconds", *(f"{name}_seconds" for name in EXTRA_ENGINES)]
    for name, (distances, rows) in answers.items():
        if not np.array_equal(distances, answers["seconds"][0]):
            raise RegionDHError(f"{name}: found other distances than the index in memory")
        # FAISS alone promises no order of equal distances.
        if name in others and not np.array_equal(rows, answers["seconds"][1]):
            raise RegionDHError(f"{name}: found other rows than the index in memory")
    baseline = min(seconds for name, seconds in best.items() if name not in others)
    numbers = {"queries": len(query), **best, "ratio": baseline / best["seconds"]}
    for name in EXTRA_ENGINES:
        if f"{name}_seconds" in best:
            numbers[f"{name}_ratio"] = baseline / best[f"{name}_seconds"]
    return numbers


def print_search(numbers: dict) -> None:
    print(
        f"{numbers['database']} codes of {numbers['bits']} bits, k = {numbers['topk']}; queries/s"
    )
    heads = ("batch", "ours", "FAISS, heap", "FAISS, counting", "ours to the faster")
    print("  ".join(heads))
    for batch in numbers["batches"]:
        queries = batch["queries"]
        speeds = [
            f"{queries / batch[key]:.0f}"
            for key in ("seconds", "faiss_heap_seconds", "faiss_counting_seconds")
        ]
        cells = zip(heads, [str(queries), *speeds, f"{batch['ratio']:.3f}"], strict=True)
        print("  ".join(cell.rjust(len(head)) for head, cell in cells))
    for name in EXTRA_ENGINES:
        for batch in numbers["batches"] if f"{name}_ratio" in numbers["batches"][0] else ():
            speed = batch["queries"] / batch[f"{name}_seconds"]
            print(
                f"{name.replace('_', ', ')}, batch {batch['queries']}: "
                f"{speed:.{0 if speed >= 10 else 1}f} queries/s, "
                f"{batch[f'{name}_ratio']:.3f} of the faster FAISS"
            )
        if f"{name}_build_seconds" in numbers:
            print(
                f"{name}: built in {numbers[f'{name}_build_seconds']:.1f} s, "
                f"{numbers[f'{name}_memory_bytes'] / 1e6:.0f} MB of memory beside mapped files"
            )


def benchmark_training(args: argparse.Namespace) -> dict:
    """Steps of a network, see :func:`time_steps`."""
    return {
        "config": args.config_file,
        "images": args.images,
        "threads": torch.get_num_threads(),
        "kept": not args.return_memory,
        **time_steps(cpu_cfg(args), args.images, args.repeat),
    }


def cpu_cfg(args: argparse.Namespace) -> CfgNode:
    import_user_code(args.imports)
    return build_cfg(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])


def print_training(numbers: dict) -> None:
    print(
        f"{numbers['config']}: a step of {numbers['images']} images, {numbers['threads']} threads, "
        f"freed memory {'kept' if numbers['kept'] else 'returned'}: "
        f"{numbers['seconds']:.2f} CPU seconds, {numbers['page_faults']:.0f} page faults"
    )


def benchmark_network(args: argparse.Namespace) -> dict:
    """A step of Region-DH against one of Faster R-CNN, and images at once against one alone."""
    cfg = cpu_cfg(args)
    return {
        "config": args.config_file,
        "images": args.images,
        "threads": torch.get_num_threads(),
        "dataset": args.dataset,
        "steps": compare_fusions(cfg, args.images, args.repeat, args.dataset),
        "at_once": time_numbers_at_once(cfg, args.at_once, args.repeat, args.dataset),
    }


def print_network(numbers: dict) -> None:
    steps, images = numbers["steps"], numbers["images"]
    print(f"{numbers['config']}: {numbers['threads']} threads, CPU seconds, fastest of all turns")
    print(f"a step of {images} images, and its ratio to one of Faster R-CNN")
    for name, text in (
        ("plain", "Faster R-CNN"),
        ("sampled", "sampled regions fused"),
        ("topk", "best proposals fused"),
    ):
        print(f"{text:>22}  {steps[name]:7.3f}  {steps[name] / steps['plain']:5.2f}")
    print("seconds an image, by the number of images at once")
    print(f"{'images':>22}  {'training':>8}  {'codes':>7}")
    for row in numbers["at_once"]:
        print(f"{row['images']:>22}  {row['training']:8.3f}  {row['codes']:7.3f}")


def benchmark_page(args: argparse.Namespace) -> dict:
    """Clicks on the page, see :func:`time_page`."""
    check_web_packages()
    from ..web.page_times import time_page

    if args.queries >= args.photos:
        raise RegionDHError("--queries: fewer than --photos, since each is on another photo")
    return time_page(args.photos, args.queries, args.bits)


def print_page(numbers: dict) -> None:
    print(
        f"{numbers['photos']} photos, {numbers['objects']} objects, {numbers['engine']}: from a "
        f"click to answers {numbers['median_ms']:.1f} ms, 95th percentile "
        f"{numbers['p95_ms']:.1f} ms"
    )
    print(
        f"first load: {numbers['page_bytes']} bytes of the page, {numbers['first_bytes']} with the "
        "first list, without pictures"
    )
    print(
        f"memory: {numbers['memory_bytes'] / 1e6:.0f} MB of the server, "
        f"{numbers['reader_bytes'] / 1e6:.0f} MB of the processes that read files"
    )


# By the name of the benchmark, the functions that measure and print.
BENCHMARKS = {
    "evaluation": (benchmark_evaluation, print_evaluation),
    "search": (benchmark_search, print_search),
    "training": (benchmark_training, print_training),
    "network": (benchmark_network, print_network),
    "page": (benchmark_page, print_page),
}


def run(args: argparse.Namespace) -> None:
    measure, show = BENCHMARKS[args.benchmark]
    inputs = config_inputs(getattr(args, "config_file", ""), getattr(args, "opts", ()))
    check_output_file(args.json, inputs=inputs, overwrite=args.overwrite, kind="json")
    machine = describe_machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    numbers = measure(args)
    if args.json:
        values = {args.benchmark: numbers, "machine": machine}
        write_json(args.json, values, format="regiondh-benchmark")
    show(numbers)
