"""Images to encode: their files, and how a network's inputs are made from them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from PIL import Image

from ..config import DEFAULT_MAX_PIXELS, max_pixels, square_sizes
from ..data.image_reader import (
    ImagePixels,
    UnreadableImage,
    read_image,
    read_image_size,
    read_picture,
)
from ..data.photo_files import PhotoScan, find_photos
from ..data.squares import squashed
from ..data.thumbnails import thumbnail
from ..utils.display import display_name
from ..utils.errors import InputNotFoundError, RegionDHError

__all__ = [
    "ImageEntry",
    "ImageLoader",
    "UnreadableImage",
    "dataset_images",
    "entries_of_scan",
    "find_images",
]


@dataclass(frozen=True)
class ImageEntry:
    """An image to code.

    Attributes:
        image_id: identifies the image: it is not encoded again if a row has this id.
        file_name: path.
        labels: class ids, or None where unknown.
        root: the folder to which ``relative_path`` is relative, "" where unknown.
        relative_path: path below ``root``, with "/" between folders.
        size: bytes of the file, -1 where unknown.
        mtime_ns: its time of modification, -1 where unknown.
    """

    image_id: str
    file_name: str
    labels: tuple[int, ...] | None = None
    root: str = ""
    relative_path: str = ""
    size: int = -1
    mtime_ns: int = -1


def find_images(
    inputs: Sequence[str | os.PathLike], exclude: Sequence[str] = ()
) -> list[ImageEntry]:
    """The images that files and folders name, as entries with absolute paths as ids.

    See :func:`~regiondh_d2.data.photo_files.find_photos`, which also returns what was passed over.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there is no image, or a pattern to exclude is empty.
    """
    return entries_of_scan(find_photos(inputs, exclude), inputs)


def entries_of_scan(scan: PhotoScan, inputs: Sequence[str | os.PathLike]) -> list[ImageEntry]:
    """The entries of a scan of some inputs; raises as :func:`find_images`."""
    if scan.missing:
        raise InputNotFoundError(f"{display_name(scan.missing[0])}: no such file or folder")
    if not scan.images:
        names = ", ".join(map(display_name, inputs))
        raise RegionDHError("; ".join([f"no images in {names}", *scan.summary()]))
    return [
        ImageEntry(
            image_id=photo.path,
            file_name=photo.path,
            root=photo.root,
            relative_path=photo.relative_path,
            size=photo.size,
            mtime_ns=photo.mtime_ns,
        )
        for photo in scan.images
    ]


def dataset_images(dicts: Sequence[Mapping], count_difficult: bool) -> list[ImageEntry]:
    """The images of a dataset.

    Args:
        dicts: dataset dicts with ``image_id`` and ``file_name``, and, if labels are known,
            ``image_labels`` and ``difficult_labels``, as retrieval datasets have them.
        count_difficult: whether the classes of ``difficult_labels`` count as labels.

    Returns:
        Entries whose root is the deepest folder that all images share. Size and time of a missing
        file are -1.
    """
    paths = [os.path.abspath(record["file_name"]) for record in dicts]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    entries = []
    for record, path in zip(dicts, paths, strict=True):
        labels = None
        if "image_labels" in record:
            hidden = () if count_difficult else record.get("difficult_labels", ())
            labels = tuple(sorted(set(record["image_labels"]) - set(hidden)))
        size, mtime_ns = _size_and_time(path)
        entries.append(
            ImageEntry(
                image_id=str(record["image_id"]),
                file_name=str(record["file_name"]),
                labels=labels,
                root=root,
                relative_path=os.path.relpath(path, root).replace(os.sep, "/"),
                size=size,
                mtime_ns=mtime_ns,
            )
        )
    return entries


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


class ImageLoader:
    """Reads image files as a network's test inputs, by :mod:`regiondh_d2.data.image_reader`."""

    @configurable
    def __init__(
        self,
        *,
        min_size: int,
        max_size: int,
        image_format: str,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        squares: Sequence[int] = (),
    ):
        """
        Args:
            min_size, max_size: the shorter side is scaled to ``min_size``, or less if the longer
                side would exceed ``max_size``; a ``min_size`` of 0 doesn't scale.
            image_format: as in :func:`detectron2.data.detection_utils.read_image`.
            max_pixels: as ``MODEL.REGION_DH.MAX_PIXELS``.
            squares: sides of the squares that image encoders read.
        """
        self.squares = tuple(squares)
        self.min_size = min_size
        self.max_size = max_size
        self.image_format = image_format
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg):
        return {
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "image_format": cfg.INPUT.FORMAT,
            "max_pixels": max_pixels(cfg),
            "squares": square_sizes(cfg),
        }

    def __call__(self, source: str | bytes) -> dict:
        """Read an image.

        Args:
            source: a path, or the content of a file.

        Returns:
            ``image``, a tensor (C, H, W) as the network takes it, ``height`` and ``width`` of the
            upright image in the file, and, where image encoders want them, ``squares``, see
            :func:`~regiondh_d2.data.squares.squashed`.

        Raises:
            UnreadableImage: it can't be read, whatever the reason.
        """
        name = source if isinstance(source, str) else "the image"
        return self._inputs(read_image(source, self.image_format, self.max_pixels), name)

    def with_thumbnail(self, file_name: str) -> tuple[dict, np.ndarray]:
        """As :meth:`__call__`, and the photo's :func:`~regiondh_d2.data.thumbnails.thumbnail`."""
        read = read_image(file_name, self.image_format, self.max_pixels)
        return self._inputs(read, file_name), thumbnail(read.pixels)

    def load_picture(self, image: Image.Image | np.ndarray) -> dict:
        """As :meth:`__call__`, of an image in memory, see :func:`.image_reader.read_picture`."""
        return self._inputs(read_picture(image, self.image_format), "the image")

    def _inputs(self, read: ImagePixels, file_name: str) -> dict:
        pixels = read.pixels
        height, width = pixels.shape[:2]
        new_height, new_width = self._input_size(file_name, height, width)
        if (new_height, new_width) != (height, width):
            resize = T.ResizeTransform(height, width, new_height, new_width)
            pixels = resize.apply_image(pixels)
        image = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
        inputs = {"image": image, "height": read.size.height, "width": read.size.width}
        if self.squares:
            inputs["squares"] = squashed(read.pixels, self.squares)
        return inputs

    def read_size(self, file_name: str) -> tuple[int, int]:
        """Height and width of the network's input, from the header of an image file.

        The input may rarely turn out to have another size, for example if a PNG has its orientation
        behind the pixels.

        Raises:
            UnreadableImage: the header can't be read, or announces too many pixels.
        """
        size = read_image_size(file_name, self.max_pixels)
        return self._input_size(file_name, size.read_height, size.read_width)

    def _input_size(self, file_name: str, height: int, width: int) -> tuple[int, int]:
        if self.min_size == 0:
            return height, width
        size = T.ResizeShortestEdge.get_output_shape(height, width, self.min_size, self.max_size)
        if min(size) < 1:
            raise UnreadableImage(
                file_name,
                f"too thin: {width} x {height} pixels would be {size[1]} x {size[0]} for the "
                "network",
            )
        return size
