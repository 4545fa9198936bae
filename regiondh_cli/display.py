"""How to show file names, which may hold any character."""

from __future__ import annotations

import os
import sys
import unicodedata
from typing import TextIO

__all__ = ["display_name", "display_width", "print_line", "tolerate_any_text"]

# Letters of these categories are invisible or change how the text around them is shown: control,
# format (such as bidirectional overrides), surrogates (undecodable bytes of a file name), and line
# and paragraph separators.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# The first joins emoji, the second selects their form.
_KEPT = {"\u200d", "\ufe0f"}


def display_name(name: str | bytes | os.PathLike) -> str:
    r"""A name as one line of harmless text for a terminal, a picture, a page or a log.

    Control characters and bytes that are not UTF-8 are escaped as in a Python string (``\n``,
    ``\x1b``, ``\xe9``, ``\u202e``); everything else stays as it is.

    Args:
        name: a file name, as ``os.fspath`` or ``os.listdir`` gives it.

    Returns:
        Text that can be encoded as UTF-8.
    """
    text = os.fsdecode(name)
    return "".join(map(_shown, text))


def _shown(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # os.fsdecode's surrogate of a byte
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if letter in _KEPT or unicodedata.category(letter) not in _ESCAPED:
        return letter
    return letter.encode("unicode_escape").decode("ascii")


def display_width(text: str) -> int:
    """The width of a displayed text in terminal columns; Chinese letters and the like take two."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    unseen = sum(letter in _KEPT or unicodedata.combining(letter) > 0 for letter in text)
    return len(text) + wide - unseen


def print_line(line: str, file: TextIO | None = None) -> None:
    """Print a line that names files, as :func:`display_name` shows them.

    Args:
        line: one line.
        file: where to; standard output if None.
    """
    print(display_name(line), file=file, flush=True)


def tolerate_any_text() -> None:
    r"""Make standard output and error escape letters that their encoding lacks (``\u00e9``).

    So printing a name never fails, in any locale.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what a test or a notebook puts in their place
            stream.reconfigure(errors="backslashreplace")
