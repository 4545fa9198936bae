"""What this package wrote is known again, and nothing else is."""

import io
import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from builders import code_set
from regiondh_d2.checkpoint import write_weights
from regiondh_d2.checkpoint.conversion import ConvertedWeights
from regiondh_d2.data.datasets.scenes import generate_scenes
from regiondh_d2.retrieval.code_store import write_codes
from regiondh_d2.utils.file_io import carries_mark, write_json
from regiondh_d2.utils.marks import mark_folder, mark_of
from regiondh_d2.visualization.draw import save_image
from regiondh_d2.visualization.grid import GridLayout
from regiondh_d2.visualization.plots import save_figure


def noise(width=160, height=120):
    """A picture that no format makes small: its ends are far apart."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def codes():
    return code_set(np.zeros((2, 1), np.uint8))


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "gif", "webp", "tif", "avif"])
def test_pictures(ending, tmp_path):
    ours, theirs = tmp_path / f"ours.{ending}", tmp_path / f"theirs.{ending}"
    save_image(noise(), ours)
    noise().save(theirs)
    assert (mark_of(ours), mark_of(theirs)) == ("picture", None)
    with Image.open(ours) as image:
        image.load()
        assert image.size == (160, 120)


def test_a_format_without_a_place_for_a_mark(tmp_path):
    save_image(noise(), tmp_path / "a.bmp")
    assert mark_of(tmp_path / "a.bmp") is None


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "eps", "jpg", "tif", "webp"])
def test_plots(ending, tmp_path):
    ours, theirs = tmp_path / f"ours.{ending}", tmp_path / f"theirs.{ending}"
    figure = Figure()
    figure.subplots().plot(range(2000), np.random.default_rng(0).random(2000))
    save_figure(figure, ours)
    figure.savefig(theirs)
    assert mark_of(ours) in ("plot", "picture")
    assert mark_of(theirs) is None


def test_code_files(tmp_path):
    write_codes(tmp_path / "codes.h5", codes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["codes"] = np.zeros(3)
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file.attrs["format"] = "regiondh-codes"  # of variable length, which is never followed
    assert mark_of(tmp_path / "codes.h5") == "codes"
    assert mark_of(tmp_path / "other.h5") is None
    assert mark_of(tmp_path / "text.h5") is None
    damaged = (tmp_path / "codes.h5").read_bytes()[:200]
    (tmp_path / "damaged.h5").write_bytes(damaged)
    assert mark_of(tmp_path / "damaged.h5") is None
    with h5py.File(tmp_path / "codes.h5"):  # somebody reads it
        assert mark_of(tmp_path / "codes.h5") == "codes"


def test_weights(tmp_path):
    model = {f"layer{i}.weight": torch.zeros(50) for i in range(300)}
    write_weights(tmp_path / "ours.pth", ConvertedWeights(model, []))
    torch.save({"model": model}, tmp_path / "theirs.pth")
    assert mark_of(tmp_path / "ours.pth") == "weights"
    assert mark_of(tmp_path / "theirs.pth") is None
    assert set(torch.load(tmp_path / "ours.pth", weights_only=True)["model"]) == set(model)


def test_json(tmp_path):
    path = tmp_path / "a.json"
    for values in ({"a": 1}, [{"a": 1}, {"a": 2}]):
        write_json(path, values, format="regiondh-answers")
        assert mark_of(path) == "json"
        found = json.loads(path.read_text())
        first = found if isinstance(found, dict) else found[1]
        assert first["format"] == "regiondh-answers"
        path.write_text(json.dumps(found, sort_keys=True))  # as other tools write it again
        assert mark_of(path) == "json"
    write_json(path, {"a": 1})
    assert mark_of(path) is None


@pytest.mark.parametrize(
    "values",
    [
        {"MAP@1000": 0.5, "num_queries": 3},
        {"image/MAP_all": 0.5, "num_queries": 3},
        {"untrained/NDCG@20": 1, "bbox/AP": 3.5},
        {"file_name": "a", "bits": 8, "searched": 2, "answers": []},
        [{"file_name": "a", "bits": 8, "searched": 2, "answers": []}],
        {"flop": {"backbone": 1}, "setting": {}},
        {"search": {}, "machine": {}},
    ],
)
def test_json_of_version_0_1(values, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert mark_of(tmp_path / "a.json") == "json"


@pytest.mark.parametrize(
    "text",
    [
        *('{"MAP@1000": "0.5"}', '{"a": 1}', '{"format": "coco"}', "{}", "[]", "[1]", "null"),
        *('{"MAP@1000": true}', '{"images": [], "annotations": []}', "{", "", "[" * 5000),
        '"format": "regiondh-answers"',
    ],
)
def test_json_of_others(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    assert not carries_mark(tmp_path / "a.json")


def test_grids_of_version_0_1(tmp_path):
    """Without a mark: known by their size, which few other pictures have, and by their chunks."""
    for rows, columns in ((1, 2), (1, 11), (6, 6), (3, 1)):
        size = GridLayout(text=54).size(rows, columns)
        Image.new("RGB", size).save(tmp_path / "grid.png")
        assert mark_of(tmp_path / "grid.png") == "picture", size
        Image.new("RGB", (size[0] + 1, size[1])).save(tmp_path / "other.png")
        Image.new("L", size).save(tmp_path / "gray.png")
        Image.new("RGB", size).save(tmp_path / "scan.png", dpi=(300, 300))
        for name in ("other", "gray", "scan"):
            assert mark_of(tmp_path / f"{name}.png") is None


def test_pages(tmp_path):
    head = '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    old = (
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy"\n  content="default-src \'none\'">\n<title>'
    )
    ours = '<meta name="generator" content="regiondh_d2">\n'
    other = '<meta name="generator" content="Sphinx">\n<p>regiondh_d2</p>'
    for text, expected in ((head + ours, "page"), (head + old, "page"), (head + other, None)):
        (tmp_path / "page.html").write_text(text)
        assert mark_of(tmp_path / "page.html") == expected


def test_what_only_speaks_of_us_is_not_ours(tmp_path):
    """The mark counts in its own place, in a file of its own kind."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG")
    names = {
        "notes.md": b'regiondh_d2 "format": "regiondh-codes" <meta name="generator" '
        b'content="regiondh_d2">',
        "notes.txt": b"\xff\xfe\x00\x0dregiondh_d2",
        "a.png": buffer.getvalue() + b"tEXtSoftware regiondh_d2",
        "empty": b"",
    }
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
        assert mark_of(tmp_path / name) is None, name
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("data.pkl", "format of regiondh-weights")
    assert mark_of(tmp_path / "a.pth") is None
    assert mark_of(tmp_path / "absent") is None
    assert mark_of("/dev/null") is None


def test_folders(tmp_path):
    assert mark_of(tmp_path) is None
    mark_folder(tmp_path / "a" / "b", "demo")
    mark_folder(tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".regiondh").write_text("")
    assert [mark_of(tmp_path / x) for x in ("a/b", "c", "d")] == ["demo", "folder", "folder"]
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").write_text('{"format": "regiondh-index", "version": 1}')
    assert mark_of(tmp_path / "index") == "index"
    (tmp_path / "index" / "index.json").write_text('{"format": "other"}')
    assert mark_of(tmp_path / "index") is None


def test_a_mark_on_a_full_disk(tmp_path, full_disk):
    mark_folder(tmp_path, "index")
    with full_disk(0):
        mark_folder(tmp_path, "index")  # nothing needs to be written
        with pytest.raises(OSError, match="File too large"):
            mark_folder(tmp_path, "demo")
    assert mark_of(tmp_path) == "index"
    assert os.listdir(tmp_path) == [".regiondh"]


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        *(("photos.h5", "codes"), ("scenes.h5", "codes"), ("index_faiss/items.h5", "codes")),
        *(("index_faiss", "index"), ("index_numpy", "index")),
        *(("training", None), ("training/model_final.pth", None), ("photos", None)),
        ("photos/a.png", None),
    ],
)
def test_artifacts_of_version_0_1(name, mark):
    assert mark_of(Path(__file__).parent / "data/v0_1" / name) == mark


def test_the_demo_of_version_0_1(tmp_path):
    """Its names alone are anybody's; with the scenes they are the demo's."""
    for name in ("report.html", "metrics.json", ".DS_Store"):
        (tmp_path / name).write_text("")
    (tmp_path / "training").mkdir()
    assert mark_of(tmp_path) is None
    generate_scenes(tmp_path / "scenes", num_database=1, num_queries=1)
    assert mark_of(tmp_path) == "demo"
    assert mark_of(tmp_path / "scenes") == "scenes"
    (tmp_path / "thesis.tex").write_text("")
    assert mark_of(tmp_path) is None
