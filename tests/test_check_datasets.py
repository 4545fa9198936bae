"""The dataset checker and the scenes command, as commands."""

import functools
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from builders import registered_scenes
from regiondh_d2.data import check
from regiondh_d2.data.check import check_dataset
from regiondh_d2.data.datasets.scenes import register_scenes
from regiondh_d2.utils.progress import Progress


@pytest.fixture
def root(tmp_path):
    """Five scenes, registered with the prefix t_."""
    with registered_scenes(tmp_path / "s", "t_", database=3, queries=2):
        yield tmp_path / "s"


@pytest.fixture
def main(load_tool):
    return load_tool("check_datasets").main


def test_progress_on_the_images(root, monkeypatch):
    monkeypatch.setattr(check, "Progress", functools.partial(Progress, every=0.0))
    lines = []
    check_dataset("t_scenes_retrieval", open_images=True, log=lines.append)
    assert [line.partition(",")[0] for line in lines] == [
        f"{i + 1} of 5 images of t_scenes_retrieval opened" for i in range(5)
    ]


def test_sound(root, main, capsys):
    assert main(["t_scenes_retrieval", "t_regiondh_scenes_queries", "--images"]) == 0
    out, err = capsys.readouterr()
    assert "t_scenes_retrieval: 5 images (3 database, 2 query)" in out
    assert "t_regiondh_scenes_queries: 2 images, " in out
    assert "no problems" in out
    assert "images a class: star " in out
    assert err == ""


def test_counts(root):
    report = check_dataset("t_scenes_retrieval")
    records = DatasetCatalog.get("t_scenes_retrieval")
    assert report.objects == sum(len(r["annotations"]) for r in records)
    assert sum(report.class_images.values()) == sum(len(r["image_labels"]) for r in records)
    assert report.roles == {"database": 3, "query": 2}


def test_every_problem_once(root, main, capsys):
    (root / "JPEGImages/queries_000000.jpg").unlink()
    (root / "Annotations/database_000001.xml").write_text("<annotation>")
    Image.new("RGB", (9, 9)).save(root / "JPEGImages/database_000000.jpg")
    (root / "JPEGImages/database_000002.jpg").write_bytes(b"no image")
    names = ["t_scenes_retrieval", "t_regiondh_scenes_database"]
    assert main(names) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert main([*names, "--images"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert any("queries_000000.jpg: image missing" in line for line in lines)
    assert any("database_000001.xml: not well-formed" in line for line in lines)
    assert any("database_000000.jpg: the image has 9 x 9 pixels" in line for line in lines)
    assert any("database_000002.jpg: cannot be decoded" in line for line in lines)


def test_missing_folder(tmp_path, main, capsys):
    register_scenes(tmp_path / "nowhere", prefix="t_gone_")
    try:
        assert main(["t_gone_scenes_retrieval"]) == 1
    finally:
        for part in ("regiondh_scenes_database", "regiondh_scenes_queries", "scenes_retrieval"):
            DatasetCatalog.remove(f"t_gone_{part}")
            MetadataCatalog.remove(f"t_gone_{part}")
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "nowhere") in line


def test_foreign_loader_that_fails(main, capsys):
    def load():
        raise AssertionError("boom")

    DatasetCatalog.register("t_foreign", load)
    try:
        assert main(["t_foreign"]) == 1
    finally:
        DatasetCatalog.remove("t_foreign")
    assert "t_foreign: cannot be loaded: AssertionError: boom" in capsys.readouterr().err


def test_what_is_worth_knowing_is_no_problem(root, main, capsys):
    path = root / "Annotations/database_000001.xml"
    path.write_text(re.sub(r"<xmin>\d+<", "<xmin>0<", path.read_text(), count=1))
    assert main(["t_scenes_retrieval", "t_regiondh_scenes_database"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    line = f"  note: 1 box reaches beyond the image and is clipped to it; first {path}: object 0"
    assert out.count(line) == 1


def test_turned_images_are_told(root, main, capsys):
    """Where objects are annotated: their boxes may be those of the image before it was turned."""
    path = root / "JPEGImages/database_000001.jpg"
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(path) as image:
        image.save(path, exif=exif)
    assert main(["t_scenes_retrieval", "--images"]) == 0
    out, _ = capsys.readouterr()
    assert out.count(f"  note: {path}: turned by its EXIF orientation 3") == 1
    assert main(["t_scenes_retrieval"]) == 0
    assert "turned" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_told(tmp_path, suffix, orientation):
    path = str(tmp_path / f"a.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    as_seen, as_stored = ((20, 30) if orientation > 4 else (30, 20)), (30, 20)
    note = check._turn_note(path)
    assert note is None if orientation == 1 else f"EXIF orientation {orientation}:" in note
    assert check._image_problem(path, as_seen) is None
    problem = check._image_problem(path, as_stored)
    assert problem is None if orientation <= 4 else "20 x 30 pixels, once turned" in problem


def test_unknown_name(main, capsys):
    with pytest.raises(SystemExit) as error:
        main(["t_nope"])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert "unknown dataset 't_nope'" in message
    assert "voc_2007_retrieval_train_val" in message


def test_without_names(root, main, capsys):
    main([])  # the status depends on what else is in $DETECTRON2_DATASETS
    assert "t_scenes_retrieval: 5 images" in capsys.readouterr().out


def test_prepare_scenes(tmp_path, capsys, load_tool):
    main = load_tool("prepare_scenes").main
    arguments = ["--output", str(tmp_path / "s"), "--num-database", "2", "--num-queries", "1"]
    assert main(arguments) == 0
    assert main([*arguments, "--seed", "5"]) == 1
    assert "other parameters" in capsys.readouterr().err
    for wrong in (["--num-queries", "0"], ["--seed", "-1"], ["--image-size", "9", "99"]):
        with pytest.raises(SystemExit) as error:
            main(["--output", str(tmp_path / "t"), *wrong])
        assert error.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: argument {wrong[0]}: ")
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file/below"):
        assert main(["--output", str(output)]) == 1
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file'}: ")
