"""The requirements in this package's metadata, and which of them are installed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

__all__ = ["Requirement", "missing", "requirements", "satisfies"]

PACKAGE = "regiondh_d2"

_LINE = re.compile(
    r"\s*(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^]]*\])?\s*\(?(?P<bounds>[^;)]*)\)?\s*"
    r"(;\s*(?P<marker>.*))?"
)
_EXTRA = re.compile(r"""\(?\s*extra\s*==\s*['"](?P<extra>[\w.-]+)['"]\s*\)?""")
_BOUND = re.compile(r"\s*(?P<sign>==|!=|>=|<=|>|<|~=)\s*(?P<version>[\w.*+!-]+)\s*")


@dataclass(frozen=True)
class Requirement:
    """A package that is required, or belongs to an extra.

    Attributes:
        name: of the package on the registry.
        bounds: of its version, such as ">=1.0,<2"; may be empty.
        extra: the extra with the package; "" if it is always required.
    """

    name: str
    bounds: str = ""
    extra: str = ""

    def __str__(self) -> str:
        return self.name + self.bounds

    def version(self) -> str | None:
        """The version that is installed; None if none is."""
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return None


def requirements(lines: Iterable[str] | None = None) -> list[Requirement] | None:
    """The requirements of this package.

    Args:
        lines: as in ``Requires-Dist`` of a package's metadata; those of this package if None. A
            line with a condition other than an extra is left out; pip evaluates it.

    Returns:
        The requirements; None if this package runs from a folder without being installed.
    """
    if lines is None:
        try:
            lines = metadata.requires(PACKAGE) or ()
        except metadata.PackageNotFoundError:
            return None
    found = []
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        extra = _EXTRA.fullmatch((match["marker"] or "").strip())
        if match["marker"] and extra is None:
            continue
        bounds = "".join(match["bounds"].split())
        found.append(Requirement(match["name"], bounds, extra["extra"] if extra else ""))
    return found


def missing(wanted: Iterable[Requirement]) -> list[Requirement]:
    """The requirements that aren't installed, or whose version is out of bounds."""
    lacking = []
    for requirement in wanted:
        version = requirement.version()
        if version is None or not satisfies(version, requirement.bounds):
            lacking.append(requirement)
    return lacking


def satisfies(version: str, bounds: str) -> bool:
    """Whether a version is within bounds such as ">=1.0,<2", compared by its numbers.

    Local parts (``+cu128``) and suffixes (``rc1``) are ignored; bounds in an unknown form count as
    met.
    """
    here = _numbers(version)
    for bound in filter(None, bounds.split(",")):
        match = _BOUND.fullmatch(bound)
        if match is None or "*" in match["version"]:
            continue
        there = _numbers(match["version"])
        length = max(len(here), len(there))
        a, b = (numbers + (0,) * (length - len(numbers)) for numbers in (here, there))
        holds = {
            "==": a == b,
            "!=": a != b,
            ">=": a >= b,
            "<=": a <= b,
            ">": a > b,
            "<": a < b,
            "~=": a >= b and here[: len(there) - 1] == there[:-1],
        }
        if not holds[match["sign"]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version.split("+")[0].rpartition("!")[2])
    return tuple(map(int, found[0].split("."))) if found else ()
