"""The strict COCO reader: what it returns, one line for every defect, and box AP on top."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from builders import registered
from regiondh_d2.data import register_coco
from regiondh_d2.data.catalog import adopt, find_source, load_dataset, registered_names
from regiondh_d2.data.check import check_dataset
from regiondh_d2.data.coco import COCOFormatError, COCOSource
from regiondh_d2.data.training import training_records
from regiondh_d2.evaluation import COCOBoxEvaluator
from regiondh_d2.utils.errors import RegionDHError

FILES = ["a.jpg", "b.jpg", "c.jpg"]


@pytest.fixture
def content():
    """Three images of 60 x 40 pixels, of which the last has no object; ids with a gap."""
    return {
        "images": [
            {"id": 10 * i, "file_name": name, "width": 60, "height": 40}
            for i, name in enumerate(FILES)
        ],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 2, 20, 30], "area": 600},
            {"id": 2, "image_id": 10, "category_id": 3, "bbox": [10.5, 5, 40, 30.25]},
            {"id": 3, "image_id": 10, "category_id": 7, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in FILES:
        (tmp_path / "images" / name).touch()
    return tmp_path


@pytest.fixture
def write(folder, content):
    """Writes the content, or what else is given, and registers it in either way."""

    def write(value=None, name="t_coco", ours=True, metadata=None):
        path = folder / f"{name}.json"
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            path.write_text(json.dumps(content if value is None else value))
        if ours:
            register_coco(name, path, folder / "images")
        else:
            register_coco_instances(name, metadata or {}, str(path), str(folder / "images"))
        return path

    with registered():
        yield write


def test_dicts_and_classes(write, folder):
    write()
    first, second, third = DatasetCatalog.get("t_coco")
    assert first == {
        "file_name": str(folder / "images/a.jpg"),
        "height": 40,
        "width": 60,
        "image_id": 0,
        "annotations": [
            {
                "iscrowd": 0,
                "bbox": [1, 2, 20, 30],
                "category_id": 1,
                "bbox_mode": BoxMode.XYWH_ABS,
                "area": 600,
            }
        ],
    }
    assert [(a["category_id"], a["iscrowd"]) for a in second["annotations"]] == [(0, 0), (1, 1)]
    assert second["annotations"][0]["area"] == 40 * 30.25
    assert (third["image_id"], third["annotations"]) == (20, [])
    metadata = MetadataCatalog.get("t_coco")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.evaluator_type == "coco"


def test_agrees_with_detectron2(write, content, folder):
    polygon = [1.0, 2.0, 21.0, 2.0, 21.0, 32.0]
    content["annotations"][0]["segmentation"] = [polygon, [1.0, 2.0]]
    content["annotations"][1]["keypoints"] = [3, 4, 2, 0, 0, 0]
    mask = {"counts": [30, 9, 2361], "size": [40, 60]}
    content["annotations"][2]["segmentation"] = mask
    path = write(ours=False)
    theirs = load_coco_json(str(path), str(folder / "images"), "t_other")
    MetadataCatalog.remove("t_other")
    ours = load_dataset("t_coco")
    for record in ours:
        for annotation in record["annotations"]:
            del annotation["area"]
    for record in theirs:
        for annotation in record["annotations"]:
            annotation.setdefault("iscrowd", 0)
    assert ours == theirs


def test_a_file_that_is_not_there(write, folder):
    write().unlink()
    with pytest.raises(FileNotFoundError, match=r"t_coco\.json: no such file"):
        DatasetCatalog.get("t_coco")
    assert len(check_dataset("t_coco").problems) == 1


def change(content, table, row, **fields):
    """Sets fields, or removes those that are None."""
    for key, value in fields.items():
        if value is None:
            del content[table][row][key]
        else:
            content[table][row][key] = value


image, annotation, category = (
    partial(change, table=table) for table in ("images", "annotations", "categories")
)
FIRST = r"annotations\[0\] \(id 1\) of image \S*a\.jpg: "


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        (partial(annotation, row=0, bbox=[1, 2, math.nan, 4]), FIRST + "bbox .* not finite"),
        (partial(annotation, row=0, bbox=[1, 2, math.inf, 4]), FIRST + "bbox .* not finite"),
        (partial(annotation, row=0, bbox=[1, 2, -3, 4]), FIRST + "bbox .* not above 0"),
        (partial(annotation, row=0, bbox=[1, 2, 3, 0]), FIRST + "bbox .* not above 0"),
        (partial(annotation, row=0, bbox=["1", "2", "3", "4"]), FIRST + "bbox must be numbers"),
        (partial(annotation, row=0, bbox=[1, 2, True, 4]), FIRST + "bbox must be numbers"),
        (partial(annotation, row=0, bbox=[1, 2, 10**400, 4]), FIRST + "bbox must be numbers"),
        (partial(annotation, row=0, bbox=[]), FIRST + "bbox must be four numbers"),
        (partial(annotation, row=0, bbox=[1, 2, 3]), FIRST + "bbox must be four numbers"),
        (partial(annotation, row=0, bbox="1,2,3,4"), FIRST + "bbox must be four numbers"),
        (partial(annotation, row=0, bbox=[60, 2, 3, 4]), FIRST + "bbox .* outside .* 60 x 40"),
        (partial(annotation, row=0, bbox=[-9, 2, 9, 4]), FIRST + "bbox .* outside .* 60 x 40"),
        (partial(annotation, row=0, bbox=None), FIRST + "bbox is missing"),
        (partial(annotation, row=0, category_id=None), FIRST + "category_id is missing"),
        (partial(annotation, row=0, category_id=5), FIRST + "category_id 5 .* known: 3, 7"),
        (partial(annotation, row=0, category_id=[3]), FIRST + r"category_id \[3\] is not in categ"),
        (partial(annotation, row=0, iscrowd=2), FIRST + "iscrowd must be 0 or 1"),
        (partial(annotation, row=0, ignore=1), FIRST + "ignore isn't supported"),
        (
            partial(annotation, row=0, segmentation={"counts": [1], "size": [40]}),
            FIRST + "segmentation .* is no mask",
        ),
        (
            partial(annotation, row=0, segmentation={"counts": [-1], "size": [40, 60]}),
            FIRST + "segmentation .* is no mask",
        ),
        (partial(annotation, row=0, area="600"), FIRST + "area must be a number"),
        (partial(annotation, row=0, area=math.nan), FIRST + "area must be a number"),
        (
            partial(annotation, row=0, id=None),
            r"annotations\[0\] of image \S*a\.jpg: id is missing",
        ),
        (partial(annotation, row=0, id=[1]), r"annotations\[0\] of image \S*a\.jpg: id must be"),
        (partial(annotation, row=1, id=1), r"annotations\[1\] .*b\.jpg: another annotation has"),
        (partial(annotation, row=0, image_id=None), r"\[0\] \(id 1\): image_id is missing"),
        (partial(annotation, row=0, image_id=4), r"\[0\] \(id 1\): image_id 4 is not in images"),
        (partial(image, row=1, id=None), r"images\[1\] \(b\.jpg\): id is missing"),
        (partial(image, row=1, id=0), r"images\[1\] \(b\.jpg\): id 0 is also the id of \S*a\.jpg"),
        (
            partial(image, row=1, id="0"),
            r"images\[1\] \(b\.jpg\): id 0 is also the id of \S*a\.jpg",
        ),
        (partial(image, row=1, id=1.5), r"images\[1\] \(b\.jpg\): id must be a number or text"),
        (partial(image, row=1, width=None), r"images\[1\] \(b\.jpg\): width is missing"),
        (partial(image, row=1, height="40"), r"images\[1\] \(b\.jpg\): height must be a number"),
        (partial(image, row=1, height=0), r"images\[1\] \(b\.jpg\): height must be a number"),
        (partial(image, row=1, file_name=None), r"images\[1\]: file_name is missing"),
        (partial(image, row=1, file_name=3), r"images\[1\]: file_name must be text"),
        (partial(image, row=1, file_name="gone.jpg"), r"\(gone\.jpg\): file_name: there is no"),
        (partial(image, row=1, file_name="a.jpg"), r"file_name: image id 0 has the same file"),
        (partial(image, row=1, file_name="./a.jpg"), r"file_name: image id 0 has the same file"),
        (partial(category, row=1, id=None), r"categories\[1\] \(cat\): id is missing"),
        (partial(category, row=1, id=7), r"categories\[1\] \(cat\): id 7 is also the id of dog"),
        (partial(category, row=1, id="cat"), r"categories\[1\] \(cat\): id must be a whole"),
        (partial(category, row=1, name="dog"), r"categories\[1\] \(dog\): another category has"),
        (partial(category, row=1, name=None), r"categories\[1\]: name must be text"),
        (
            partial(category, row=1, name="c\ud83d"),
            r"categories\[1\] \(c\S+\): name .* half a letter",
        ),
    ],
)
@pytest.mark.parametrize("ours", [True, False], ids=["ours", "detectron2"])
def test_a_defect_is_one_line(write, content, defect, message, ours):
    """Where the dataset is loaded, and by the checker.

    The checker finds nothing else, but for the objects of an id that the defect took away.
    """
    defect(content)
    path = write(ours=ours)
    with pytest.raises(COCOFormatError, match=message) as error:
        load_dataset("t_coco")
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    first, *others = check_dataset("t_coco").problems
    assert first == str(error.value)
    assert all("is not in images" in line or "is not in categories" in line for line in others)
    assert not others or "id" in defect.keywords


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "the file is empty"),
        (b"  \n", "the file is empty"),
        (b'{"images": [', r"not complete JSON \(line 1, column 13"),
        (b'{"images": "\xe9"}', "byte 12 isn't text in utf-8"),
        (b"[" * 100_000, "not COCO format"),
        ([], r"not COCO format: expected an object .*, got \[\]"),
        ("images", "not COCO format: expected an object"),
        ({"images": [1], "categories": [1]}, "annotations is missing"),
        ({"annotations": [], "categories": [1]}, "images is missing"),
        ({"images": [1], "annotations": []}, "categories is missing"),
        ({"images": [1], "annotations": {}, "categories": [1]}, "annotations must be a list"),
        ({"images": [], "annotations": [], "categories": [1]}, "images is an empty list"),
        ({"images": [1], "annotations": [], "categories": [1]}, r"categories\[0\]: expected an"),
    ],
)
def test_a_file_of_another_form(write, value, message):
    path = write(value)
    with pytest.raises(RegionDHError, match=message) as error:
        DatasetCatalog.get("t_coco")
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_the_checker_lists_all_problems(write, content):
    annotation(content, row=0, bbox=[1, 2, -3, 4])
    annotation(content, row=2, category_id=99)
    image(content, row=2, file_name="gone.jpg")
    write(ours=False)
    report = check_dataset("t_coco")
    assert len(report.problems) == 3
    assert (report.images, report.objects) == (2, 1)


def mixed(content):
    for row in content["annotations"]:
        row["image_id"] = str(row["image_id"])


def text(content):
    for row in content["images"]:
        row["id"] = f"no. {row['id']}"
    for row in content["annotations"]:
        row["image_id"] = f"no. {row['image_id']}"


def only_some_text(content):
    image(content, row=0, id="first")
    annotation(content, row=0, image_id="first")


TOOLS = {
    "as it is": lambda content: None,
    "null segmentation": partial(annotation, row=0, segmentation="null"),
    "supercategory": lambda c: c["categories"].append(
        {"id": 0, "name": "pets", "supercategory": "none"}
    ),
    "text for numbers": mixed,
    "ids of text": text,
    "some ids of text": only_some_text,
    "ids of fractions": partial(image, row=1, id=10.0),
    "category ids as text": partial(annotation, row=0, category_id="7"),
    "backslash": partial(image, row=1, file_name="..\\images\\b.jpg"),
    "a path of Windows": partial(image, row=1, file_name="D:\\set\\b.jpg"),
    "a folder in front": partial(image, row=1, file_name="images/b.jpg"),
    "an address": partial(image, row=1, file_name="https://host/set/%62.jpg?download=1"),
    "an address of a folder": partial(image, row=1, file_name="/data/local-files/?d=set/b.jpg"),
    "large letters": partial(image, row=1, file_name="B.JPG"),
    "no area": partial(annotation, row=0, area=None),
    "more fields": lambda c: c.update(info={}, licenses=[], type="instances"),
}


def found(category_id, box):
    instances = Instances((40, 60), pred_boxes=Boxes(torch.tensor([box])))
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([category_id])
    return {"instances": instances}


def name_of(record):
    return Path(record["file_name"]).name.lower()


def box_ap(evaluator, records, outputs):
    evaluator.reset()
    for record, output in zip(records, outputs, strict=True):
        evaluator.process([record], [output])
    return evaluator.evaluate()["bbox"]


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "detectron2"])
@pytest.mark.parametrize("tool", TOOLS)
def test_what_tools_write_is_read_and_evaluated(write, content, folder, tool, ours):
    """Two objects, one found exactly and one as another class, and a crowd that doesn't count."""
    TOOLS[tool](content)
    if tool == "null segmentation":
        content["annotations"][0]["segmentation"] = None
    write(ours=ours)
    records = load_dataset("t_coco")
    assert check_dataset("t_coco").problems == ()
    assert [len(r["annotations"]) for r in sorted(records, key=name_of)] == [
        1, 2, 0,
    ]  # fmt: skip
    names = MetadataCatalog.get("t_coco").thing_classes
    cat, dog = names.index("cat"), names.index("dog")
    outputs = {"a.jpg": found(dog, [1.0, 2.0, 21.0, 32.0]), "b.jpg": found(dog, [0.0, 0, 3, 3])}
    outputs["c.jpg"] = found(11, [0.0, 0, 9, 9])  # a class that only the network knows
    given = [outputs[name_of(r)] for r in records]
    evaluator = COCOBoxEvaluator("t_coco", folder / "out")
    result = box_ap(evaluator, records, given)
    assert result["AP-dog"] == pytest.approx(100)
    assert result["AP-cat"] == 0
    assert result["AP"] == pytest.approx(50)
    # What is left for other programs has the file's own ids.
    written = json.loads((folder / "out/coco_instances_results.json").read_text())
    assert {row["category_id"] for row in written} == {7}
    assert {row["image_id"] for row in written} <= {
        str(r["image_id"]) if tool == "some ids of text" else r["image_id"] for r in records
    }
    assert cat != dog


def test_box_ap_is_that_of_detectron2(write, content, folder):
    """On random boxes, where the plain file can be read by both."""
    rng = torch.Generator().manual_seed(0)
    for number in range(12):
        x, y, w, h = (torch.rand(4, generator=rng) * torch.tensor([30, 20, 25, 18]) + 2).tolist()
        content["annotations"].append(
            {
                "id": 10 + number,
                "image_id": 10 * (number % 3),
                "category_id": (3, 7)[number % 2],
                "bbox": [x, y, w, h],
                "area": 0.7 * w * h,
                "iscrowd": 0,
            }
        )
    for row in content["annotations"]:
        row.setdefault("iscrowd", 0)
        row.setdefault("area", row["bbox"][2] * row["bbox"][3])
    path = write()
    records = load_dataset("t_coco")
    outputs = []
    for record in records:
        rows = record["annotations"]
        boxes = torch.tensor([BoxMode.convert(list(map(float, a["bbox"])), 1, 0) for a in rows])
        instances = Instances(
            (40, 60), pred_boxes=Boxes(boxes + torch.randn(boxes.shape, generator=rng))
        )
        instances.scores = torch.rand(len(rows), generator=rng)
        instances.pred_classes = torch.tensor([a["category_id"] for a in rows])
        outputs.append({"instances": instances})
    register_coco_instances("t_plain", {}, str(path), str(folder / "images"))
    DatasetCatalog.get("t_plain")
    theirs = box_ap(COCOEvaluator("t_plain", use_fast_impl=False), records, outputs)
    ours = box_ap(COCOBoxEvaluator("t_coco"), records, outputs)
    assert 0 < ours["AP"] < 100
    assert ours == pytest.approx(theirs, nan_ok=True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_any_encoding(write, content, encoding):
    category(content, row=0, name="kätzchen")
    text = json.dumps(content, ensure_ascii=False)
    write(text.encode(encoding))
    load_dataset("t_coco")
    assert MetadataCatalog.get("t_coco").thing_classes == ["cat", "kätzchen"]


def test_boxes_beyond_the_image_are_clipped_and_counted(write, content):
    annotation(content, row=0, bbox=[-2, 3, 20, 80])
    annotation(content, row=1, bbox=[50, 3, 10.04, 8])
    path = write()
    report = check_dataset("t_coco")
    assert report.problems == ()
    assert len(report.notes) == 1
    assert report.notes[0].startswith(
        f"{path}: 1 box reaches beyond the image and is clipped to it; first annotations[0] (id 1)"
    )
    boxes = [a["bbox"] for r in load_dataset("t_coco") for a in r["annotations"]]
    assert boxes == [[0, 3, 18, 37], [50, 3, 10.04, 8], [0, 0, 60, 40]]


@pytest.mark.parametrize(("name", "heading"), [("pets", "none"), ("_background_", None)])
def test_a_heading_is_a_class_and_told(write, content, name, heading):
    content["categories"].append({"id": 0, "name": name, "supercategory": heading})
    write()
    (note,) = check_dataset("t_coco").notes
    assert f"category 0 ({name}) has no object; it is a class all the same" in note


def test_files_that_everybody_has_lose_their_bad_objects_alone(content, folder):
    """COCO's own training file has boxes without height, and nobody is asked to edit it."""
    annotation(content, row=1, bbox=[296.65, 3, 1.03, 0.0])
    path = folder / "t.json"
    path.write_text(json.dumps(content))
    source = COCOSource("t_published", str(path), str(folder / "images"), published=True)
    problems, notes = [], []
    records = source.load(problems, notes)
    MetadataCatalog.remove("t_published")
    assert [len(r["annotations"]) for r in records] == [1, 1, 0]
    assert problems == []
    assert len(notes) == 1
    assert "1 objects with a defect are left out; first annotations[1] (id 2)" in notes[0]


def test_classes_that_the_registration_says_otherwise(write):
    write(ours=False, metadata={"thing_classes": ["dog", "cat"]})
    with pytest.raises(COCOFormatError, match=r"categories are \['cat', 'dog'\] .* thing_classes"):
        load_dataset("t_coco")


def test_registration(write, folder):
    path = write()
    register_coco("t_coco", str(path), str(folder / "images"))  # the same: nothing happens
    assert "t_coco" in registered_names()
    with pytest.raises(RegionDHError, match="'t_coco' is already registered"):
        register_coco("t_coco", path, folder)


def test_adopting_is_for_the_registrations_of_detectron2_alone(write, content, folder):
    write(ours=False)
    adopt("t_coco")
    adopt("t_coco")
    assert isinstance(find_source("t_coco"), COCOSource)
    assert "t_coco" not in registered_names()
    DatasetCatalog.register("t_foreign", list)
    MetadataCatalog.get("t_foreign").set(json_file="x", image_root="y", evaluator_type="coco")
    adopt("t_foreign")
    assert find_source("t_foreign") is None
    adopt("t_unknown")
    # A name that is given to other code afterwards is no longer ours.
    DatasetCatalog.remove("t_coco")
    DatasetCatalog.register("t_coco", list)
    assert find_source("t_coco") is None


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "detectron2"])
def test_training_refuses_a_box_that_is_none(write, content, ours):
    annotation(content, row=0, bbox=[math.nan] * 4)
    write(ours=ours)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("t_coco",)
    with pytest.raises(COCOFormatError, match=FIRST + "bbox"):
        training_records(cfg)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bbox": [math.nan, 1, 2, 3]}, r"a\.jpg: annotations\[0\]: bbox .* is no box inside"),
        ({"bbox": [5, 1, 5, 3]}, "is no box inside the image of 60 x 40"),
        ({"bbox": [70, 1, 80, 3]}, "is no box inside the image of 60 x 40"),
        ({"bbox": [5, 1, -2, 3], "bbox_mode": BoxMode.XYWH_ABS}, "is no box inside"),
        ({"bbox": ["1", "2", "3", "4"]}, r"a\.jpg: annotations\[0\]: bbox must be four numbers"),
        ({"bbox": None}, r"a\.jpg: annotations\[0\]: bbox is missing"),
        ({"category_id": None}, r"annotations\[0\]: category_id is missing"),
    ],
)
def test_dicts_of_other_code_are_checked_before_training(write, fields, message):
    row = {"bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, **fields}
    record = {"file_name": "a.jpg", "image_id": 1, "height": 40, "width": 60, "annotations": [row]}
    DatasetCatalog.register("t_foreign", lambda: [record])
    MetadataCatalog.get("t_foreign").set(thing_classes=["cat"])
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("t_foreign",)
    with pytest.raises(RegionDHError, match=message):
        training_records(cfg)
    (problem,) = check_dataset("t_foreign").problems
    assert problem.startswith("a.jpg: ")
