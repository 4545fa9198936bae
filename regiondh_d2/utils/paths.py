"""Paths as text."""

from __future__ import annotations

import os

__all__ = ["folder_start"]


def folder_start(folder: str) -> str:
    r"""What the paths of all files below a folder begin with: its path, with a separator behind.

    ``os.path.join(folder, "")`` adds none to a share of Windows, such as ``\\server\share``.
    """
    start = os.path.join(folder, "")
    return start if start.endswith((os.sep, os.altsep or os.sep)) else start + os.sep
