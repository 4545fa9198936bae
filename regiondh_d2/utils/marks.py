"""Marks: how we recognize files and folders that this package wrote, so that it may replace them.

Every file that a command writes under a name of the user's choice carries a mark in its first or
last bytes, where nobody sees it and other programs keep it:

============================ ===================================================================
HDF5, JSON                   attribute or first key ``format``, "regiondh-..."
PNG                          text chunk ``Software``
JPEG, GIF                    comment
WebP, TIFF, AVIF             EXIF or TIFF tag ``Software``
SVG, PDF, PS and EPS         creator
HTML                         ``<meta name="generator">``
``.pth``                     first key ``format``
folder                       a file ``.regiondh``
============================ ===================================================================

A file of metrics has no place for a mark: we recognize it as an object of numbers under the names
of metrics. Files and folders of version 0.1 have no mark either, and are recognized by their form
if it is unambiguous.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from .temporaries import temporary_beside

__all__ = [
    "FOLDER_MARK",
    "GENERATOR",
    "MARK",
    "WEIGHTS_FORMAT",
    "figure_mark",
    "mark_folder",
    "mark_of",
    "picture_mark",
]

MARK = "regiondh_d2"
"""The mark, in the place that a format has for the name of the program."""

GENERATOR = f'<meta name="generator" content="{MARK}">'
"""The mark of a page, for its head."""

FOLDER_MARK = ".regiondh"
"""Name of the file that marks a folder."""

WEIGHTS_FORMAT = "regiondh-weights"
"""The value of ``format`` in a file of weights."""

_PREFIX = "regiondh-"  # of the value of ``format``
_END = 4096  # bytes that are read at either end of a file
_FORM_LIMIT = 1 << 20  # a JSON file of version 0.1 is smaller

# Marks of files by their first bytes: the kind, how the file begins, and the mark.
_MARKS = tuple(
    (kind, re.compile(begin, re.DOTALL), re.compile(mark, re.DOTALL))
    for kind, begin, mark in (
        ("picture", rb"\x89PNG\r\n\x1a\n", rb"\x00\x00\x00\x14tEXtSoftware\x00regiondh_d2"),
        ("picture", rb"\xff\xd8\xff", rb"\xff\xfe\x00\x0dregiondh_d2"),
        ("picture", rb"GIF8[79]a", rb"!\xfe\x0bregiondh_d2\x00"),
        ("picture", rb"RIFF.{4}WEBP|II\*\x00|MM\x00\*|.{4}ftypavi[fs]", rb"regiondh_d2\x00"),
        ("plot", rb"\s*<(?:\?xml|svg)", rb"<dc:title>regiondh_d2</dc:title>"),
        ("plot", rb"%PDF-", rb"/Creator \(regiondh_d2\)"),
        ("plot", rb"%!PS-", rb"%%Creator: regiondh_d2\s"),
        ("page", rb"\s*<!DOCTYPE html>", re.escape(GENERATOR).encode()),
        # How torch.save writes a dict that begins with ``format``.
        (
            "weights",
            rb"PK\x03\x04",
            rb"data\.pkl.{0,96}?\x06\x00\x00\x00format.{0,8}?regiondh-weights",
        ),
        ("json", rb"\s*[\[{]", rb'^\s*(?:\[\s*)?\{\s*"format"\s*:\s*"regiondh-'),
    )
)

# What version 0.1 wrote.
_OLD_PAGE = re.compile(
    rb'\s*<!DOCTYPE html>.{0,200}?<meta name="color-scheme" content="light dark">\s*'
    rb'<meta http-equiv="Content-Security-Policy"\s.{0,400}?<title>',
    re.DOTALL,
)
_METRIC = re.compile(r"(?:.*/)?(?:MAP_all|(?:MAP|WMAP|ACG|NDCG|P)(?:_min|_all)?@\d+)")
# The keys that every JSON file of a kind has: answers, costs, measurements, results, comparisons.
_OLD_KEYS = (
    {"file_name", "bits", "searched", "answers"},
    {"setting", "flop"},
    {"setting", "parameter"},
    {"setting", "time"},
    {"machine", "evaluation"},
    {"machine", "search"},
    {"machine", "training"},
    {"row", "title", "bits", "seed", "command", "metrics"},
    {"row", "against", "bits", "metric", "difference"},
)
_DEMO_NAMES = {
    *("scenes", "training", "metrics.json", "query.h5", "database.h5"),
    *("retrieval.png", "report.html"),
}
_SCENES_KEYS = {"version", "num_database", "num_queries", "image_size", "seed"}


def mark_of(path: str | os.PathLike) -> str | None:
    """The kind of a file or folder, from its mark or its form.

    Reads the first and the last bytes of a file, and all of a JSON file below 1 MiB without a mark.

    Args:
        path: a file or folder. One that is missing or unreadable has no mark.

    Returns:
        "codes", "picture", "plot", "page", "weights" or "json" for a file; "index", "demo",
        "scenes" or another kind given to :func:`mark_folder` for a folder; None for anything else.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _folder_mark(path)
        return _file_mark(path) if path.is_file() else None
    except (OSError, ValueError):
        return None


def mark_folder(path: str | os.PathLike, kind: str = "folder") -> None:
    """Put the mark into a folder, which is created if it is missing.

    Args:
        path: the folder.
        kind: what :func:`mark_of` will return for it.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    mark = path / FOLDER_MARK
    if _format_of(_read_json(mark)) == kind:
        return
    note = "regiondh_d2 wrote this folder, and may replace what it wrote in it."
    text = json.dumps({"format": _PREFIX + kind, "note": note}, indent=2)
    temporary = temporary_beside(mark)
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, mark)  # a folder with half a mark would count as another kind
    finally:
        temporary.unlink(missing_ok=True)


def picture_mark(format: str) -> dict[str, Any]:
    """The options of Pillow's ``Image.save`` that put the mark into a picture.

    Args:
        format: Pillow's name of the format.

    Returns:
        Options; none for a format that has no place for a mark, such as BMP.
    """
    from PIL import Image, PngImagePlugin

    if format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", MARK)
        return {"pnginfo": text}
    if format in ("JPEG", "GIF"):
        return {"comment": MARK.encode()}
    if format == "TIFF":
        return {"tiffinfo": {_SOFTWARE: MARK}}
    if format in ("WEBP", "AVIF"):
        exif = Image.Exif()
        exif[_SOFTWARE] = MARK
        return {"exif": exif.tobytes()}
    return {}


_SOFTWARE = 305  # the tag of EXIF and TIFF


def figure_mark(ending: str) -> dict[str, Any]:
    """The options of matplotlib's ``savefig`` that put the mark into a file.

    Args:
        ending: matplotlib's name of the format, such as "svg".
    """
    if ending == "png":
        return {"metadata": {"Software": MARK}}
    if ending in ("svg", "pdf", "ps", "eps"):
        return {"metadata": {"Creator": MARK}}
    pillow = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF", "tiff": "TIFF"}
    options = picture_mark(pillow.get(ending, ending.upper()))
    return {"pil_kwargs": options} if options else {}


def _folder_mark(path: Path) -> str | None:
    mark = path / FOLDER_MARK
    if mark.is_file():
        return _format_of(_read_json(mark)) or "folder"
    if _format_of(_read_json(path / "index.json")) == "index":
        return "index"
    if _is_scenes(path):
        return "scenes"
    names = {name for name in os.listdir(path) if not name.startswith(".")}
    if _is_scenes(path / "scenes") and names <= _DEMO_NAMES:
        return "demo"
    return None


def _is_scenes(path: Path) -> bool:
    record = _read_json(path / "scenes.json")
    return isinstance(record, dict) and record.keys() == _SCENES_KEYS


def _file_mark(path: Path) -> str | None:
    with open(path, "rb") as file:
        head = file.read(_END)
        size = os.fstat(file.fileno()).st_size
        file.seek(max(len(head), size - _END))
        ends = (head, file.read(_END))
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _hdf5_mark(path)
    for kind, begin, mark in _MARKS:
        if begin.match(head) and any(mark.search(end) for end in ends):
            return kind
    if _OLD_PAGE.match(head):
        return "page"
    if _is_old_grid(head):
        return "picture"
    if head.lstrip()[:1] in (b"{", b"[") and size <= _FORM_LIMIT and _is_old_json(path):
        return "json"
    return None


def _hdf5_mark(path: Path) -> str | None:
    import h5py

    # First with the default setting, since a file that is open in this process can't be opened with
    # another; then without a lock, since another program may hold one. Any program may have written
    # the file, so HDF5 may raise anything.
    for locking in (None, False):
        with suppress(Exception), h5py.File(path, "r", locking=locking) as file:
            # Read only text of fixed length: other text is behind references, and HDF5 crashes on
            # damaged ones.
            if file.attrs.get_id("format").dtype.kind != "S":
                return None
            value = file.attrs["format"]
            return _format_of({"format": value if isinstance(value, str) else value.decode()})
    return None


def _read_json(path: Path) -> Any:
    """The content of a small JSON file; None for any other file."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _format_of(record: Any) -> str | None:
    """The kind that ``format`` names."""
    value = record.get("format") if isinstance(record, dict) else None
    if isinstance(value, str) and value.startswith(_PREFIX):
        return value.removeprefix(_PREFIX)
    return None


def _is_old_json(path: Path) -> bool:
    values = _read_json(path)
    if isinstance(values, list) and values:
        values = values[0]
    if not isinstance(values, dict) or not values:
        return False
    if _format_of(values) or any(keys <= values.keys() for keys in _OLD_KEYS):
        return True
    numbers = all(type(value) in (int, float) for value in values.values())
    return numbers and any(_METRIC.fullmatch(name) for name in values)


def _is_old_grid(head: bytes) -> bool:
    """Whether a PNG is a grid of tiles of version 0.1: RGB, of a grid's size, and nothing else."""
    # The chunk IHDR has 13 bytes of content. IDAT, the pixels, comes right after it.
    if head[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" or head[37:41] != b"IDAT":
        return False
    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
    return (
        head[24:26] == b"\x08\x02"
        and (width == 234 or (width > 262 and width % 202 == 60))
        and height >= 316
        and height % 226 == 90
    )
