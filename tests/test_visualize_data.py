"""Pictures of ground truth: lines where the boxes are, and the tool from datasets to files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from regiondh_d2.data.datasets.scenes import generate_scenes, register_scenes
from regiondh_d2.data.training import UnreadableImageError
from regiondh_d2.visualization import dataset_pictures
from regiondh_d2.visualization.dataset_pictures import draw_record, draw_training_input

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml")
BOX = (200, 100, 500, 400)  # in an image of 640 x 480, which is drawn at its own size


@pytest.fixture
def gray(tmp_path):
    path = tmp_path / "gray.png"
    Image.new("RGB", (640, 480), (128, 128, 128)).save(path)
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
    """The line above, and the texts of the boxes, are those of the record."""
    written = []
    draw_text = dataset_pictures.Visualizer.draw_text

    def spy(self, text, *args, **kwargs):
        written.append(text)
        return draw_text(self, text, *args, **kwargs)

    def note(picture, text):
        written.append(text)
        return picture

    monkeypatch.setattr(dataset_pictures.Visualizer, "draw_text", spy)
    monkeypatch.setattr(dataset_pictures, "_put_above", note)
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


def test_small_images_are_enlarged_and_long_lines_fit(tmp_path):
    path = str(tmp_path / "small.png")
    Image.new("RGB", (60, 120)).save(path)
    labels = list(range(20))
    short = draw_record({"file_name": path}, [])
    long = draw_record(
        {"file_name": path, "image_labels": labels}, [f"class number {i}" for i in labels]
    )
    assert short.width == 480
    assert 960 < short.height == long.height < 1010
    line = np.asarray(long)[: long.height - 960, 480:].astype(int)
    assert line.shape[1] > 1000
    ink = np.flatnonzero((line < 128).any(axis=(0, 2)))
    assert line.shape[1] - 15 < ink[-1] < line.shape[1] - 5  # the text, then its margin


def test_an_image_that_cannot_be_read_is_named(gray):
    Path(gray).write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"gray\.png: cannot be read"):
        draw_record(make_record(gray), [])


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


@pytest.fixture
def tool(load_tool):
    return load_tool("visualize_data")


@pytest.fixture
def scenes(tmp_path):
    """Five scenes, registered with the prefix v_."""
    before = set(DatasetCatalog.list())
    register_scenes(generate_scenes(tmp_path / "s", num_database=3, num_queries=2), prefix="v_")
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_dataset_from_end_to_end(tool, scenes, tmp_path, capsys):
    output = tmp_path / "pictures"
    arguments = ["--dataset", "v_scenes_retrieval", "--output-dir", str(output)]
    assert tool.main([*arguments, "--images", "3"]) == 0
    assert capsys.readouterr().out == f"3 pictures in {output}\n"
    names = [
        "000000_database_000000.jpg",
        "000002_database_000002.jpg",
        "000004_queries_000001.jpg",
    ]
    assert sorted(path.name for path in output.iterdir()) == names
    assert tool.main(arguments) == 0
    assert len(list(output.iterdir())) == 5
    for path in output.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) >= 480


def test_training_from_end_to_end(tool, scenes, tmp_path, capsys):
    output = tmp_path / "pictures"
    arguments = ["--config-file", CONFIG, "--output-dir", str(output), "--images", "7"]
    train = ["DATASETS.TRAIN", '("v_regiondh_scenes_database",)', "DATASETS.TEST", "()"]
    assert tool.main([*arguments, *train]) == 0
    names = sorted(path.name for path in output.iterdir())
    assert [name[:6] for name in names] == [f"{i:06d}" for i in range(7)]  # the loader is endless
    assert {name[7:15] for name in names} == {"database"}
    assert tool.main([*arguments, "DATASETS.TRAIN", '("nothing",)']) == 1
    assert "DATASETS.TRAIN has 'nothing'" in capsys.readouterr().err


def test_an_unknown_dataset_is_named(tool, tmp_path, capsys):
    assert tool.main(["--dataset", "nothing", "--output-dir", str(tmp_path / "pictures")]) == 1
    line = capsys.readouterr().err
    assert "'nothing', which isn't registered; known: regiondh_voc_2007_train," in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--dataset", "a"],
        ["--dataset", "a", "--output-dir", "o", "--config-file", CONFIG],
        ["--dataset", "a", "--output-dir", "o", "MODEL.DEVICE", "cpu"],
    ],
)
def test_wrong_arguments_exit_2(tool, arguments):
    with pytest.raises(SystemExit) as error:
        tool.main(arguments)
    assert error.value.code == 2
