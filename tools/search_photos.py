#!/usr/bin/env python
"""Make a folder of photos searchable with the network that comes with the package, and search it.

Runs three commands, which it prints: tools/extract_codes.py, tools/build_index.py, tools/search.py.
Run again, it codes new photos only.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.errors import InputNotFoundError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/voc07/regiondh_effnetlite0_64.yaml"


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, metavar="FOLDER", help="searched with its subfolders")
    parser.add_argument(
        "--query", type=Path, metavar="FILE", help="what to search for (default: one of the photos)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/photos"),
        metavar="FOLDER",
        help="for the codes, the index and the picture (default: %(default)s)",
    )
    return parser


def commands(photos: Path, query: Path | None, output: Path) -> list[list[str]]:
    """The three commands.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no photo to search for.
    """
    from regiondh_d2.retrieval.images import find_images

    if not photos.is_dir():
        raise InputNotFoundError(f"{photos}: no such folder of photos")
    found = [image.file_name for image in find_images([photos])]
    codes, index = output / "photos.h5", output / "index"
    network = ["--config-file", CONFIG]
    lines = [
        ["extract_codes.py", *network, "--resume", "--skip-bad", "--input", photos]
        + ["--output", codes],
        ["build_index.py", codes, "--output", index],
        ["search.py", *network, "--index", index, "--query", query or found[len(found) // 2]]
        + ["--save", output / "answers.png"],
    ]
    return [[str(x) for x in line] for line in lines]


def run(args: argparse.Namespace) -> None:
    from regiondh_d2.engine.command import CommandError

    args.output.mkdir(parents=True, exist_ok=True)
    for name, *arguments in commands(args.photos, args.query, args.output):
        print(f"\n$ tools/{name} {shlex.join(arguments)}", flush=True)
        code = subprocess.run([sys.executable, str(ROOT / "tools" / name), *arguments]).returncode
        if code != 0:
            raise CommandError(f"tools/{name} failed; what it says stands above")
    print(f"\npicture: {args.output / 'answers.png'}")


if __name__ == "__main__":
    parsed = build_parser().parse_args()
    # After the arguments, because this import takes seconds.
    from regiondh_d2.engine.command import run_command

    sys.exit(run_command(lambda: run(parsed), interrupted="interrupted: run it again to go on"))
