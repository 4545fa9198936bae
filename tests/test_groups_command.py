"""The command that groups the photos of an index."""

import json

import numpy as np
import pytest
from PIL import Image

from regiondh_cli.main import main
from regiondh_d2.retrieval.groups import group_photos
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.retrieval.thresholds import calibrate_index
from searching import make_items


@pytest.fixture
def items(tmp_path):
    """Photos that are there, and an index of them; the first two are of one content."""
    names = []
    for i in range(60):
        path = tmp_path / "photos" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (4 * i, 0, 0)).save(path)
        names.append(str(path))
    contents = np.random.default_rng(0).integers(1, 256, (60, 32), dtype=np.uint8)
    contents[1] = contents[0]
    status = [(tmp_path / "photos" / f"{i:02}.png").stat() for i in range(60)]
    items = make_items(
        found=70,
        file_names=names,
        content_sha256=contents,
        roots=[str(tmp_path / "photos")],
        size=np.array([one.st_size for one in status]),
        mtime_ns=np.array([one.st_mtime_ns for one in status]),
    )
    write_index_folder(tmp_path / "index", items, engine="numpy")
    return items


def test_groups_are_printed_written_and_drawn(items, tmp_path, capsys):
    index, out, grid = (str(tmp_path / name) for name in ("index", "out.json", "grid.png"))
    assert main(["groups", index, "--max-distance", "4", "--json", out, "--save", grid]) == 0
    found = group_photos(items, 4)
    values = json.loads((tmp_path / "out.json").read_text())
    assert values["format"] == "regiondh-groups"
    assert (values["max_distance"], values["threshold"], values["photos"]) == (4, None, 60)
    assert [(x["diameter"], x["files"]) for x in values["groups"]] == [
        (group.diameter, [items.file_names[row] for row in group.rows]) for group in found.groups
    ]
    assert values["copies"] == [{"file": items.file_names[0], "copies": [items.file_names[1]]}]
    lines = capsys.readouterr().out.splitlines()
    first = found.groups[0]
    assert lines[0] == f"group 1: {len(first.rows)} photos within distance {first.diameter}"
    assert lines[1] == f"  {items.file_names[first.rows[0]]}"
    assert lines[-3:-1] == [f"copies of {items.file_names[0]}:", f"  {items.file_names[1]}"]
    assert lines[-1].startswith("60 photos: ")
    with Image.open(grid) as image:
        assert image.height > 300

    assert main(["groups", index, "--max-distance", "4", "--max-size", "2", "--json", out]) == 0
    sizes = {len(x["files"]) for x in json.loads((tmp_path / "out.json").read_text())["groups"]}
    assert sizes == {2}


def test_a_calibrated_distance_and_photos_that_have_gone(items, tmp_path, capsys):
    index, out = str(tmp_path / "index"), str(tmp_path / "out.json")
    (tmp_path / "photos" / "07.png").unlink()
    assert main(["groups", index, "--json", out]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == str(calibrate_index(items))
    assert "warning: 1 photos have gone" in printed.err
    values = json.loads((tmp_path / "out.json").read_text())
    assert values["photos"] == 59
    assert values["threshold"]["rate"] <= 0.01
    assert main(["groups", index, "--json", out, "--no-file-check"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["photos"] == 60


def test_failures_are_one_line(items, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["absent"], "absent: no index folder"),
        (["index", "--save", "grid.xyz"], "'.xyz' is no image format"),
        (["index", "--json", "photos/00.png", "--overwrite"], "photos/00.png"),
    ):
        assert main(["groups", *words]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
