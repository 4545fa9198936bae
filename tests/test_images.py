"""Images to code: which files are found, and what is read of ordinary, unusual and broken ones."""

import io
import os
import warnings

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from PIL import Image

from pictures import pixels_of, save
from regiondh_d2 import add_regiondh_config
from regiondh_d2.retrieval.images import (
    ImageEntry,
    ImageLoader,
    UnreadableImage,
    dataset_images,
    find_images,
)

# Finding images


def test_folders_are_searched_in_order_and_files_taken_as_they_are(tmp_path, monkeypatch):
    for name in ("b/2.JPG", "b/10.png", "a.webp", ".hidden.png", ".cache/x.png", "c/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    found = find_images(["b/2.JPG", ".", "c/notes.txt"])
    names = ["b/2.JPG", "a.webp", "b/10.png", "c/notes.txt"]
    assert [entry.file_name for entry in found] == [str(tmp_path / name) for name in names]
    assert all(entry.image_id == entry.file_name and entry.labels is None for entry in found)


def test_inputs_that_name_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder"):
        find_images([tmp_path / "absent"])
    with pytest.raises(ValueError, match=f"no images in {tmp_path}"):
        find_images([tmp_path])


def test_dataset_images():
    dicts = [
        {"image_id": 7, "file_name": "7.jpg", "image_labels": [2, 0], "difficult_labels": [2]},
        {"image_id": "x", "file_name": "x.jpg"},
    ]
    here = os.getcwd()
    assert dataset_images(dicts, True) == [
        ImageEntry("7", "7.jpg", (0, 2), here, "7.jpg"),
        ImageEntry("x", "x.jpg", None, here, "x.jpg"),
    ]
    assert dataset_images(dicts, False)[0].labels == (0,)


# Reading images


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_regiondh_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 48, 96
    return cfg


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_ordinary_images_are_read_as_detectron2_reads_them(
    tmp_path, cfg, image_format, orientation
):
    cfg.INPUT.FORMAT = image_format
    exif = Image.Exif()
    exif[274] = orientation
    path = str(save(tmp_path / "some.jpg", 60, 50, exif=exif))
    given = DatasetMapper(cfg, is_train=False)({"file_name": path})
    ours = ImageLoader(cfg)(path)
    assert torch.equal(ours["image"], given["image"])
    assert (ours["height"], ours["width"]) == (given["height"], given["width"])
    assert ImageLoader(cfg).read_size(path) == tuple(given["image"].shape[1:])


def test_images_can_stay_as_they_are(tmp_path, cfg):
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT = 0, "RGB"
    path = str(save(tmp_path / "some.png", 60, 50))
    np.testing.assert_array_equal(
        ImageLoader(cfg)(path)["image"], pixels_of("some.png", 60, 50).transpose(2, 0, 1)
    )
    assert ImageLoader(cfg).read_size(path) == (60, 50)


def test_turned_tiffs_are_turned_once(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = str(save(tmp_path / "some.tif", 60, 50, exif=exif))
    loader = ImageLoader(min_size=0, max_size=0, image_format="RGB")
    turned = np.rot90(pixels_of("some.tif", 60, 50), -1)
    np.testing.assert_array_equal(loader(path)["image"], turned.transpose(2, 0, 1))
    assert loader.read_size(path) == (50, 60)


RAMP = np.linspace(0, 65535, 40 * 64).astype(np.uint16).reshape(40, 64)
RGBA = np.dstack([pixels_of("alpha", 40, 64), np.full((40, 64), 128, np.uint8)])
UNUSUAL = {
    "cmyk.jpg": (Image.fromarray(pixels_of("cmyk", 40, 64)).convert("CMYK"), None),
    "alpha.png": (Image.fromarray(RGBA), RGBA[..., :3]),
    "grey.png": (
        Image.fromarray(pixels_of("grey", 40, 64)[..., 0]),
        pixels_of("grey", 40, 64)[..., [0, 0, 0]],
    ),
    "palette.png": (Image.fromarray(pixels_of("palette", 40, 64)).quantize(256), None),
    "transparent.gif": (Image.fromarray(RGBA).quantize(32), None),
    "bilevel.png": (
        Image.fromarray(RAMP > 30000),
        np.repeat((RAMP > 30000)[..., None] * np.uint8(255), 3, axis=2),
    ),
    "16_bit.png": (Image.fromarray(RAMP), (RAMP >> 8)[..., None].repeat(3, axis=2)),
    "16_bit.tif": (Image.fromarray(RAMP), (RAMP >> 8)[..., None].repeat(3, axis=2)),
    "16_bit.pgm": (Image.fromarray(RAMP), (RAMP >> 8)[..., None].repeat(3, axis=2)),
    "one_pixel.png": (Image.new("RGB", (1, 1), (9, 8, 7)), np.array([[[9, 8, 7]]])),
    "wide.png": (Image.new("RGB", (20000, 30), (1, 2, 3)), np.full((30, 20000, 3), (1, 2, 3))),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_images(tmp_path, cfg, name):
    """Read as they are: the pixels known, or Detectron2's. Resized: the size that was planned."""
    image, expected = UNUSUAL[name]
    path = str(tmp_path / name)
    image.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = read_image(path, "RGB") if expected is None else expected
    loader = ImageLoader(min_size=0, max_size=0, image_format="RGB")
    np.testing.assert_array_equal(loader(path)["image"].numpy().transpose(1, 2, 0), expected)
    cfg.INPUT.MAX_SIZE_TEST = 1333
    loader = ImageLoader(cfg)
    assert loader(path)["image"].shape[1:] == loader.read_size(path)


def shorten(data, share):
    return data[: int(len(data) * share)]


def broken_files():
    def encode(suffix, image=None):
        buffer = io.BytesIO()
        (image or Image.fromarray(pixels_of("broken", 60, 60))).save(buffer, suffix)
        return buffer.getvalue()

    bomb = bytearray(encode("bmp", Image.new("L", (8, 8))))
    bomb[18:26] = (20000).to_bytes(4, "little") * 2
    return {
        "empty.jpg": (b"", "the file is empty"),
        "text.png": (b"no picture", "not an image of a known format"),
        "header.png": (shorten(encode("png"), 0.001), "not an image of a known format"),
        "half.png": (shorten(encode("png"), 0.5), "damaged or incomplete"),
        "half.jpg": (shorten(encode("jpeg"), 0.5), "damaged or incomplete"),
        "end.jpg": (encode("jpeg")[:-40], "damaged or incomplete"),
        "half.webp": (shorten(encode("webp"), 0.5), "damaged"),
        "half.gif": (shorten(encode("gif"), 0.5), "damaged or incomplete"),
        "half.tif": (shorten(encode("tiff"), 0.5), "damaged"),
        "bomb.bmp": (bytes(bomb), "too many pixels"),
        "float.tif": (encode("tiff", Image.new("F", (9, 9))), "32-bit pixels"),
        "thin.png": (
            encode("png", Image.new("L", (20000, 10))),
            "20000 x 10 pixels would be 96 x 0",
        ),
    }


@pytest.mark.parametrize("name", broken_files())
def test_unreadable_images_say_why(tmp_path, cfg, name):
    path = tmp_path / name
    content, reason = broken_files()[name]
    path.write_bytes(content)
    with pytest.raises(UnreadableImage) as error:
        ImageLoader(cfg)(str(path))
    assert error.value.file_name == str(path)
    assert reason in error.value.reason
    assert "\n" not in str(error.value)


def test_missing_files_are_unreadable(tmp_path, cfg):
    with pytest.raises(UnreadableImage, match="No such file"):
        ImageLoader(cfg).read_size(str(tmp_path / "absent.jpg"))
