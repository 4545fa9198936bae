"""Counts the rooms of the library, their lines, and the imports between them.

    python tests/architecture.py                    # of the working tree
    python tests/architecture.py --before 6a6c7f4   # beside those of a commit
    python tests/architecture.py --before 6a6c7f4 --write CONTRIBUTING.md

A room is a package folder of regiondh_d2, a module beside them, or regiondh_cli. An arrow is a pair
of modules of two rooms of which one imports the other, wherever in the file. It goes down if the
imported room is on a lower floor. The floors are those of pyproject.toml; regiondh_cli, which needs
the standard library alone, lies below them.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, COMMAND_LINE = "regiondh_d2", "regiondh_cli"
PACKAGES = (PACKAGE, COMMAND_LINE)
BEGIN, END = "<!-- rooms -->", "<!-- end of rooms -->"
# Where modules that stood alone at commit 6a6c7f4 are now.
EARLIER = {"conversion": "checkpoint", "zoo": "checkpoint", "progress": "utils"}


@dataclass
class Room:
    """What a room holds: files, lines, and its arrows out as (from module, to module)."""

    files: int = 0
    lines: int = 0
    arrows: set[tuple[str, str]] = field(default_factory=set)
    not_down: set[tuple[str, str]] = field(default_factory=set)


def floors() -> dict[str, int]:
    """The floor of each room, from 0 up."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "floors")
    return {
        room.strip(" ()"): floor
        for floor, rooms in enumerate([COMMAND_LINE, *reversed(layers)])
        for room in rooms.split("|")
    }


def working_tree() -> dict[str, str]:
    """The Python files of the packages: names from the root of the repository, and texts."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def commit(name: str) -> dict[str, str]:
    """As :func:`working_tree`, of a commit."""
    tree = _git("ls-tree", "--name-only", name).decode().split()
    archive = _git("archive", name, *(package for package in PACKAGES if package in tree))
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        return {
            member.name: files.extractfile(member).read().decode()
            for member in files
            if member.name.endswith(".py")
        }


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


def count_rooms(files: Mapping[str, str]) -> dict[str, Room]:
    """The rooms of the packages' files, by name; the library's own ``__init__`` is in none."""
    modules = {module_of(name) for name in files}
    floor_of = floors()
    rooms: dict[str, Room] = {}
    for name, text in files.items():
        module = module_of(name)
        room = room_of(module)
        if room is None:
            continue
        counted = rooms.setdefault(room, Room())
        counted.files += 1
        counted.lines += len(text.splitlines())
        for target in imports(text, package_of(name), modules):
            other = room_of(target)
            if other not in (None, room):
                counted.arrows.add((module, target))
                if floor_of[other] >= floor_of[room]:
                    counted.not_down.add((module, target))
    return rooms


def module_of(name: str) -> str:
    """The module of a file, named from the root of the repository."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def package_of(name: str) -> list[str]:
    """The names of the packages that a file is in."""
    return name.split("/")[:-1]


def room_of(module: str) -> str | None:
    """The room of a module; None for the library itself and what starts it."""
    parts = module.split(".")
    if parts[0] == COMMAND_LINE:
        return COMMAND_LINE
    if len(parts) == 1 or parts[1] == "__main__":
        return None
    return EARLIER.get(parts[1], parts[1])


def imports(text: str, package: list[str], modules: set[str]) -> Iterator[str]:
    """The modules of the packages that a text imports; ``package`` is where its dots count from."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = source_of(node, package)
            names = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in modules else source for name in names]
        else:
            continue
        yield from (name for name in names if name in modules)


def source_of(node: ast.ImportFrom, package: list[str]) -> str:
    """What comes after "from", with its dots resolved."""
    above = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def table(now: Mapping[str, Room], before: Mapping[str, Room] | None = None) -> str:
    """Markdown, the highest floor first; with ``before``, each cell holds "before → now"."""
    order = floors()
    names = sorted({*now, *(before or ())}, key=lambda name: (-order[name], name))
    sides = [side for side in (before, now) if side is not None]
    lines = ["| room | files | lines | arrows out | not down |", "|---|---|---|---|---|"]
    for name in [*names, None]:
        cells = [numbers(side.values() if name is None else [side.get(name)]) for side in sides]
        columns = [" → ".join(map(str, column)) for column in zip(*cells, strict=True)]
        lines.append(f"| {f'`{name}`' if name else 'all'} | {' | '.join(columns)} |")
    return "\n".join(lines)


def numbers(rooms) -> tuple[int, int, int, int]:
    rooms = [room for room in rooms if room is not None]
    return (
        sum(room.files for room in rooms),
        sum(room.lines for room in rooms),
        sum(len(room.arrows) for room in rooms),
        sum(len(room.not_down) for room in rooms),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", metavar="COMMIT", help="also count this commit")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into a document")
    args = parser.parse_args()
    now = count_rooms(working_tree())
    before = count_rooms(commit(args.before)) if args.before else None
    text = table(now, before)
    print(text)
    for arrow in sorted(arrow for room in now.values() for arrow in room.not_down):
        print("not down:", *arrow)
    if args.write:
        document = args.write.read_text(encoding="utf-8")
        marked = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
        new, count = marked.subn(lambda _: f"\n{text}\n\n", document)
        if count != 1:
            raise SystemExit(f"{args.write}: no {BEGIN} before an {END}")
        args.write.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
