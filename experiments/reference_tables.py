"""Tables of what :mod:`.references` measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from .queries import SHOWN

__all__ = ["markdown_classes", "markdown_references"]


def markdown_references(found: Mapping[str, Any], database: str) -> str:
    """The references in one database: MAP_min at each cut-off below the last, then :data:`SHOWN`.

    Args:
        found: the content of the file of references.
        database: "seen" or "unseen".
    """
    rows = [row for row in found.get("references", []) if row["database"] == database]
    cutoffs = _cutoffs(rows)
    names = [f"MAP_min@{k}" for k in cutoffs[:-1]] + [
        f"{m}@{k}" for k in cutoffs[-1:] for m in SHOWN
    ]
    lines = [f"| ranked by | bits | {' | '.join(names)} |", f"|{'---|' * (len(names) + 2)}"]
    for row in rows:
        values = " | ".join(f"{row['metrics'][name]:.3f}" for name in names)
        lines.append(f"| {row['title']} | {row['bits']} | {values} |")
    return "\n".join(lines) + "\n"


def markdown_classes(found: Mapping[str, Any], database: str) -> str:
    """The classes of the queries in one database, the weakest first."""
    rows = [row for row in found.get("classes", []) if row["database"] == database]
    cutoffs = _cutoffs(rows)
    names = [f"MAP_min@{k}" for k in cutoffs]
    rows.sort(key=lambda row: row["metrics"][names[-1]])
    lines = [
        f"| class | queries | images | {' | '.join(names)} |",
        f"|{'---|' * (len(names) + 3)}",
    ]
    for row in rows:
        values = " | ".join(f"{row['metrics'][name]:.3f}" for name in names)
        lines.append(f"| {row['class']} | {row['queries']} | {row['images']} | {values} |")
    means = [sum(row["metrics"][name] for row in rows) / len(rows) for name in names]
    lines.append(f"| mean of the classes | | | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(lines) + "\n"


def _cutoffs(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({int(name.partition("@")[2]) for row in rows for name in row["metrics"]})
