"""Paths: what they begin with, what they lie in, and which lead to the same file."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

__all__ = ["folder_start", "folders_above", "is_there", "lies_in", "same_file", "status_of"]


def folder_start(folder: str) -> str:
    r"""What the paths of all files below a folder begin with: its path, with a separator behind.

    ``os.path.join(folder, "")`` adds none to a share of Windows, such as ``\\server\share``.
    """
    start = os.path.join(folder, "")
    return start if start.endswith((os.sep, os.altsep or os.sep)) else start + os.sep


def same_file(a: str | os.PathLike, b: str | os.PathLike) -> bool:
    """Whether two paths lead to one file or folder, through any links.

    The file need not exist: then the links of the folders above it are followed, and paths that
    differ in case alone are the same.
    """
    try:
        return os.path.samestat(os.stat(a), os.stat(b))
    except (OSError, ValueError):
        if os.path.exists(a) or os.path.exists(b):
            return False
        return _spelling(a) == _spelling(b)


def is_there(path: str | os.PathLike) -> bool:
    """As ``os.path.lexists``, but an impossible name, such as one too long, is an error."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True


def status_of(path: str | os.PathLike) -> os.stat_result | None:
    """As ``os.stat``; None where nothing is known."""
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def folders_above(path: str | os.PathLike) -> tuple[Path, ...]:
    """The folders that a file lies in, from the nearest on, all links followed."""
    return tuple(Path(os.path.realpath(path)).parents)


def lies_in(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a file lies in a folder, at any depth, through any links."""
    return any(same_file(above, folder) for above in folders_above(path))


def _spelling(path: str | os.PathLike) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(os.fsdecode(path))).casefold()
