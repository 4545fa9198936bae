"""How names of files, which may hold anything, are shown to people."""

from __future__ import annotations

import os
import sys
import unicodedata

__all__ = ["display_name", "tolerate_any_text"]

# Letters of these categories change how the text around them is shown, or show nothing at all:
# control, format (of which are bidirectional overrides), surrogates (undecodable bytes of a file
# name), and separators of lines and of paragraphs.
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Emoji are joined by the first; the second chooses their form.
_KEPT = {"\u200d", "\ufe0f"}


def display_name(name: str | bytes | os.PathLike) -> str:
    r"""A name as text for a terminal, a picture, a page or a log: one line, and harmless.

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


def tolerate_any_text() -> None:
    r"""Let standard output and error show what their encoding lacks escaped (``\u00e9``).

    So printing a name never fails, whatever the locale is.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what a test or a notebook puts in their place
            stream.reconfigure(errors="backslashreplace")
