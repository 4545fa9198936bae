"""Pictures of ground truth: lines where the boxes are, and what is written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from pictures import plain
from regiondh_d2.data.training import UnreadableImageError
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.visualization import dataset_pictures
from regiondh_d2.visualization.dataset_pictures import draw_record, draw_training_input

BOX = (200, 100, 500, 400)  # in an image of 640 x 480, which is drawn at its own size


@pytest.fixture
def gray(tmp_path):
    path = tmp_path / "gray.png"
    plain((128, 128, 128), 640, 480).save(path)
    return str(path)


def make_record(file_name, **annotation):
    x1, y1, x2, y2 = BOX
    box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    return {"file_name": file_name, "image_id": "7", "annotations": [{**box, **annotation}]}


def drawn_on_edges(picture):
    """What share of the box's left, right and lower edge, below its text, is not gray."""
    pixels = np.asarray(picture).astype(int)
    pixels = pixels[len(pixels) - 480 :]
    changed = (abs(pixels - 128) > 40).any(axis=2)
    x1, y1, x2, y2 = BOX
    assert not changed[y1 + 50 : y2 - 10, x1 + 10 : x2 - 10].any()  # nothing within
    assert not changed[: y1 - 30].any()
    assert not changed[y2 + 10 :].any()
    rows, columns = slice(y1 + 50, y2 - 10), slice(x1 + 10, x2 - 10)
    edges = (changed[rows, x1], changed[rows, x2], changed[y2, columns])
    return [edge.mean() for edge in edges]


def test_boxes_are_where_they_are_and_dashed_where_difficult(gray):
    assert drawn_on_edges(draw_record(make_record(gray), ["cat", "dog"])) == [1.0] * 3
    for mark in ("difficult", "iscrowd"):
        dashed = drawn_on_edges(draw_record(make_record(gray, **{mark: 1}), ["cat", "dog"]))
        assert all(0.3 < share < 0.95 for share in dashed)


def test_what_is_written(gray, monkeypatch):
    """The caption and the texts of the boxes are those of the record."""
    written = []

    def labels(picture, labels, size):
        written.extend(label.text for label in labels)

    def above(picture, parts, size):
        written.append("".join(parts))
        return picture

    monkeypatch.setattr(dataset_pictures, "draw_labels", labels)
    monkeypatch.setattr(dataset_pictures, "draw_above", above)
    names = ["cat", "dog"]
    record = make_record(gray, difficult=True) | {"image_labels": [0, 1], "difficult_labels": [1]}
    draw_record(record | {"role": "query"}, names)
    assert written == ["dog, difficult", "query   gray.png   cat, dog (difficult)"]
    written.clear()
    draw_record(make_record(gray, iscrowd=1), [])
    assert written == ["1, crowd", "gray.png   1"]
    written.clear()
    draw_record({"file_name": gray}, names)
    assert written == ["gray.png   no labels"]


def test_small_images_are_enlarged_and_many_labels_have_several_lines(tmp_path):
    path = str(tmp_path / "small.png")
    Image.new("RGB", (60, 120)).save(path)
    labels = list(range(20))
    short = draw_record({"file_name": path}, [])
    long = draw_record(
        {"file_name": path, "image_labels": labels}, [f"class number {i}" for i in labels]
    )
    assert short.width == long.width == 480
    assert 960 < short.height < 1010
    assert long.height > short.height + 100


def test_a_thin_image_does_not_become_a_huge_one(tmp_path):
    path = str(tmp_path / "thin.png")
    Image.new("RGB", (2000, 3)).save(path)
    box = {"bbox": [100, 0, 200, 3], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    assert draw_record({"file_name": path, "annotations": [box]}, ["line"]).width == 4000


def test_lines_and_texts_grow_with_a_large_image(tmp_path):
    """A picture of many pixels is shown smaller."""
    heights, widths = [], []
    for width, height in ((1000, 1000), (3000, 3000)):
        path = str(tmp_path / f"{width}.png")
        plain((128, 128, 128), width, height).save(path)
        x = width // 2
        box = {"bbox": [x, x, x + 300, x + 300], "bbox_mode": 0, "category_id": 0}
        picture = draw_record({"file_name": path, "annotations": [box]}, ["thing"])
        heights.append(picture.height - height)
        row = np.asarray(picture)[heights[-1] + x + 150, x - 50 : x + 150]
        widths.append((row != 128).any(axis=1).sum())
    assert widths == [3, 9]
    assert heights[1] == pytest.approx(3 * heights[0], rel=0.1)


def test_an_image_is_read_with_the_given_limit(tmp_path):
    """A larger one is refused; of a larger JPEG, which is read smaller, the boxes are smaller."""
    for name in ("a.png", "a.jpg"):
        plain((128, 128, 128), 1280, 960).save(tmp_path / name)
    x1, y1, x2, y2 = (2 * side for side in BOX)
    record = make_record(str(tmp_path / "a.jpg"), bbox=[x1, y1, x2 - x1, y2 - y1])
    reduced = draw_record({**record, "width": 1280, "height": 960}, ["thing", "dog"], 640 * 480)
    assert reduced.width == 640
    assert drawn_on_edges(reduced) == [1.0] * 3
    with pytest.raises(UnreadableImageError, match=r"a\.png: cannot be read \(too many pixels"):
        draw_record(make_record(str(tmp_path / "a.png")), ["thing", "dog"], 640 * 480)


def test_an_image_that_cannot_be_read_is_named(gray):
    Path(gray).write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"gray\.png: cannot be read"):
        draw_record(make_record(gray), [])


def test_a_box_that_is_none(gray):
    with pytest.raises(RegionDHError, match=r"gray\.png: bbox \[.*nan.*\] is no box"):
        draw_record(make_record(gray, bbox=[1, 2, float("nan"), 4]), [])


def test_training_inputs_in_their_channel_order():
    """Blue in BGR is blue in the picture."""
    truth = Instances((480, 640), gt_boxes=Boxes(torch.tensor([BOX], dtype=torch.float32)))
    truth.gt_classes = torch.tensor([1])
    image = torch.zeros(3, 480, 640, dtype=torch.uint8)
    image[0] = 255
    inputs = {"image": image, "instances": truth, "file_name": "a/b.jpg"}
    picture = draw_training_input(inputs, ["cat", "dog"], "BGR")
    assert picture.getpixel((5, picture.height - 5)) == (0, 0, 255)
    assert picture.getpixel((BOX[0], picture.height - 480 + BOX[3] - 30)) != (0, 0, 255)


def test_training_inputs_without_boxes():
    image = torch.full((3, 480, 640), 9, dtype=torch.uint8)
    inputs = {"image": image, "image_labels": [1], "file_name": "a/b.jpg"}
    picture = draw_training_input(inputs, ["cat", "dog"], "BGR")
    assert picture.crop((0, picture.height - 480, 640, picture.height)).getcolors() == [
        (640 * 480, (9, 9, 9))
    ]
