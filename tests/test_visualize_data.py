"""The tool that draws datasets and training images, from end to end."""

from pathlib import Path

import pytest
from PIL import Image

from builders import registered_scenes

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml")


@pytest.fixture
def tool(load_tool):
    return load_tool("visualize_data")


@pytest.fixture
def scenes(tmp_path):
    """Five scenes, registered with the prefix v_."""
    with registered_scenes(tmp_path / "s", "v_", database=3, queries=2):
        yield


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
        ["--dataset", "a", "--output-dir", ""],
    ],
)
def test_wrong_arguments_exit_2(tool, arguments, capsys):
    with pytest.raises(SystemExit) as error:
        tool.main(arguments)
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
