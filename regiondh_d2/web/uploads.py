"""Uploaded photos, in memory: limited in number, bytes and hours, under random ids."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ..retrieval.queries import Query
from .decoder import DecodedImage
from .limits import Limits

__all__ = ["Upload", "UploadStore"]


@dataclass(frozen=True)
class Upload:
    """An uploaded photo, encoded.

    Attributes:
        id: random.
        expires: seconds since 1970.
        image: its pixels.
        whole: the query of the photo.
        objects: the query of all objects detected in it.
    """

    id: str
    expires: float
    image: DecodedImage
    whole: Query
    objects: Query

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        return self.image.inputs.nbytes + len(self.image.picture.jpeg) + self.objects.codes.nbytes


class UploadStore:
    """Uploads by their ids. Nothing is written to a disk.

    Args:
        limits: of number, bytes and hours.
        clock: the time in seconds since 1970.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.time):
        self._limits, self._clock = limits, clock
        self._uploads: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, image: DecodedImage, whole: Query, objects: Query) -> Upload:
        """Keep a photo; the oldest ones go where there are too many."""
        expires = self._clock() + 3600 * self._limits.upload_hours
        upload = Upload(secrets.token_urlsafe(16), expires, image, whole, objects)
        with self._lock:
            self._uploads[upload.id] = upload
            self._drop()
        return upload

    def get(self, upload_id: str) -> Upload | None:
        """An upload; None if there is none, or it has expired."""
        with self._lock:
            self._drop()
            return self._uploads.get(upload_id)

    def remove(self, upload_id: str) -> None:
        """Forget an upload, if there is one."""
        with self._lock:
            self._uploads.pop(upload_id, None)

    def __len__(self) -> int:
        return len(self._uploads)

    def _drop(self) -> None:
        now, limits = self._clock(), self._limits
        for upload in list(self._uploads.values()):
            total = sum(other.size for other in self._uploads.values())
            too_many = len(self._uploads) > limits.uploads or total > limits.kept_bytes
            if upload.expires > now and not too_many:
                break
            del self._uploads[upload.id]
