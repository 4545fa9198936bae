"""Which files are images: the formats that are read, their endings and their first bytes."""

from __future__ import annotations

import importlib.util
import os
import re

__all__ = [
    "HEIF_ENDINGS",
    "HEIF_HINT",
    "IMAGE_ENDINGS",
    "PILLOW_FORMATS",
    "SIGNATURE_BYTES",
    "can_read_heif",
    "format_by_content",
]

# The only formats that Pillow may try. All are decoded in this process: an EPS file would start
# Ghostscript, and other formats other programs or libraries.
PILLOW_FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"),
    *("TGA", "PCX", "SGI", "SUN", "QOI", "ICO", "PSD", "DDS"),
)

# Files with these endings count as images; their content is not checked.
IMAGE_ENDINGS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".gif", ".bmp", ".tif", ".tiff"),
        *(".webp", ".avif", ".pbm", ".pgm", ".ppm", ".pnm"),
    }
)
HEIF_ENDINGS = frozenset({".heic", ".heif", ".hif"})
HEIF_HINT = "needs pi-heif: pip install pi-heif"

# Cameras' raw files. Many begin like a TIFF whose first picture is a thumbnail.
_RAW_ENDINGS = frozenset(
    {
        *(".3fr", ".arw", ".bay", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq"),
        *(".k25", ".kdc", ".mdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf"),
        *(".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
    }
)

SIGNATURE_BYTES = 64  # what `format_by_content` needs

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_PNM = re.compile(rb"P[1-6]\s+(#|\d+\s)")
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_NEUTRAL_BRANDS = {b"mif1", b"msf1", b"mif2", b"miaf"}  # in both AVIF and HEIC files


def can_read_heif() -> bool:
    """Whether HEIC and HEIF files can be decoded here; the decoder is not imported."""
    return importlib.util.find_spec("pi_heif") is not None


def format_by_content(head: bytes, name: str = "") -> str | None:
    """The format of an image, from its first bytes.

    Args:
        head: the first :data:`SIGNATURE_BYTES` bytes of the file, or all of a smaller file.
        name: file name, which tells cameras' raw files from TIFFs.

    Returns:
        A name as in :data:`PILLOW_FORMATS`, or "HEIF" (HEIC files, too); None for anything else.
    """
    if os.path.splitext(name)[1].lower() in _RAW_ENDINGS:
        return None
    for signature, image_format in _SIGNATURES:
        if head.startswith(signature):
            return image_format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[4:8] == b"ftyp":
        return _format_of_brands(head)
    return "PPM" if _PNM.match(head) else None


def _format_of_brands(head: bytes) -> str | None:
    size = min(int.from_bytes(head[:4], "big"), len(head))
    # The main brand, its version, then the brands that the file is compatible with.
    main, *others = (head[i : i + 4] for i in (8, *range(16, size - 3, 4)))
    if main in _NEUTRAL_BRANDS:
        known = _AVIF_BRANDS | _HEIF_BRANDS
        main = next((brand for brand in others if brand in known), b"heic")
    if main in _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if main in _HEIF_BRANDS else None
