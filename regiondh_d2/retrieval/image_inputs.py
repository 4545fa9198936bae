"""Images as the network's inputs, read by the workers of a data loader."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from ..utils.file_io import file_sha256
from ..utils.shortage import refuse_if_short
from .images import ImageEntry, ImageLoader, UnreadableImage

__all__ = ["ImageInputs", "LoadedImage"]


@dataclass(frozen=True)
class LoadedImage:
    """A network's input, the photo's thumbnail, and size, time of modification and sha256 of its
    file."""

    input: dict
    thumbnail: np.ndarray
    size: int
    mtime_ns: int
    sha256: bytes


class ImageInputs(Dataset):
    """For each position in a list of images, the position and the network's input, or the reason
    why there is none."""

    def __init__(self, images: list[ImageEntry], load: ImageLoader):
        self._images = images
        self._load = load

    def __getitem__(self, index: int) -> tuple[int, LoadedImage | UnreadableImage]:
        try:
            return index, self._read(self._images[index].file_name)
        except UnreadableImage as error:
            return index, error.with_traceback(None)

    def _read(self, file_name: str) -> LoadedImage:
        """The input with the size, time and hash of its file; the file didn't change meanwhile."""
        for _ in range(3):
            before = _size_and_time(file_name)
            given, thumbnail = self._load.with_thumbnail(file_name)
            try:
                sha256 = file_sha256(file_name)
            except OSError as error:
                refuse_if_short(error)
                raise UnreadableImage(file_name, error.strerror or str(error)) from error
            if before is not None and before == _size_and_time(file_name):
                return LoadedImage(given, thumbnail, *before, sha256)
        raise UnreadableImage(file_name, "another program is writing it")


def _size_and_time(file_name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file_name)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
