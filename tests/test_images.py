"""Images to encode: entries of files and datasets, and the network's inputs."""

import os

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
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


def test_missing_files_are_unreadable(tmp_path, cfg):
    with pytest.raises(UnreadableImage, match="No such file"):
        ImageLoader(cfg).read_size(str(tmp_path / "absent.jpg"))
