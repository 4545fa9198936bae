"""Measure retrieval with two code files: no model, no images.

Every metric is the expectation over a random order of equal distances, with exact bounds over all
orders and the value when ties are sorted by database row.
"""

import argparse
import sys
import warnings
from dataclasses import replace

import numpy as np
import torch

from regiondh_cli.legal_values import IMAGE_CLASSES

from ..checkpoint import read_weights, state_fingerprint
from ..engine.command import CommandError
from ..evaluation.ranking_metrics import METRICS, RankingResult
from ..evaluation.reference_codes import REFERENCES, image_class_codes
from ..evaluation.reranking import evaluate_reranking
from ..evaluation.retrieval_evaluator import rank_code_sets
from ..evaluation.same_images import find_same_images
from ..retrieval.code_store import read_codes
from ..structures.code_checks import check_comparable
from ..structures.codes import CodeSet, check_holds
from ..utils.display import print_line
from ..utils.file_io import check_output_file, refuse_inputs, write_json
from ..utils.progress import Progress

CLASSIFIER = "roi_heads.image_hash.classifier."
COLUMNS = {
    "expected": "",
    "pessimistic": "-pessimistic",
    "optimistic": "-optimistic",
    "index order": "-index_order",
}


def evaluate(
    query: CodeSet,
    database: CodeSet,
    topk: list[int],
    rerank: int | None,
    rerank_by: str | None,
    exclude_self: bool = False,
    query_classes: str = "bits",
) -> tuple[RankingResult, list[str]]:
    """The result and warnings for the reader."""
    notes = check_comparable(query, database)
    check_holds(query, "the query file", "labels")
    check_holds(database, "the database file", "labels")
    progress = Progress(lambda line: print(line, file=sys.stderr), "queries ranked", len(query))

    def show(done: int, _: int) -> None:
        progress.show(done)

    if rerank is not None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = evaluate_reranking(
                query,
                database,
                topk,
                rerank,
                rerank_by,
                show,
                exclude_self=exclude_self,
                query_classes=query_classes,
            )
        notes += [str(warning.message) for warning in caught]
        return result, notes + find_same_images(query, database).notes(exclude_self)
    result, warned = rank_code_sets(query, database, topk, show, exclude_self=exclude_self)
    return result, notes + warned


def read_classifier(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the image classifier in a checkpoint."""
    weights = read_weights(path)
    try:
        return tuple(weights["model"][CLASSIFIER + part].numpy() for part in ("weight", "bias"))
    except (KeyError, TypeError):
        raise CommandError(f"{path} is no checkpoint with an image classifier") from None


def with_class_weights(codes: CodeSet, path: str, name: str) -> CodeSet:
    """Codes with the classifier of their network's checkpoint, for files that lack it.

    Args:
        codes: the codes.
        path: the checkpoint.
        name: of the code file, for the message.

    Raises:
        CommandError: the checkpoint is of another network, or has no image classifier.
    """
    weight, bias = read_classifier(path)
    # A network computes in float32, also where its file is smaller.
    state = {
        key: tensor.float() if tensor.dtype == torch.float16 else tensor
        for key, tensor in read_weights(path)["model"].items()
    }
    if codes.model_fingerprint not in ("", state_fingerprint(state)):
        raise CommandError(f"{path} is not the network that made {name}: name its weights")
    if weight.shape != (len(codes.class_names) or len(weight), codes.bits):
        raise CommandError(f"{path} has a classifier of {weight.shape}, which {name} does not fit")
    return replace(codes, class_weights=np.concatenate([weight.T, bias[None]]).astype(np.float32))


def format_table(metrics: dict[str, float], topk: list[int]) -> str:
    lines = [f"{'':16}" + "".join(f"{column:>13}" for column in COLUMNS)]
    for k in dict.fromkeys(topk):
        for metric in METRICS:
            name = f"{metric}@{k}"
            values = "".join(f"{metrics[name + order]:13.4f}" for order in COLUMNS.values())
            lines.append(f"{name:16}{values}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    check_output_file(
        args.json,
        inputs=[args.query, args.database, args.weights],
        overwrite=args.overwrite,
        kind="json",
    )
    query, database = read_codes(args.query), read_codes(args.database)
    if args.json:
        refuse_inputs(args.json, photos=[*query.file_names, *database.file_names])
    if args.reference == IMAGE_CLASSES:
        query, database = image_class_codes(query, database, *read_classifier(args.weights))
    elif args.reference:
        codes_of = REFERENCES[args.reference]
        query, database = codes_of(query, database, args.bits or query.bits)
    elif args.weights:
        database = with_class_weights(database, args.weights, args.database)
    result, notes = evaluate(
        query,
        database,
        args.topk,
        args.rerank,
        args.rerank_by,
        args.exclude_self,
        args.query_classes or "bits",
    )
    for note in notes:
        print_line(f"warning: {note}", sys.stderr)
    print(f"{len(query)} queries in {len(database)} codes of {query.bits} bits")
    print(format_table(result.metrics, args.topk))
    left_out = result.metrics["num_queries_without_relevant"]
    if left_out:
        print(f"{left_out} queries without any relevant item in the database are left out")
    found = result.metrics["num_queries_in_database"]
    if found and args.exclude_self:
        print(f"{found} queries are in the database and left out of their own rankings")
    # Last, so that the numbers are printed even if the file can't be written.
    if args.json:
        write_json(args.json, result.metrics)
