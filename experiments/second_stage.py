"""Measures second stages: codes alone, and the whole database reranked, as rows of a table.

``python -m experiments.second_stage`` takes the two code files that an evaluation writes. Their
queries search the database ("seen": the network was trained with it), and, split by the registered
dataset ``--unseen``, each other, which the network has never seen.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence

import numpy as np

from regiondh_cli.arguments import CommandParser
from regiondh_cli.options import add_overwrite_option, positive_int
from regiondh_d2.commands.evaluate_codes import with_class_weights
from regiondh_d2.data.catalog import load_dataset
from regiondh_d2.engine.command import run_command
from regiondh_d2.evaluation.ranking_metrics import RankingResult
from regiondh_d2.evaluation.reranking import evaluate_reranking
from regiondh_d2.evaluation.retrieval_evaluator import rank_code_sets
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.structures.code_rows import take_rows
from regiondh_d2.structures.codes import CodeSet
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.file_io import check_output_file, write_json

from .queries import SHOWN

__all__ = ["STAGES", "build_parser", "main", "measure", "split_by_roles", "table"]

STAGES = {
    "codes": None,
    "activations of the query": ("activations", "bits"),
    "classes, from the bits of both": ("classes", "bits"),
    "classes, the query's own": ("classes", "activations"),
    "both, classes and activations": ("both", "activations"),
}
"""By what the database is reranked, and what the query's classes are read from (by both always its
activations)."""


def measure(query: CodeSet, database: CodeSet, topk: int) -> dict[str, dict[str, float]]:
    """:data:`.queries.SHOWN` of each of :data:`STAGES`, at the cut-off."""
    found = {}
    for stage, options in STAGES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a cut-off above the size of the database
            result: RankingResult
            if options is None:
                result, _ = rank_code_sets(query, database, topk)
            else:
                by, source = options
                result = evaluate_reranking(
                    query, database, [topk], len(database), by, query_classes=source
                )
        found[stage] = {metric: result.metrics[f"{metric}@{topk}"] for metric in SHOWN}
    return found


def split_by_roles(codes: CodeSet, dataset: str) -> tuple[CodeSet, CodeSet]:
    """The queries and the database of a retrieval dataset, of codes that hold both.

    Raises:
        RegionDHError: the codes lack an image.
    """
    row_of = {str(image_id): row for row, image_id in enumerate(codes.image_ids)}
    rows: dict[str, list[int]] = {"query": [], "database": []}
    for record in load_dataset(dataset):
        image_id = str(record["image_id"])
        if image_id not in row_of:
            raise RegionDHError(f"the query codes lack image {image_id} of {dataset}")
        rows[record["role"]].append(row_of[image_id])
    return take_rows(codes, np.array(rows["query"])), take_rows(codes, np.array(rows["database"]))


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """A Markdown table of :func:`measure` for each database."""
    heads = [f"{name}: {'/'.join(SHOWN)}" for name in found]
    lines = [f"| second stage | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for stage in STAGES:
        cells = []
        for values in found.values():
            numbers = (f"{values[stage][metric]:.4f}".lstrip("0") for metric in SHOWN)
            cells.append("/".join(numbers))
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m experiments.second_stage", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--query", required=True, metavar="Q.h5")
    parser.add_argument("--database", required=True, metavar="D.h5")
    parser.add_argument("--weights", metavar="W.pth", help="for files without class_weights")
    parser.add_argument("--unseen", metavar="NAME", default="voc_2007_retrieval_vala_valb")
    parser.add_argument("--topk", type=positive_int, default=1000, metavar="K")
    parser.add_argument("--json", metavar="OUT.json")
    add_overwrite_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    inputs = [args.query, args.database, args.weights]
    check_output_file(args.json, inputs=inputs, overwrite=args.overwrite, kind="json")
    query, database = read_codes(args.query), read_codes(args.database)
    if args.weights:
        query = with_class_weights(query, args.weights, args.query)
        database = with_class_weights(database, args.weights, args.database)
    found = {"seen": measure(query, database, args.topk)}
    if args.unseen:
        found["unseen"] = measure(*split_by_roles(query, args.unseen), args.topk)
    print(table(found))
    if args.json:
        write_json(args.json, found, format="regiondh-second-stage")


if __name__ == "__main__":
    sys.exit(main())
