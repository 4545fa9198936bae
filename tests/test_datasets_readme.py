"""The examples of datasets/README.md do what it says, on a few drawn images."""

import json
import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from builders import registered
from commands import load_command, subcommand_of
from regiondh_cli.main import subparsers_of
from regiondh_d2.data.datasets.scenes import generate_scenes
from regiondh_d2.data.voc import load_voc
from regiondh_d2.engine.user_code import VARIABLE
from regiondh_d2.retrieval.code_store import read_codes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "datasets/README.md").read_text()
COCO, VOC = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# Seconds instead of hours, in place of the command's own base config.
SMALL = f"""
_BASE_: {ROOT}/configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml
MODEL: {{DEVICE: cpu, WEIGHTS: ""}}
SOLVER: {{MAX_ITER: 1}}
"""


@pytest.fixture(autouse=True)
def as_before(plain_loggers):
    """Removes what an example registers; loggers stay as they are for the tests that read logs."""
    with registered():
        yield


@pytest.fixture
def zoo(tmp_path):
    """A folder in VOC layout: scenes of shapes that pass for lions and zebras."""
    root = generate_scenes(tmp_path / "zoo", num_database=6, num_queries=3)
    for path in (root / "Annotations").iterdir():
        shapes = ET.parse(path)
        for index, name in enumerate(shapes.iterfind("object/name")):
            name.text = ["lion", "zebra"][index % 2]
        shapes.write(path)
    lists = root / "ImageSets/Main"
    (lists / "database.txt").rename(lists / "train.txt")
    (lists / "queries.txt").rename(lists / "val.txt")
    return root


def write_coco(root):
    """The same as COCO JSON, with category ids that have a gap."""
    (root / "JPEGImages").rename(root / "images")
    (root / "JPEGImages").symlink_to(root / "images")  # for load_voc
    first_id = 1
    for split in ("train", "val"):
        records = load_voc(root, split, ["lion", "zebra"])
        images, objects = [], []
        for image_id, record in enumerate(records, first_id):
            size = {"width": record["width"], "height": record["height"]}
            images.append({"id": image_id, "file_name": Path(record["file_name"]).name, **size})
            for annotation in record["annotations"]:
                x0, y0, x1, y1 = annotation["bbox"]
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "image_id": image_id,
                        "category_id": [3, 7][annotation["category_id"]],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                    }
                )
        first_id += len(records)
        categories = [{"id": 7, "name": "zebra"}, {"id": 3, "name": "lion"}]
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("example", [COCO, VOC], ids=["coco", "voc"])
def test_an_own_dataset_is_checked_trained_and_searched(
    zoo, tmp_path, monkeypatch, load_tool, capsys, example
):
    assert len(example.strip().splitlines()) - example.count("import") - 1 == 3  # as promised
    if example is COCO:
        write_coco(zoo)
    (tmp_path / "zoo.py").write_text(example.replace("/data/zoo", str(zoo)))
    (tmp_path / "small.yaml").write_text(SMALL)
    block = next(b for b in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if "zoo" in b)
    check, train = map(shlex.split, block.replace("\\\n", " ").strip().splitlines())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "")

    assert check[:2] == ["python", "datasets/check_datasets.py"]
    load_tool("check_datasets").main(check[2:])
    assert "zoo_retrieval: 9 images" in capsys.readouterr().out

    assert train[:2] == ["python", "tools/train_net.py"]
    config = train.index("--config-file") + 1
    assert (ROOT / train[config]).is_file()
    train[config] = str(tmp_path / "small.yaml")
    command = load_tool("train_net")
    command.run(command.build_parser().parse_args(train[2:]))

    folder = tmp_path / "output/zoo/inference/zoo_retrieval"
    database, queries = (read_codes(folder / f"{side}.h5") for side in ("database", "query"))
    assert (len(database), len(queries)) == (6, 3)
    assert database.class_names == ["lion", "zebra"]
    assert (tmp_path / "output/zoo/model_final.pth").is_file()


def help_of(name):
    """The help of a command and of its subcommands."""
    parser = load_command(name).build_parser()
    return "".join(p.format_help() for p in (parser, *subparsers_of(parser).values()))


def test_the_options_are_told_where_they_are():
    """The commands that the page names have the option, and no others of these folders have it."""
    paragraph = next(p for p in README.split("\n\n") if p.startswith("**`--import"))
    named = set(re.findall(r"`(\w+)\.py(?: \w+)?`", paragraph))
    files = [*(ROOT / "tools").glob("*.py"), *(ROOT / "datasets").glob("*.py")]
    taking = {f.stem for f in files if subcommand_of(f.stem) and "--import" in help_of(f.stem)}
    taking |= {f.stem for f in files if "add_import_option(" in f.read_text()}
    assert named == taking
