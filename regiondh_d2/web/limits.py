"""What one client may take from the server."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Limits of a server; whatever exceeds one is refused with a status that says so.

    Attributes:
        upload_bytes: of one uploaded file.
        upload_seconds: until all of it must have arrived.
        pixels: of a picture that is decoded; a JPEG of more is decoded at a smaller size.
        decode_seconds: for reading one picture.
        decode_memory: bytes that a process may take for reading pictures, beyond what it has at its
            start.
        uploads: how many are kept; the oldest ones go first.
        kept_bytes: of all that are kept.
        upload_hours: how long one is kept.
        waiting: how many requests of a kind may wait for their turn.
        answers: how many answers of a query can be paged through.
        thumbnail_bytes: of the thumbnails in memory.
        grouped_photos: the most photos of an index whose groups are shown.
    """

    upload_bytes: int = 20_000_000
    upload_seconds: float = 60.0
    pixels: int = 64_000_000
    decode_seconds: float = 20.0
    decode_memory: int = 1_500_000_000
    uploads: int = 100
    kept_bytes: int = 256_000_000
    upload_hours: float = 2.0
    waiting: int = 64
    answers: int = 1000
    thumbnail_bytes: int = 64_000_000
    grouped_photos: int = 20_000
