"""Shared arguments of the study's commands, and their checks."""

import argparse
from pathlib import Path

from regiondh_d2.engine.command import CommandError

from .result_files import ResultFolder

__all__ = ["add_study_options", "check_study_options"]

TABLE = Path(__file__).with_name("rows.yaml")


def add_study_options(
    parser: argparse.ArgumentParser, rows: str | None, older_name: str | None
) -> None:
    """Add the rows, ``--table``, ``--results`` and ``--networks``.

    Args:
        parser: to add them to.
        rows: what the command does with the rows, for the help; None if it takes no rows.
        older_name: another name of ``--networks``, which the command had before, or None.
    """
    if rows:
        parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows to {rows} (default: all)")
    parser.add_argument("--table", type=Path, default=TABLE, help="the rows (default: %(default)s)")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("experiments/results"),
        metavar="FOLDER",
        help="of the results (default: %(default)s)",
    )
    parser.add_argument(
        "--networks",
        *([older_name] if older_name else []),
        type=Path,
        default=Path("output/experiments"),
        metavar="FOLDER",
        help="of the trained networks and their code files (default: %(default)s)",
    )


def check_study_options(args: argparse.Namespace) -> ResultFolder:
    """Check that folders aren't files; return the folder of results.

    Raises:
        CommandError: an option names a file.
    """
    for option, folder in (("--results", args.results), ("--networks", args.networks)):
        if folder.exists() and not folder.is_dir():
            raise CommandError(f"{option} {folder} is a file: name a folder")
    return ResultFolder(args.results)
