"""Names of files may hold anything: shown escaped everywhere, and kept as they are in JSON."""

import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from regiondh_d2.retrieval.images import UnreadableImage
from regiondh_d2.retrieval.queries import Answer, SearchResult
from regiondh_d2.utils.file_io import write_json
from regiondh_d2.visualization.dataset_pictures import draw_record
from regiondh_d2.visualization.draw import save_image
from regiondh_d2.visualization.grid import draw_grid
from regiondh_d2.visualization.plots import figure_svg, plot_precision_at, save_figure
from regiondh_d2.visualization.retrieval_pictures import search_tiles

# A name and how it is shown.
NAMES = [
    (b"a\nb.png", r"a\nb.png"),
    (b"caf\xe9.png", r"caf\xe9.png"),
    (b"\x1b[31mred.png", r"\x1b[31mred.png"),
    ("\u202egnp.exe.png".encode(), r"\u202egnp.exe.png"),
    ("世界 😀.png".encode(), "世界 😀.png"),
    (b"<b>&amp;$x$.png", "<b>&amp;$x$.png"),
]


@pytest.fixture(params=NAMES, ids=[shown for _, shown in NAMES])
def named(request, tmp_path):
    """The path of an image, and its name as it is shown."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + request.param[0])
    Image.new("RGB", (40, 30), (9, 99, 9)).save(path, "PNG")
    return path, request.param[1]


@pytest.fixture
def result(named):
    path, _ = named
    return SearchResult(path, (), None, None, 8, 1, (Answer(0, path, path, 3, None, ()),))


def test_the_table_of_a_search(load_tool, named, result, monkeypatch, tmp_path):
    tool = load_tool("search")
    _, shown = named
    table = tool.format_table(result).splitlines()
    assert len(table) == 2
    assert table[1].endswith(f"/{shown}")
    headline = tool.headline(result)
    assert f"/{shown}: nearest of 8 images" in headline
    with open(tmp_path / "out", "w", encoding="utf-8") as file:  # as strict as a terminal
        monkeypatch.setattr(sys, "stdout", file)
        print(headline, *table)


def test_the_picture_of_a_search(named, result, tmp_path, load_tool):
    tiles = search_tiles(result)
    assert [tile.name for tile in tiles] == [named[0]] * 2
    save_image(draw_grid([tiles], load_tool("search").headline(result)), tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert (np.asarray(picture) == (9, 99, 9)).all(axis=2).sum() > 1000


def test_json_keeps_the_name(named, result, tmp_path):
    """A byte that is not UTF-8 is a lone surrogate, escaped: the file is ASCII."""
    write_json(tmp_path / "out.json", result.as_dict())
    text = (tmp_path / "out.json").read_bytes()
    assert text.isascii()
    found = json.loads(text)["answers"][0]["file_name"]
    assert os.fsencode(found) == os.fsencode(named[0])
    assert os.path.isfile(found)


def test_errors(named, tmp_path):
    from regiondh_d2.engine.command import _one_line

    path, shown = named
    for error in (UnreadableImage(path, "damaged"), FileNotFoundError(2, "Not found", path)):
        line = _one_line(error)
        assert f"/{shown}: " in line
        assert "\n" not in line
        line.encode()


def test_pictures_of_datasets(named):
    path, shown = named
    record = {"file_name": path, "image_id": "1", "annotations": []}
    assert draw_record(record, ["cat"]).width >= 480
    box = {"bbox": [1, 1, 20, 20], "bbox_mode": 0, "category_id": 0}
    draw_record({**record, "annotations": [box]}, [f"$x {shown} $"])


@pytest.mark.filterwarnings("error")
def test_plots(named, tmp_path):
    """Names of methods and classes come from files, too."""
    name = os.path.basename(named[0])
    figure = plot_precision_at({name: np.array([1.0, 0.5]), "other": np.array([0.2, 0.1])})
    svg = figure_svg(figure)
    svg.encode()
    assert not any(ord(letter) < 32 and letter != "\n" for letter in svg)
    figure = plot_precision_at({name: np.array([1.0, 0.5]), "other": np.array([0.2, 0.1])})
    save_figure(figure, tmp_path / "a.png")
    save_figure(figure, tmp_path / "a.svg")
