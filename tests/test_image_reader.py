"""The one reader of images: the pixels a person sees, limits, odd files and damaged ones."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.detection_utils import read_image as read_as_detectron2
from detectron2.structures import BoxMode
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from pictures import pixels_of, save
from regiondh_d2 import add_regiondh_config
from regiondh_d2.config import DEFAULT_MAX_PIXELS, code_settings, parse_settings
from regiondh_d2.data import StrictMapper, image_reader
from regiondh_d2.data.check import _image_problem
from regiondh_d2.data.image_reader import (
    UnreadableImage,
    on_white,
    pixels_changed_since_v1,
    read_image,
    read_image_size,
    read_rgb,
)
from regiondh_d2.retrieval.color_histogram import color_histogram, color_histograms
from regiondh_d2.retrieval.images import ImageLoader
from regiondh_d2.visualization.dataset_pictures import draw_record
from regiondh_d2.visualization.draw import draw_boxes, fit_image

DATA = Path(__file__).parent / "data"
HEIGHT, WIDTH = 12, 16
COLOR = pixels_of("color", HEIGHT, WIDTH)
GRAY = COLOR[..., 0]
ALPHA = pixels_of("alpha", HEIGHT, WIDTH)[..., 0]
DEEP = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 341


def over_white(color, alpha):
    """What is seen of colors (H, W, 3) before white: an independent formula."""
    alpha = alpha[..., None].astype(np.float64) / 255
    return np.rint(color * alpha + 255 * (1 - alpha)).astype(np.uint8)


def rgb(gray):
    return np.repeat(np.asarray(gray)[..., None], 3, axis=2).astype(np.uint8)


def encode(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(depth, color_type, rows, *before, after=()):
    """A PNG of packed rows, with further chunks before and behind its pixels."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    chunks = [(b"IHDR", header), *before, (b"IDAT", pixels), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def pack_bits(values, depth):
    """Values (H, W) of few bits, packed as PNG does."""
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)


def tiff(order, pixels, **tags):
    """An uncompressed TIFF of one strip; tags by number, as in "t262=0"."""
    e = {"II": "<", "MM": ">"}[order]
    tags = {256: WIDTH, 257: HEIGHT, 259: 1, 277: 1, 278: HEIGHT, 279: len(pixels)} | {
        int(name[1:]): value for name, value in tags.items()
    }
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    body = struct.pack(e + "H", len(tags))
    for tag, value in sorted(tags.items()):
        if isinstance(value, tuple):  # two shorts, which fit into the entry
            body += struct.pack(e + "HHIHH", tag, 3, 2, *value)
        else:
            body += struct.pack(e + "HHII", tag, 4, 1, value)
    return order.encode() + struct.pack(e + "HI", 42, 8) + body + bytes(4) + pixels


# Transparency


KEY = GRAY[3, 5]
KEY_ALPHA = np.where(GRAY == KEY, 0, 255)
COLOR_KEY = tuple(int(v) for v in COLOR[3, 5])
COLOR_KEY_ALPHA = np.where((COLOR == COLOR_KEY).all(-1), 0, 255)
FEW = {depth: GRAY.astype(int) >> (8 - depth) for depth in (1, 2, 4)}
# Two colors of 16 bits that differ in the low byte alone; one is transparent.
DEEP_RGB = np.broadcast_to(np.array([[[0x1234, 0x5678, 0x9ABC]]]), (HEIGHT, WIDTH, 3)).copy()
DEEP_RGB[:, ::2, 1] += 1
PALETTE = Image.fromarray(COLOR).quantize(8)
PALETTE_ALPHA = bytes([0, 60, 255, 100])  # the colors that it doesn't name are opaque


def few_gray(depth):
    return rgb(FEW[depth] * 255 // (2**depth - 1))


def palette_seen():
    alpha = np.frombuffer(PALETTE_ALPHA + b"\xff" * 4, np.uint8)[np.asarray(PALETTE)]
    return over_white(np.asarray(PALETTE.convert("RGB")), alpha)


TRANSPARENT = {
    "RGBA": (
        encode(Image.fromarray(np.dstack([COLOR, ALPHA])), "png"),
        over_white(COLOR, ALPHA),
    ),
    "LA": (
        encode(Image.fromarray(np.dstack([GRAY, ALPHA]), "LA"), "png"),
        over_white(rgb(GRAY), ALPHA),
    ),
    "RGBA of 16 bits": (
        png(16, 6, (np.dstack([COLOR, ALPHA]).astype(">u2") * 257).reshape(HEIGHT, -1).view("u1")),
        over_white(COLOR, ALPHA),
    ),
    "LA of 16 bits": (
        png(16, 4, (np.dstack([GRAY, ALPHA]).astype(">u2") * 257).reshape(HEIGHT, -1).view("u1")),
        over_white(rgb(GRAY), ALPHA),
    ),
    "WebP": (
        encode(Image.fromarray(np.dstack([COLOR, ALPHA])), "webp", lossless=True, exact=True),
        over_white(COLOR, ALPHA),
    ),
    "palette": (encode(PALETTE, "png", transparency=PALETTE_ALPHA), palette_seen()),
    "palette with one transparent color": (
        encode(PALETTE, "png", transparency=3),
        over_white(np.asarray(PALETTE.convert("RGB")), np.where(np.asarray(PALETTE) == 3, 0, 255)),
    ),
    "GIF": (
        encode(PALETTE, "gif", transparency=3),
        over_white(np.asarray(PALETTE.convert("RGB")), np.where(np.asarray(PALETTE) == 3, 0, 255)),
    ),
    "animated GIF": (
        encode(PALETTE, "gif", transparency=3, save_all=True, append_images=[PALETTE.rotate(180)]),
        over_white(np.asarray(PALETTE.convert("RGB")), np.where(np.asarray(PALETTE) == 3, 0, 255)),
    ),
    "gray with a transparent one": (
        png(8, 0, GRAY, (b"tRNS", struct.pack(">H", KEY))),
        over_white(rgb(GRAY), KEY_ALPHA),
    ),
    **{
        f"gray of {depth} bits with a transparent one": (
            png(depth, 0, pack_bits(FEW[depth], depth), (b"tRNS", struct.pack(">H", 1))),
            over_white(few_gray(depth), np.where(FEW[depth] == 1, 0, 255)),
        )
        for depth in (1, 2, 4)
    },
    "gray of 16 bits with a transparent one": (
        png(16, 0, DEEP.astype(">u2").view("u1"), (b"tRNS", struct.pack(">H", DEEP[3, 5]))),
        over_white(rgb(DEEP >> 8), np.where(DEEP[3, 5] == DEEP, 0, 255)),
    ),
    "RGB with a transparent color": (
        png(8, 2, COLOR.reshape(HEIGHT, -1), (b"tRNS", struct.pack(">3H", *COLOR_KEY))),
        over_white(COLOR, COLOR_KEY_ALPHA),
    ),
    "RGB of 16 bits with a transparent color": (
        png(
            *(16, 2, DEEP_RGB.astype(">u2").reshape(HEIGHT, -1).view("u1")),
            (b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)),
        ),
        over_white((DEEP_RGB >> 8).astype(np.uint8), np.where(DEEP_RGB[..., 1] == 0x5678, 0, 255)),
    ),
    "TIFF of gray and alpha": (
        tiff(*("II", np.dstack([GRAY, ALPHA]).tobytes()), t258=(8, 8), t262=1, t277=2, t338=2),
        over_white(rgb(GRAY), ALPHA),
    ),
    "RGBA TIFF": (
        encode(Image.fromarray(np.dstack([COLOR, ALPHA])), "tiff"),
        over_white(COLOR, ALPHA),
    ),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_is_put_on_white(name):
    data, expected = TRANSPARENT[name]
    np.testing.assert_array_equal(read_image(data).pixels, expected)


def test_premultiplied_gray():
    """Stored is the product of gray and alpha; what is seen is that and the white left by alpha."""
    product = (GRAY.astype(int) * ALPHA + 127) // 255
    pixels = np.dstack([product, ALPHA]).astype(np.uint8).tobytes()
    data = tiff("MM", pixels, t258=(8, 8), t262=1, t277=2, t338=1)
    seen = read_image(data).pixels.astype(int)
    assert np.abs(seen - rgb(np.minimum(product + 255 - ALPHA, 255)).astype(int)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa", "P", "L", "RGB", "1", "I;16"])
def test_images_in_memory_are_put_on_white(mode):
    if mode == "P":
        image = PALETTE.copy()
        image.info["transparency"] = PALETTE_ALPHA
        expected = palette_seen()
    elif mode in ("RGBA", "RGBa"):
        image = Image.fromarray(np.dstack([COLOR, np.where(ALPHA < 128, 0, 255).astype(np.uint8)]))
        image, expected = image.convert(mode), over_white(COLOR, np.where(ALPHA < 128, 0, 255))
    elif mode in ("LA", "La"):
        image = Image.fromarray(
            np.dstack([GRAY, np.where(ALPHA < 128, 0, 255).astype(np.uint8)]), "LA"
        )
        image, expected = image.convert(mode), over_white(rgb(GRAY), np.where(ALPHA < 128, 0, 255))
    elif mode == "PA":
        image = PALETTE.convert("PA")
        image.putalpha(Image.fromarray(ALPHA))
        expected = over_white(np.asarray(PALETTE.convert("RGB")), ALPHA)
    elif mode == "I;16":
        image, expected = Image.fromarray(DEEP), rgb(DEEP >> 8)
    else:
        image = Image.fromarray(COLOR).convert(mode)
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(on_white(image)), expected)
    np.testing.assert_array_equal(np.asarray(fit_image(image, (WIDTH, HEIGHT))), expected)


# Grays of more than 8 bits, and the other modes


BITS_12 = DEEP >> 4
PACKED_12 = np.packbits(
    ((BITS_12[..., None] >> np.arange(12)[::-1]) & 1).astype(np.uint8).reshape(HEIGHT, -1), axis=1
)
DEEP_GRAY = {
    "PNG": (png(16, 0, DEEP.astype(">u2").view("u1")), DEEP >> 8),
    "PGM": (encode(Image.fromarray(DEEP), "ppm"), DEEP >> 8),
    "JPEG 2000": (encode(Image.fromarray(DEEP), "jpeg2000"), DEEP >> 8),
    "TIFF": (tiff("II", DEEP.tobytes(), t258=16, t262=1), DEEP >> 8),
    "TIFF with the high byte first": (
        tiff("MM", DEEP.astype(">u2").tobytes(), t258=16, t262=1),
        DEEP >> 8,
    ),
    "TIFF in which 0 is white": (tiff("II", DEEP.tobytes(), t258=16, t262=0), 255 - (DEEP >> 8)),
    "TIFF of 12 bits": (tiff("II", PACKED_12.tobytes(), t258=12, t262=1), BITS_12 >> 4),
    "TIFF, compressed": (encode(Image.fromarray(DEEP), "tiff", compression="tiff_lzw"), DEEP >> 8),
}


@pytest.mark.parametrize("name", DEEP_GRAY)
def test_deep_grays_are_scaled(name):
    data, expected = DEEP_GRAY[name]
    np.testing.assert_array_equal(read_image(data).pixels, rgb(expected))


OTHERS = {
    "CMYK": encode(Image.fromarray(COLOR).convert("CMYK"), "jpeg"),
    "YCbCr TIFF": encode(Image.fromarray(COLOR).convert("YCbCr"), "tiff"),
    "LAB TIFF": encode(
        ImageCms.profileToProfile(
            Image.fromarray(COLOR),
            ImageCms.createProfile("sRGB"),
            ImageCms.createProfile("LAB"),
            outputMode="LAB",
        ),
        "tiff",
    ),
    "bilevel": encode(Image.fromarray(COLOR).convert("1"), "png"),
    "palette": encode(PALETTE, "png"),
    "gray": encode(Image.fromarray(GRAY), "jpeg"),
    "progressive JPEG": encode(Image.fromarray(COLOR), "jpeg", progressive=True),
    "AVIF": encode(Image.fromarray(COLOR), "avif"),
    "WebP": encode(Image.fromarray(COLOR), "webp"),
    "BMP": encode(Image.fromarray(COLOR), "bmp"),
    "PCX": encode(Image.fromarray(COLOR), "pcx"),
    "TGA": encode(Image.fromarray(COLOR), "tga"),
    "QOI": encode(Image.fromarray(COLOR), "qoi"),
    "SGI": encode(Image.fromarray(COLOR), "sgi"),
    "ICO": encode(Image.fromarray(COLOR), "ico", sizes=[(WIDTH, HEIGHT)]),
    "DDS": encode(Image.fromarray(COLOR), "dds"),
    "PPM": encode(Image.fromarray(COLOR), "ppm"),
    "two pictures in a JPEG": encode(
        Image.fromarray(COLOR), "mpo", save_all=True, append_images=[Image.fromarray(COLOR[::-1])]
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_opaque_images_are_read_as_pillow_reads_them(tmp_path, name):
    with Image.open(io.BytesIO(OTHERS[name])) as image:
        expected = np.asarray(image.convert("RGB"))
    assert expected.shape == (HEIGHT, WIDTH, 3)
    read = read_image(OTHERS[name])
    np.testing.assert_array_equal(read.pixels, expected)
    assert (read.size.height, read.size.width) == (HEIGHT, WIDTH)
    assert not pixels_changed_since_v1(write(tmp_path / "x", OTHERS[name]))


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L", "YUV-BT.601"])
def test_formats_are_those_of_detectron2(tmp_path, image_format):
    path = save(tmp_path / "a.jpg")
    np.testing.assert_array_equal(
        read_image(path, image_format).pixels, read_as_detectron2(str(path), image_format)
    )


# Turned images


def turned(pixels, orientation):
    """By what the standard says of each: where the first row and the first column are."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1],
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: pixels.transpose(1, 0, 2)[::-1],
    }[orientation]


def exif_of(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff", "webp", "avif", "jpeg_mpo"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_once(image_format, orientation):
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :32] = 200  # unlike after every turn
    options = {"exif": exif_of(orientation)}
    if image_format == "jpeg_mpo":
        others = [Image.new("RGB", (48, 32))]
        image_format, options = "mpo", {**options, "save_all": True, "append_images": others}
    data = encode(Image.fromarray(pixels), image_format, **options)
    read = read_image(data)
    expected = turned(pixels, orientation)
    assert read.pixels.shape == expected.shape
    assert np.abs(read.pixels.astype(int) - expected).mean() < 9
    assert read.size == read_image_size(data)
    assert read.size.orientation == orientation
    assert read.size.height == expected.shape[0]


def test_transparent_and_deep_images_are_turned_too():
    exif = exif_of(6)
    alpha = encode(Image.fromarray(np.dstack([COLOR, ALPHA])), "png", exif=exif)
    np.testing.assert_array_equal(read_image(alpha).pixels, turned(over_white(COLOR, ALPHA), 6))
    deep = encode(Image.fromarray(DEEP), "png", exif=exif)
    np.testing.assert_array_equal(read_image(deep).pixels, turned(rgb(DEEP >> 8), 6))


# HEIC


needs_heif = pytest.mark.skipif(not image_reader.can_read_heif(), reason="pi-heif isn't installed")
HEIC_SEEN = np.stack([*np.mgrid[:48, :64][::-1], np.full((48, 64), 90)], -1) * [4, 5, 1]


@needs_heif
@pytest.mark.parametrize("name", ["plain", "turned", "transparent"])
def test_heic(name):
    path = DATA / "heic" / f"{name}.heic"
    expected = HEIC_SEEN
    if name == "turned":  # its container and its EXIF data both say so
        expected = turned(expected, 6)
    elif name == "transparent":
        expected = np.where((np.arange(64) < 32)[None, :, None], 255, expected)
    read = read_image(path)
    assert read.pixels.shape == expected.shape
    assert np.abs(read.pixels - expected).mean() < 4
    assert read_image_size(path) == read.size
    assert not pixels_changed_since_v1(path)


@pytest.mark.parametrize("name", ["a.heic", "renamed.jpg"])
def test_heic_without_the_decoder_says_what_is_missing(tmp_path, monkeypatch, name):
    path = write(tmp_path / name, (DATA / "heic" / "plain.heic").read_bytes())
    monkeypatch.setattr(image_reader, "can_read_heif", lambda: False)
    for read in (read_image, read_image_size):
        with pytest.raises(UnreadableImage, match=r"needs pi-heif: pip install pi-heif"):
            read(path)


def test_the_decoder_is_imported_only_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)  # importing it fails
    assert read_image(OTHERS["AVIF"]).pixels.shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setattr(image_reader, "can_read_heif", lambda: True)
    with pytest.raises(UnreadableImage, match="needs pi-heif"):
        read_image(DATA / "heic" / "plain.heic")


# The same pixels everywhere


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


ODD = {
    **{name: data for name, (data, _) in TRANSPARENT.items()},
    **{name: data for name, (data, _) in DEEP_GRAY.items()},
    "turned": encode(Image.fromarray(COLOR), "png", exif=exif_of(6)),
    "turned TIFF": encode(Image.fromarray(COLOR), "tiff", exif=exif_of(8)),
    "CMYK": OTHERS["CMYK"],
    "ordinary": encode(Image.fromarray(COLOR), "jpeg"),
}


@pytest.mark.parametrize("name", ODD)
def test_every_way_to_read_gives_the_same_pixels(tmp_path, name):
    path = str(write(tmp_path / "x.img", ODD[name]))
    expected = read_image(path).pixels
    size = {"width": expected.shape[1], "height": expected.shape[0]}
    loaded = ImageLoader(min_size=0, max_size=0, image_format="RGB")(path)["image"]
    ways = {
        "search": loaded.permute(1, 2, 0).numpy(),
        "boxes": np.asarray(draw_boxes(path, [])),
        "tile": np.asarray(fit_image(path, expected.shape[1::-1])),
        "rgb": np.asarray(read_rgb(path)[0]),
        "content": read_image(Path(path).read_bytes()).pixels,
    }
    for is_train in (True, False):
        mapper = StrictMapper(is_train, augmentations=[], image_format="RGB")
        mapped = mapper({"file_name": path, **size})["image"]
        ways[f"mapper {is_train}"] = mapped.permute(1, 2, 0).numpy()
    for way, pixels in ways.items():
        np.testing.assert_array_equal(pixels, expected, err_msg=way)
    np.testing.assert_array_equal(color_histograms([path])[0], color_histogram(expected))
    assert _image_problem(path, (size["width"], size["height"])) is None


# What has changed since version 0.1


# Where white was the transparent color, nothing changes.
CHANGED = {*TRANSPARENT, "TIFF in which 0 is white", "TIFF of 12 bits"} - {
    "gray of 1 bits with a transparent one"
}


@pytest.mark.parametrize("name", ODD)
def test_pixels_that_differ_from_version_1(tmp_path, name):
    assert pixels_changed_since_v1(write(tmp_path / "x", ODD[name])) == (name in CHANGED)


def test_opaque_alpha_changes_nothing(tmp_path):
    opaque = np.full((HEIGHT, WIDTH), 255, np.uint8)
    image = Image.fromarray(np.dstack([COLOR, opaque]))
    assert not pixels_changed_since_v1(write(tmp_path / "a.png", encode(image, "png")))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").pixels, COLOR)
    assert not pixels_changed_since_v1(write(tmp_path / "b.jpg", b"no picture"))
    assert not pixels_changed_since_v1(tmp_path / "absent.jpg")


def test_the_reader_and_its_limit_are_settings_of_codes():
    cfg = get_cfg()
    add_regiondh_config(cfg)
    settings = parse_settings(code_settings(cfg))
    assert settings["IMAGE_READER"] == "2"
    assert settings["MODEL.REGION_DH.MAX_PIXELS"] == str(DEFAULT_MAX_PIXELS)
    # A code file of version 0.1 names neither: its reader was the first, its limit the same.
    old = parse_settings("INPUT.FORMAT 'BGR'")
    assert old["IMAGE_READER"] == "1"
    assert old["MODEL.REGION_DH.MAX_PIXELS"] == str(DEFAULT_MAX_PIXELS)


# The pixel limit


SMOOTH = np.stack([*np.mgrid[:123, :201][::-1], np.full((123, 201), 90)], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("limit", "shape"),
    [
        (123 * 201, (123, 201)),
        (123 * 201 - 1, (62, 101)),
        (62 * 101, (62, 101)),
        (62 * 101 - 1, (31, 51)),
        (16 * 26, (16, 26)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_above_the_limit_is_read_smaller(tmp_path, limit, shape, orientation):
    path = tmp_path / "a.jpg"
    Image.fromarray(SMOOTH).save(path, quality=95, exif=exif_of(orientation))
    read = read_image(path, max_pixels=limit)
    full = (123, 201)
    if orientation == 6:
        shape, full = shape[::-1], full[::-1]
    assert read.pixels.shape[:2] == shape == (read.size.read_height, read.size.read_width)
    assert (read.size.height, read.size.width) == full
    assert read_image_size(path, limit) == read.size
    small = Image.fromarray(turned(SMOOTH, orientation)).resize(shape[::-1], Image.Resampling.BOX)
    assert np.abs(read.pixels.astype(int) - np.asarray(small)).mean() < 4


def test_too_many_pixels_name_the_setting(tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg")
    Image.fromarray(SMOOTH).save(tmp_path / "a.png")
    for name, limit in (("a.png", 1000), ("a.jpg", 100)):
        for read in (read_image, read_image_size):
            with pytest.raises(UnreadableImage, match=rf"201 x 123 .*MAX_PIXELS {limit}: raise it"):
                read(tmp_path / name, max_pixels=limit)
    with pytest.raises(UnreadableImage, match="MAX_PIXELS 0: set it to 1 or more"):
        read_image(tmp_path / "a.png", max_pixels=0)


def bomb(width, height):
    """A BMP whose header announces that many pixels."""
    data = bytearray(encode(Image.new("L", (8, 8)), "bmp"))
    data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(data)


def test_the_limit_can_be_raised_above_pillows():
    assert read_image_size(bomb(20000, 20000), 400_000_000).width == 20000
    with pytest.raises(UnreadableImage, match="too many pixels"):
        read_image_size(bomb(20000, 20000))
    read_image_size(bomb(13000, 13000))


def test_a_photo_of_200_megapixels(tmp_path):
    """Its header is made up, and its pixels are a few bytes: decoding comes before the damage."""
    data = bytearray(encode(Image.new("L", (16, 16)), "jpeg"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 12240, 16320)
    size = read_image_size(bytes(data))
    assert (size.height, size.width, size.read_height, size.read_width) == (
        *(12240, 16320, 6120, 8160),
    )


def test_the_limit_reaches_loader_mapper_and_drawings(tmp_path):
    cfg = get_cfg()
    add_regiondh_config(cfg)
    cfg.MODEL.REGION_DH.MAX_PIXELS = 62 * 101
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 60, 200
    path = str(tmp_path / "a.jpg")
    Image.fromarray(SMOOTH).save(path, quality=95)
    loader = ImageLoader(cfg)
    loaded = loader(path)
    mapped = StrictMapper(cfg, is_train=False)({"file_name": path, "height": 123, "width": 201})
    assert torch.equal(loaded["image"], mapped["image"])
    assert loader.read_size(path) == tuple(loaded["image"].shape[1:]) == (60, 98)
    for inputs in (loaded, mapped):
        assert (inputs["height"], inputs["width"]) == (123, 201)


def test_boxes_of_training_shrink_with_the_image(tmp_path):
    path = str(tmp_path / "a.jpg")
    Image.fromarray(SMOOTH).save(path)
    record = {
        "file_name": path,
        "height": 123,
        "width": 201,
        "annotations": [
            {"bbox": [0.0, 0.0, 201.0, 123.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        ],
    }
    options = {"augmentations": [], "image_format": "RGB"}
    mapped = StrictMapper(True, max_pixels=62 * 101, **options)(record)
    assert mapped["image"].shape == (3, 62, 101)
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[0, 0, 101, 62]]
    with pytest.raises(ValueError, match="cannot be read .*201, 123.*expect"):
        StrictMapper(True, max_pixels=62 * 101, **options)({**record, "width": 200})


def test_boxes_are_drawn_where_they_are_in_a_reduced_photo(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (200, 120), "white").save(path)
    whole = np.asarray(draw_boxes(path, [(100, 60, 200, 120)]))
    reduced = np.asarray(draw_boxes(path, [(100, 60, 200, 120)], 100 * 60))
    assert reduced.shape == (60, 100, 3)
    drawn, expected = reduced[::4, ::4].min(-1) < 200, whole[::8, ::8].min(-1) < 200
    np.testing.assert_array_equal(drawn, expected)


# Nothing but images, and nothing that isn't damage is called so


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """An EPS named .jpg would start Ghostscript."""
    eps = encode(Image.fromarray(COLOR), "eps")
    paths = [write(tmp_path / name, eps) for name in ("a.jpg", "a.eps", "a.png", "a")]
    paths.append(write(tmp_path / "pdf.jpg", encode(Image.fromarray(COLOR), "pdf")))
    wmf = b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\x01\x00\x09\x00" + bytes(40)
    paths.append(write(tmp_path / "wmf.jpg", wmf))
    for module, name in ((subprocess, "Popen"), (subprocess, "run"), (os, "system")):
        monkeypatch.setattr(module, name, None)
    for path in paths:
        ways = (read_image, read_image_size, lambda path: draw_boxes(path, []))
        for read in (*ways, lambda path: color_histograms([path])):
            with pytest.raises(UnreadableImage, match="not an image of a known format"):
                read(path)


MUCH_TEXT = {
    "a megabyte of text": [(b"tEXt", b"Comment\0" + b"x" * 1_200_000)],
    "compressed text": [(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000))],
    "international text": [
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000))
    ],
    "very much text": [(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 900_000))] * 90,
    "a large profile": [(b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000)))],
    "a broken profile": [(b"iCCP", b"p\0\0no profile")],
    "a broken note on size": [(b"pHYs", b"\0")],
    "broken EXIF data": [(b"eXIf", b"no EXIF")],
}


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("name", MUCH_TEXT)
def test_a_png_is_sound_whatever_is_said_about_it(name, place):
    rows = COLOR.reshape(HEIGHT, -1)
    chunks = MUCH_TEXT[name]
    data = png(8, 2, rows, *chunks) if place == "before" else png(8, 2, rows, after=chunks)
    np.testing.assert_array_equal(read_image(data).pixels, COLOR)
    assert (read_image_size(data).height, read_image_size(data).width) == (HEIGHT, WIDTH)


def test_what_is_dropped_is_no_part_of_the_pixels():
    """Beside too much text, transparency and orientation still count."""
    data = png(
        *(8, 0, GRAY),
        (b"tRNS", struct.pack(">H", KEY)),
        *MUCH_TEXT["a megabyte of text"],
        (b"eXIf", exif_of(6).tobytes().removeprefix(b"Exif\0\0")),
    )
    np.testing.assert_array_equal(
        read_image(data).pixels, turned(over_white(rgb(GRAY), KEY_ALPHA), 6)
    )


def with_segment(data, marker, content):
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\1\1no profile"),
        (0xED, b"Photoshop 3.0\0"),
        (0xED, b"Photoshop 3.0\x008BIM\x04"),
        (0xE1, b"Exif\0\0no EXIF"),
        (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\0\0"),
        (0xE2, b"MPF\0no directory"),
        (0xE0, b"JFIF\0\1"),
        (0xFE, b"comment"),
    ],
)
def test_a_jpeg_is_sound_whatever_is_said_about_it(marker, content):
    data = with_segment(encode(Image.fromarray(COLOR), "jpeg", exif=exif_of(6)), marker, content)
    plain = encode(Image.fromarray(COLOR), "jpeg")
    seen = read_image(data).pixels
    # Broken EXIF data that comes first hides the sound one.
    expected = read_image(plain).pixels if marker == 0xE1 else turned(read_image(plain).pixels, 6)
    np.testing.assert_array_equal(seen, expected)


def broken_files():
    picture = Image.fromarray(pixels_of("broken", 60, 60))
    half = {
        f"half.{name}": encode(picture, name)[: len(encode(picture, name)) // 2]
        for name in ("png", "jpeg", "webp", "gif", "tiff", "bmp", "jpeg2000", "avif")
    }
    corrupt = bytearray(encode(picture, "png"))
    corrupt[len(corrupt) // 2] ^= 0xFF
    return {
        **{name: (data, "damaged") for name, data in half.items()},
        "corrupt.png": (bytes(corrupt), "damaged"),
        "empty.jpg": (b"", "the file is empty"),
        "text.png": (b"no picture", "not an image of a known format"),
        "header.png": (encode(picture, "png")[:10], "not an image of a known format"),
        "end.jpg": (encode(picture, "jpeg")[:-40], "damaged or incomplete"),
        "text and half.png": (
            png(8, 2, COLOR.reshape(HEIGHT, -1), *MUCH_TEXT["a megabyte of text"])[:-200],
            "damaged or incomplete",
        ),
        "bomb.bmp": (bomb(20000, 20000), "too many pixels"),
        "float.tif": (encode(Image.new("F", (9, 9)), "tiff"), "32-bit pixels"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_unreadable_images_say_why(tmp_path, name):
    content, reason = broken_files()[name]
    path = write(tmp_path / name, content)
    with pytest.raises(UnreadableImage) as error:
        read_image(path)
    assert error.value.file_name == str(path)
    assert reason in error.value.reason
    assert str(error.value) == f"{path}: {error.value.reason}"
    assert "\n" not in str(error.value)


def test_sources_that_are_no_files(tmp_path):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "absent", "No such file")):
        with pytest.raises(UnreadableImage, match=reason):
            read_image(path)
    with pytest.raises(UnreadableImage, match="the image: not an image"):
        read_image(b"no picture")
    with open(save(tmp_path / "a.png"), "rb") as file:
        np.testing.assert_array_equal(read_image(file).pixels, pixels_of("a.png"))
        assert not file.closed


def test_names_are_shown_harmless(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"a\n\xe9.png")
    with open(path, "wb") as file:
        file.write(b"no picture")
    with pytest.raises(UnreadableImage) as error:
        read_image(path.decode(errors="surrogateescape"))
    assert r"a\n\xe9.png: not an image" in str(error.value)


def test_a_pipe_can_be_read():
    read, written = os.pipe()
    os.write(written, encode(Image.fromarray(COLOR), "png"))
    os.close(written)
    with open(read, "rb") as file:
        np.testing.assert_array_equal(read_image(file).pixels, COLOR)


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    def load(self):
        raise MemoryError

    path = save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(UnreadableImage, match="not enough memory"):
        read_image(path)


# Other code in the process


def test_nothing_global_is_changed(tmp_path):
    def settings():
        return (
            Image.MAX_IMAGE_PIXELS,
            ImageFile.LOAD_TRUNCATED_IMAGES,
            PngImagePlugin.MAX_TEXT_CHUNK,
            PngImagePlugin.MAX_TEXT_MEMORY,
            list(warnings.filters),
        )

    read_image(OTHERS["BMP"])  # Pillow's plugins are known from here on
    before, known = settings(), set(Image.OPEN)
    seen = []

    class Watched(io.BytesIO):
        def read(self, *args):
            seen.append(settings()[:-1])
            return super().read(*args)

    for data in (*MUCH_TEXT.values(), OTHERS["CMYK"], b"no picture"):
        data = data if isinstance(data, bytes) else png(8, 2, COLOR.reshape(HEIGHT, -1), *data)
        with contextlib.suppress(UnreadableImage):
            read_image(Watched(data))
    read_image_size(Watched(bomb(20000, 20000)), 401_000_000)
    assert set(seen) == {before[:-1]}
    assert settings() == before
    assert set(Image.OPEN) == known


def test_many_threads_read_at_once():
    expected = {name: read_image(data).pixels for name, data in ODD.items()}
    failed = []

    def work():
        for name, data in ODD.items():
            if not np.array_equal(read_image(data).pixels, expected[name]):
                failed.append(name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# Drawing


def test_a_drawing_on_transparent_ground_is_itself_on_white(tmp_path):
    drawing = np.zeros((60, 80, 4), np.uint8)  # black and wholly transparent
    drawing[20:40, 30:50] = (0, 0, 0, 255)
    Image.fromarray(drawing).save(tmp_path / "drawing.png")
    white = np.full((60, 80, 3), 255, np.uint8)
    white[20:40, 30:50] = 0
    np.testing.assert_array_equal(read_image(tmp_path / "drawing.png").pixels, white)
    tile = np.asarray(fit_image(tmp_path / "drawing.png", (80, 60)))
    np.testing.assert_array_equal(tile, white)


def test_annotated_boxes_fit_a_reduced_picture(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (1000, 800), "white").save(path)
    record = {
        "file_name": str(path),
        "height": 800,
        "width": 1000,
        "image_id": "a",
        "annotations": [
            {"bbox": [500, 400, 490, 390], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        ],
    }
    whole = draw_record(record, ["thing"])
    reduced = draw_record(record, ["thing"], 1000 * 200)
    assert reduced.width < whole.width
    shrunk = np.asarray(whole.resize(reduced.size))[60:] < 128
    assert (shrunk != (np.asarray(reduced)[60:] < 128)).mean() < 0.05
