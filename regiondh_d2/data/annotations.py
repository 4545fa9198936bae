"""For the readers of annotations: text in any encoding, images by their names, boxes, notes."""

from __future__ import annotations

import codecs
import difflib
import logging
import math
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Sequence

from detectron2.utils.logger import log_first_n

from ..utils.display import display_name
from ..utils.errors import RegionDHError
from . import image_formats
from .image_formats import HEIF_ENDINGS

__all__ = [
    "IMAGE_ENDINGS",
    "ClippedBoxes",
    "Folder",
    "decode_text",
    "did_you_mean",
    "fit_box",
    "log_notes",
]

IMAGE_ENDINGS = (".jpg", *sorted((image_formats.IMAGE_ENDINGS | HEIF_ENDINGS) - {".jpg"}))
"""Endings of image files, VOC's own first."""

_MARKS = (  # UTF-32 before UTF-16, since its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")

# A box may reach this many pixels beyond its image without a note, since COCO writes two decimals.
_ROUNDING = 0.1


def decode_text(data: bytes) -> str:
    """The text of a file, without byte order mark.

    The encoding comes from the byte order mark, else from zero bytes between letters, else from the
    XML declaration, else it is UTF-8.

    Raises:
        RegionDHError: the bytes aren't text of that encoding; the message lacks the file's name.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None and len(data) > 1 and 0 in data[:2]:
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    if encoding is None:
        declared = _DECLARED.match(data)
        encoding = declared.group(1).decode("ascii") if declared else "utf-8"
        # A declaration that can be read as ASCII isn't UTF-16, even if it says so.
        if encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32", "ucs-")):
            encoding = "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise RegionDHError(
            f"byte {error.start} isn't text in {encoding}: save it again as UTF-8"
        ) from None
    except (LookupError, UnicodeError):  # UnicodeError: Python's codec "undefined"
        raise RegionDHError(
            f"its encoding {encoding!r} isn't known: save it again as UTF-8"
        ) from None


class Folder:
    """Finds files below a folder by the names that annotation tools write; lists each folder once.

    An exact match wins. Otherwise a match may differ in case or in Unicode composition (as on
    macOS), if only one file matches.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._listed: dict[str, tuple[frozenset[str], dict[str, list[str]]]] = {}

    def find(self, name: str) -> str | None:
        """The path of the file of that name, relative to the folder, or None."""
        return self._find(self._split(name), ("",))

    def find_stem(self, name: str, endings: Sequence[str] = IMAGE_ENDINGS) -> str | None:
        """The same for a name that lacks its ending; the first of the endings wins."""
        return self._find(self._split(name), endings)

    def find_tail(self, name: str) -> str | None:
        r"""The file that a path from another machine names.

        ``D:\set\day1\1.jpg`` means ``day1/1.jpg`` if that file exists, else ``1.jpg``. If no file
        matches, the name is read as a URL that a tool in the browser wrote: ``my%20photo.jpg``
        means ``my photo.jpg``, and ``/data/local-files/?d=day1/1.jpg`` means ``day1/1.jpg``.
        """
        address = name.rpartition("?d=")[2] if "?d=" in name else name.partition("?")[0]
        for form in dict.fromkeys((name, urllib.parse.unquote(address))):
            parts = form.replace("\\", "/").split("/")
            for first in range(len(parts)):
                found = self.find("/".join(parts[first:]))
                if found is not None:
                    return found
        return None

    def _split(self, name: str) -> tuple[str, str]:
        return os.path.split(os.path.join(self.path, name))

    def _find(self, place: tuple[str, str], endings: Sequence[str]) -> str | None:
        folder, name = place
        if not name or "\0" in name:
            return None
        exact, folded = self._list(folder)
        for ending in endings:
            if name + ending in exact:
                return os.path.join(folder, name + ending)
        for ending in endings:
            alike = folded.get(_folded(name + ending), ())
            if len(alike) == 1:
                return os.path.join(folder, alike[0])
        return None

    def _list(self, folder: str) -> tuple[frozenset[str], dict[str, list[str]]]:
        if folder not in self._listed:
            try:
                with os.scandir(folder or ".") as entries:
                    names = sorted(entry.name for entry in entries if not entry.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                names = []
            folded: dict[str, list[str]] = {}
            for name in names:
                folded.setdefault(_folded(name), []).append(name)
            self._listed[folder] = frozenset(names), folded
        return self._listed[folder]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def fit_box(
    box: Sequence[float], width: int, height: int
) -> tuple[tuple[float, float, float, float], bool]:
    """Clip a box to its image.

    Args:
        box: left, upper, right and lower edge in pixels from 0; the sides are positive.
        width, height: of the image, in pixels.

    Returns:
        The part inside the image, and whether more than a rounding error was outside.

    Raises:
        RegionDHError: an edge isn't finite, or no part of the box is inside.
    """
    left, upper, right, lower = map(float, box)
    if not all(map(math.isfinite, (left, upper, right, lower))):
        raise RegionDHError("has a number that is not finite: write the corners in pixels")
    inside = (max(left, 0.0), max(upper, 0.0), min(right, float(width)), min(lower, float(height)))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise RegionDHError(
            f"is outside the image of {width} x {height}: correct the box or the image's size"
        )
    beyond = max(abs(a - b) for a, b in zip(inside, (left, upper, right, lower), strict=True))
    return inside, beyond > _ROUNDING


class ClippedBoxes:
    """Counts the boxes of a dataset that reach beyond their images."""

    def __init__(self) -> None:
        self._count = 0
        self._first = ""

    def add(self, where: str) -> None:
        """Count one; ``where`` names its file and object."""
        self._first = self._first or where
        self._count += 1

    def notes(self) -> list[str]:
        """A line with their number and the first one; no line if there are none."""
        if not self._count:
            return []
        boxes = "1 box reaches" if self._count == 1 else f"{self._count} boxes reach"
        return [
            f"{boxes} beyond the image and {'is' if self._count == 1 else 'are'} clipped to it; "
            f"first {self._first}"
        ]


def log_notes(lines: Iterable[str], notes: list[str] | None, logger: str) -> None:
    """Append notes on a dataset to a list, or log each once as a warning."""
    for line in lines:
        if notes is None:
            log_first_n(logging.WARNING, line, name=logger, key="message")
        else:
            notes.append(line)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ ", did you mean 'cat'?" if a known name is similar, else ""."""

    def plain(text: str) -> str:
        return re.sub(r"[\s_-]+", "", text).casefold()

    by_plain = {plain(text): text for text in known}
    close = difflib.get_close_matches(plain(name), by_plain, n=1)
    return f", did you mean {display_name(by_plain[close[0]])!r}?" if close else ""
