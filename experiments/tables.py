"""Measure every claim of the study and fill every table of its pages, from the results.

Nothing is trained. With each query's metrics in the results, as they come with the project, it
needs no networks and no images.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import regiondh_d2  # noqa: F401  (registers the datasets that tables name)
from regiondh_cli.arguments import CommandParser
from regiondh_d2.engine.command import run_command
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.file_io import write_json

from .claims import measure_claims, read_claims
from .documents import fill_documents, has_place
from .options import add_study_options, check_study_options
from .rows import read_table

STUDY = Path(__file__).parent


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m experiments.tables", description=__doc__.splitlines()[0])
    add_study_options(parser, rows=None, older_name=None)
    parser.add_argument(
        "--claims",
        type=Path,
        default=STUDY / "claims.yaml",
        metavar="FILE.yaml",
        help="the claims (default: %(default)s)",
    )
    parser.add_argument(
        "--documents",
        type=Path,
        nargs="*",
        metavar="FILE.md",
        help="pages with places for tables (default: those of the study)",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    results = check_study_options(args)
    rows = read_table(args.table)
    claims = read_claims(args.claims, rows)
    pages = args.documents
    if pages is None:
        pages = [page for page in sorted(STUDY.glob("*.md")) if has_place(page)]
    found = measure_claims(claims, rows, args.networks, results)
    write_json(results.claims_file, found)
    for entry in found:
        if not entry["holds"]:
            print_line(f"{entry['name']} doesn't hold: {entry['says']}")
    fill_documents(pages, rows, results)
    print_line(f"{len(found)} claims in {results.claims_file}; filled {len(pages)} pages")


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
