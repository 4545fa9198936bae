"""The only reader of image files: for training, evaluation, extraction, search and drawing.

It follows these rules, whose version is ``IMAGE_READER`` in the settings of a code file:

* It reads the first frame and turns it upright, as the EXIF orientation (or the container of AVIF
    and HEIC files) says.
* A transparent image is drawn on white, whether it has an alpha channel, a transparent color or a
  palette with transparent colors.
* Grays of 16 and 12 bits are scaled to 8 bits; Pillow converts everything else to RGB. 32-bit
  pixels are refused, since their range isn't known.
* A JPEG of more pixels than ``MODEL.REGION_DH.MAX_PIXELS`` is decoded at a half, a quarter or an
  eighth of its size, the first that is small enough. Other formats are refused.
* Defects outside the pixels are ignored, such as broken EXIF data or too much text.

The format is known from the content, not from the name. Only the formats
:data:`~.image_formats.PILLOW_FORMATS`, and HEIF if pi-heif is installed, are tried, so that no file
starts another program. Pillow's global settings stay unchanged, and several threads may read at a
time.

The rules depend on each other, so they are in one file, although it is a long one.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from struct import error as StructError
from typing import Any, BinaryIO, TypeVar

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from ..config import DEFAULT_MAX_PIXELS
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.quiet import without_warnings
from ..utils.shortage import refuse_if_short
from .image_formats import (
    HEIF_HINT,
    PILLOW_FORMATS,
    SIGNATURE_BYTES,
    can_read_heif,
    format_by_content,
)
from .image_metadata import without_metadata

__all__ = [
    "ImagePixels",
    "ImageSize",
    "UnreadableImage",
    "on_white",
    "pixels_changed_since_v1",
    "read_image",
    "read_image_size",
    "read_picture",
    "read_rgb",
]

Source = str | os.PathLike | bytes | BinaryIO
T = TypeVar("T")

# How to turn an image of each EXIF orientation, and the orientations that swap width and height.
_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

_JPEG_SCALES = (1, 2, 4, 8)  # factors by which libjpeg can reduce the size


class UnreadableImage(RegionDHError):
    """An image that cannot be read.

    Attributes:
        file_name: the image's file.
        reason: why it can't be read; one line without the file's name.
    """

    def __init__(self, file_name: str, reason: str):
        super().__init__(file_name, reason)
        self.file_name = file_name
        self.reason = reason

    def __str__(self) -> str:
        return f"{display_name(self.file_name)}: {self.reason}"


class _Reason(RegionDHError):
    """The reason why an image can't be read, written for users."""


@dataclass(frozen=True)
class ImageSize:
    """Sizes of an upright image in pixels.

    Attributes:
        height, width: size of the image in the file.
        read_height, read_width: size of the pixels that are read, smaller for a JPEG above the
            limit.
        orientation: the EXIF orientation, 1 to 8; 1 if there is none.
    """

    height: int
    width: int
    read_height: int
    read_width: int
    orientation: int = 1


@dataclass(frozen=True)
class ImagePixels:
    """An upright image.

    Attributes:
        pixels: (H, W, C) in the requested format; uint8, except for YUV.
        size: sizes of the image.
    """

    pixels: np.ndarray
    size: ImageSize


def read_image(
    source: Source, image_format: str = "RGB", max_pixels: int = DEFAULT_MAX_PIXELS
) -> ImagePixels:
    """Read an image.

    Args:
        source: path, content, or an open file.
        image_format: as ``INPUT.FORMAT``: "RGB", "BGR", "L" or "YUV-BT.601".
        max_pixels: as ``MODEL.REGION_DH.MAX_PIXELS``.

    Raises:
        UnreadableImage: it can't be read.
        ShortageError: no file can be read, since the machine has no more open files to give.
    """
    image, size = _read(source, max_pixels, _decode)
    return ImagePixels(convert_PIL_to_numpy(image, image_format), size)


def read_rgb(source: Source, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[Image.Image, ImageSize]:
    """As :func:`read_image`, but returns a Pillow RGB image and its sizes."""
    return _read(source, max_pixels, _decode)


def read_image_size(source: Source, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageSize:
    """Sizes of an image, from its header.

    In rare cases the pixels have another size, for example if a PNG has its orientation behind the
    pixels.

    Raises:
        UnreadableImage: the header can't be read, or announces too many pixels.
    """
    return _read(source, max_pixels, _measure)


def read_picture(image: Image.Image | np.ndarray, image_format: str = "RGB") -> ImagePixels:
    """As :func:`read_image`, for an image in memory.

    Args:
        image: a Pillow image, which is turned as its EXIF orientation says and drawn on white; or
            an RGB array, uint8 (H, W, 3), which is taken as it is.
        image_format: as of :func:`read_image`.

    Raises:
        UnreadableImage: Pillow can't read the image, or the range of its pixels isn't known.
        RegionDHError: it isn't a Pillow image or an array of this type and shape.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise RegionDHError(
                f"an array of {image.dtype}, shape {image.shape}, is no image: give RGB pixels as "
                "uint8 of shape (height, width, 3)"
            )
        rgb = Image.fromarray(image)
    elif isinstance(image, Image.Image):
        try:
            with without_warnings:
                rgb = _to_rgb(image, None)
                orientation = _orientation(image)
        except Exception as error:
            raise UnreadableImage("the image", _describe(error)) from error
        if orientation in _TURNS:
            rgb = rgb.transpose(_TURNS[orientation])
    else:
        raise RegionDHError(
            f"{type(image).__name__} is no image: give a path, an open file, an image of Pillow's, "
            "or an array"
        )
    width, height = rgb.size
    if not width or not height:
        raise UnreadableImage("the image", f"it has {width} x {height} pixels")
    size = ImageSize(height, width, height, width)
    return ImagePixels(convert_PIL_to_numpy(rgb, image_format), size)


def on_white(image: Image.Image) -> Image.Image:
    """Convert a Pillow image as the reader does: to 8-bit RGB, drawn on white."""
    return _to_rgb(image, None)


def pixels_changed_since_v1(path: str | os.PathLike) -> bool:
    """Whether version 0.1 of this package read other pixels than :func:`read_image` does.

    For nearly all files the header shows that it didn't. Only images that may be transparent, and
    gray ones of more than 8 bits, are decoded and compared.

    Returns:
        False also for a file that can't be read now.
    """
    try:
        return _read(path, DEFAULT_MAX_PIXELS, _differs_from_version_1)
    except UnreadableImage:
        return False


# From a source to Pillow's image


def _read(source: Source, max_pixels: int, function: Callable[[BinaryIO, int], T]) -> T:
    """Call a function on the opened file; any exception becomes an :class:`UnreadableImage`,
    unless the machine has no more files to open."""
    name = os.fsdecode(source) if isinstance(source, str | os.PathLike) else "the image"
    try:
        if max_pixels < 1:
            raise _Reason(f"MODEL.REGION_DH.MAX_PIXELS {max_pixels}: set it to 1 or more")
        # Pillow's decoders warn about many things that don't help a user.
        with without_warnings, _open_file(source) as file:
            try:
                return function(file, max_pixels)
            except _Reason:
                raise
            except Exception:
                file.seek(0)
                bare = without_metadata(file.read())
                if bare is None:
                    raise
                return function(io.BytesIO(bare), max_pixels)
    except Exception as error:
        refuse_if_short(error, memory=False)  # or all photos that follow would be passed over
        raise UnreadableImage(name, _describe(error)) from error


@contextmanager
def _open_file(source: Source) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            yield file if file.seekable() else io.BytesIO(file.read())
    else:
        yield source if source.seekable() else io.BytesIO(source.read())


@cache
def _factories() -> tuple[tuple[Callable, Callable | None], ...]:
    """For each format, the function that opens it and the test of its first bytes."""
    Image.init()
    known = {name: Image.OPEN[name] for name in PILLOW_FORMATS if name in Image.OPEN}
    # Pillow's own function looks for further pictures behind the first, and fails if their
    # directory is damaged.
    known["JPEG"] = (JpegImagePlugin.JpegImageFile, known["JPEG"][1])
    return tuple(known.values())


def _open(file: BinaryIO) -> Image.Image:
    """The image with its header read.

    Without ``Image.open``, which refuses large images by a limit that is global to the process.
    """
    file.seek(0)
    head = file.read(SIGNATURE_BYTES)
    if not head:
        raise _Reason("the file is empty")
    if format_by_content(head) == "HEIF":
        return _open_heif(file)
    for factory, accept in _factories():
        if accept is None or accept(head[:16]) is True:
            file.seek(0)
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, KeyError, EOFError, StructError):
                continue
    raise UnidentifiedImageError


def _open_heif(file: BinaryIO) -> Image.Image:
    try:
        if not can_read_heif():
            raise ImportError
        from pi_heif import HeifImageFile
    except ImportError:
        raise _Reason(f"a HEIC image, {HEIF_HINT}") from None
    file.seek(0)
    return HeifImageFile(file, "")


def _decode(file: BinaryIO, max_pixels: int) -> tuple[Image.Image, ImageSize]:
    """The pixels, upright and in RGB, and the sizes."""
    image = _open(file)
    told = _orientation(image) if image.format == "TIFF" else 1  # loading turns it
    width, height = image.size
    reduced = _reduce(image, max_pixels)
    rgb = _to_rgb(image, file)
    orientation = _orientation(image)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    if not reduced:
        width, height = rgb.size
    elif orientation in _SIDEWAYS:
        width, height = height, width
    told = image.info.get("original_orientation") or max(told, orientation)  # HEIC files' own
    return rgb, ImageSize(height, width, rgb.height, rgb.width, told)


def _measure(file: BinaryIO, max_pixels: int) -> ImageSize:
    image = _open(file)
    width, height = image.size
    _reduce(image, max_pixels)
    read_width, read_height = image.size
    # If the header of a PNG lacks an entry, asking for it makes Pillow read all pixels.
    asks = image.format != "PNG" or "exif" in image.info
    orientation = _orientation(image) if asks else 1
    if orientation in _SIDEWAYS and image.format != "TIFF":  # TIFF's sizes are turned already
        width, height, read_width, read_height = height, width, read_height, read_width
    orientation = image.info.get("original_orientation") or orientation
    return ImageSize(height, width, read_height, read_width, orientation)


def _reduce(image: Image.Image, max_pixels: int) -> bool:
    """Make a JPEG above the limit decode at a smaller size and update ``size``, or refuse it."""
    width, height = image.size
    if width * height <= max_pixels:
        return False
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        for scale in _JPEG_SCALES[1:]:
            if -(-width // scale) * -(-height // scale) <= max_pixels:
                image.draft(None, (max(1, width // scale), max(1, height // scale)))
                if image.width * image.height <= max_pixels:
                    return True
                break
    raise _Reason(
        f"too many pixels: {width} x {height} are more than MODEL.REGION_DH.MAX_PIXELS "
        f"{max_pixels}: raise it, or make the image smaller"
    )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # the pixels may be fine although the EXIF data is damaged
        return 1
    return value if value in _TURNS else 1


# From Pillow's modes to RGB


def _to_rgb(image: Image.Image, file: BinaryIO | None) -> Image.Image:
    """Load an image as 8-bit RGB, drawn on white."""
    rawmode = _rawmode(image)
    image.load()
    key = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow opens 16-bit PGM files, and older ones PNG files, as 32-bit integers.
        color, alpha = _gray_to_8_bits(image, rawmode), _alpha_of_key(image, file, rawmode, key)
    elif image.mode in ("I", "F"):
        raise _Reason(
            "signed or 32-bit pixels, whose range is not known: save it with 8 bits a channel"
        )
    elif image.mode in ("1", "L", "RGB"):
        color, alpha = image, _alpha_of_key(image, file, rawmode, key)
    else:
        color = image
        if image.mode == "La":  # multiplied by its alpha
            color = image.convert("LA")
        if color.mode in ("LA", "PA", "RGBa") or (color.mode == "P" and key is not None):
            color = color.convert("RGBA")
        alpha = color.getchannel("A") if color.mode == "RGBA" else None
    color = color.convert("RGB")
    if alpha is None:
        return color
    white = Image.new("RGB", color.size, "white")
    white.paste(color, mask=alpha)
    return white


def _rawmode(image: Image.Image) -> str:
    """Pillow's name of the raw pixel layout; known only before loading."""
    tile = getattr(image, "tile", None)  # None for an image that wasn't read from a file
    arguments = tile[0][3] if tile else ""
    if isinstance(arguments, str):
        return arguments
    return str(arguments[0]) if arguments else ""


def _gray_to_8_bits(image: Image.Image, rawmode: str) -> Image.Image:
    """Scale grays of 16 or 12 bits: Pillow's own conversion clips at 255."""
    shift, inverted = _gray_rule(image, rawmode)
    gray = (np.asarray(image).astype(np.int64) >> shift).astype(np.uint8)
    return Image.fromarray(255 - gray if inverted else gray)


def _gray_rule(image: Image.Image, rawmode: str) -> tuple[int, bool]:
    """How many bits to shift a gray of more than 8 bits by, and whether 0 is white."""
    # Pillow doesn't invert them.
    inverted = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0
    return 4 if rawmode == "I;12" else 8, inverted


def _alpha_of_key(
    image: Image.Image, file: BinaryIO | None, rawmode: str, key: int | tuple[int, ...] | None
) -> Image.Image | None:
    """Alpha of an image in which one gray or color means transparent, or None."""
    if key is None:
        return None
    pixels = np.asarray(image)
    transparent = np.array(key)
    if rawmode == "RGB;16B" and file is not None:
        # Pillow reads only the high bytes; here we make it read the low ones.
        again: Any = _open(file)
        again.tile = [(*again.tile[0][:3], "RGB;16L")]
        again.load()
        pixels = pixels.astype(np.uint16) << 8 | np.asarray(again)
    elif image.mode == "L":  # grays of few bits are scaled to 8 bits, but the key isn't
        transparent = transparent * {"L;2": 85, "L;4": 17}.get(rawmode, 1) & 255
    elif image.mode == "RGB":
        transparent = transparent & 255
    elif image.mode == "1":
        transparent = transparent != 0
    differs = pixels != transparent
    if differs.ndim == 3:
        differs = differs.any(axis=-1)
    return Image.fromarray(differs.astype(np.uint8) * np.uint8(255))


def _differs_from_version_1(file: BinaryIO, max_pixels: int) -> bool:
    image = _open(file)
    gray = image.mode.startswith("I;16") and _gray_rule(image, _rawmode(image)) != (8, False)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if not (gray or has_alpha) or image.format == "HEIF":  # version 0.1 read no HEIF
        return False
    now, _ = _decode(file, max_pixels)
    image = _open(file)
    image.load()
    orientation = _orientation(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    before = image.convert("RGB")
    if orientation in _TURNS:
        before = before.transpose(_TURNS[orientation])
    return not np.array_equal(np.asarray(now), np.asarray(before))


def _describe(error: Exception) -> str:
    text = display_name(" ".join(str(error).split()))
    if isinstance(error, _Reason):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format, or damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels ({text})"
    if isinstance(error, MemoryError):
        return "not enough memory for its pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged or incomplete ({text or type(error).__name__})"
