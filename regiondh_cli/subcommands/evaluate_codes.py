"""Measure retrieval with two code files: no model, no images.

Every metric is the expectation over a random order of equal distances, with exact bounds over all
orders and the value when ties are sorted by database row.
"""

import argparse

from ..arguments import CommandParser
from ..legal_values import IMAGE_CLASSES, ONE_BIT_A_CLASS, QUERY_CLASSES, REFERENCES
from ..options import (
    add_exclude_self_option,
    add_overwrite_option,
    add_rerank_options,
    check_rerank_options,
    positive_int,
)


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--query", required=True, metavar="Q.h5", help="codes of the queries")
    parser.add_argument("--database", required=True, metavar="D.h5", help="codes to search in")
    parser.add_argument(
        "--topk",
        type=positive_int,
        nargs="+",
        default=[1000],
        metavar="K",
        help="cut-off or cut-offs of the ranking (default: 1000)",
    )
    parser.add_argument(
        "--reference",
        choices=[*REFERENCES, IMAGE_CLASSES],
        help="measure, instead of the files' codes, those of their true labels, detected classes "
        "or image classes (with --weights), random ones, or unsupervised ones of their features",
    )
    parser.add_argument(
        "--weights",
        metavar="W.pth",
        help="weights of the network; its classifier gives the image classes. Also with "
        "--rerank-by classes or both, for files that were written without class_weights",
    )
    parser.add_argument(
        "--bits",
        type=positive_int,
        metavar="K",
        help="length of random codes and of codes made from features (default: that of the files)",
    )
    add_exclude_self_option(parser)
    add_rerank_options(parser)
    parser.add_argument(
        "--query-classes",
        choices=QUERY_CLASSES,
        help="with --rerank-by classes: what the classes of a query are read from, its stored bits "
        "or its activations, as in a search for an image that the network has just encoded "
        f"(default: {QUERY_CLASSES[0]})",
    )
    parser.add_argument("--json", metavar="OUT.json", help="also write the numbers, flat names")
    add_overwrite_option(parser)


def check(parser: CommandParser, args: argparse.Namespace) -> None:
    check_rerank_options(parser, args)
    by_classes = args.rerank_by in ("classes", "both") and not args.reference
    if not by_classes and (args.reference == IMAGE_CLASSES) != bool(args.weights):
        parser.error(f"--weights and --reference {IMAGE_CLASSES} belong together")
    if args.bits and not args.reference:
        parser.error("--bits is only for --reference: the files' codes have their own length")
    if args.bits and args.reference in ONE_BIT_A_CLASS:
        parser.error(f"{args.reference} has one bit for each class: leave out --bits")
    if args.reference and args.rerank and args.rerank_by != "features":
        parser.error(
            "reference codes have no activations and no classes: leave out --rerank, or give it "
            "--rerank-by features"
        )
    if args.query_classes and args.rerank_by != "classes":
        parser.error("--query-classes needs --rerank-by classes")
