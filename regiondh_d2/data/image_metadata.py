"""Parts of image files that don't change their pixels, and that may be damaged."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

__all__ = ["without_metadata"]

_SMALL = 1 << 16  # bytes of text


def without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG reduced to its pixels and orientation; None if nothing was removed, or for
    other formats.

    Pillow refuses a PNG with much text, and both formats with a damaged profile, note or date.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        parts = [data[:8], *filter(_is_needed_chunk, _png_chunks(data))]
    elif data.startswith(b"\xff\xd8\xff"):
        parts = [data[:2], *filter(_is_needed_segment, _jpeg_segments(data))]
    else:
        return None
    bare = b"".join(parts)
    return bare if len(bare) < len(data) else None


def _png_chunks(data: bytes) -> Iterator[bytes]:
    position = 8
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        yield data[position:end]
        position = end


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """The segments before the pixels, then all the rest."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position : position + 2] != b"\xff\xda":
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        yield data[position:end]
        position = end
    yield data[position:]


def _is_needed_segment(segment: bytes) -> bool:
    marker, content = segment[:2], segment[4:]
    if marker == b"\xff\xe1":
        return content.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"))
    # These two decide about colors, if they are whole.
    if marker == b"\xff\xe0":
        return content.startswith(b"JFIF\0") and len(content) >= 14
    if marker == b"\xff\xee":
        return content.startswith(b"Adobe") and len(content) >= 12
    return not (b"\xff\xe0" <= marker <= b"\xff\xef" or marker == b"\xff\xfe")


def _is_needed_chunk(chunk: bytes) -> bool:
    kind, content = chunk[4:8], chunk[8:-4]
    # A lower-case first letter marks a chunk as optional.
    if not kind[:1].islower() or kind == b"tRNS":
        return True
    tells_orientation = kind == b"eXIf" or (
        len(content) <= _SMALL and _has_orientation(kind, content)
    )
    return tells_orientation and zlib.crc32(kind + content) == int.from_bytes(chunk[-4:], "big")


def _has_orientation(kind: bytes, content: bytes) -> bool:
    """Whether a text chunk holds a camera's data, and stays small when decompressed."""
    name, _, text = content.partition(b"\0")
    if name == b"XML:com.adobe.xmp":
        return kind == b"iTXt" and text[:1] == b"\0"  # not compressed
    if name != b"Raw profile type exif" or kind not in (b"tEXt", b"zTXt"):
        return False
    if kind == b"tEXt":
        return True
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(text[1:], _SMALL)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail
