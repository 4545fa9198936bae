"""Compares paths: which folder a file lies in, and which paths lead to the same file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "as_list",
    "folder_start",
    "folders_above",
    "is_below",
    "is_there",
    "lies_in",
    "same_file",
    "status_of",
]


def as_list(given: str | os.PathLike | Iterable[str | os.PathLike]) -> list[str | os.PathLike]:
    """Several paths or patterns, or one by itself, as a list: a text isn't its letters."""
    return [given] if isinstance(given, (str, os.PathLike)) else list(given)


def folder_start(folder: str) -> str:
    r"""The common start of the paths of all files below a folder: its path and a separator.

    ``os.path.join(folder, "")`` adds no separator to a Windows share such as ``\\server\share``.
    """
    start = os.path.join(folder, "")
    return start if start.endswith((os.sep, os.altsep or os.sep)) else start + os.sep


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it. Compares the texts of two absolute paths."""
    return path == folder or path.startswith(folder_start(folder))


def same_file(a: str | os.PathLike, b: str | os.PathLike) -> bool:
    """Whether two paths lead to one file or folder, through any links.

    If neither exists, the links of the folders above are followed, and paths that differ only in
    case count as the same.
    """
    try:
        return os.path.samestat(os.stat(a), os.stat(b))
    except (OSError, ValueError):
        if os.path.exists(a) or os.path.exists(b):
            return False
        return _spelling(a) == _spelling(b)


def is_there(path: str | os.PathLike) -> bool:
    """As ``os.path.lexists``, but an impossible name, such as one too long, raises an OSError."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True


def status_of(path: str | os.PathLike) -> os.stat_result | None:
    """As ``os.stat``, but None if the file is missing or can't be looked up."""
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def folders_above(path: str | os.PathLike) -> tuple[Path, ...]:
    """The folders that a file lies in, the nearest first, with all links resolved."""
    return tuple(Path(os.path.realpath(path)).parents)


def lies_in(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a file lies in a folder, at any depth, through any links."""
    return any(same_file(above, folder) for above in folders_above(path))


def _spelling(path: str | os.PathLike) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(os.fsdecode(path))).casefold()
