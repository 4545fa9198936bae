"""Retrieval datasets: roles, labels, metadata and what is refused."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances

from builders import registered
from regiondh_d2.data.check import is_present
from regiondh_d2.data.datasets.builtin import COCO_RETRIEVAL, VOC_RETRIEVAL
from regiondh_d2.data.retrieval import register_retrieval_dataset
from regiondh_d2.evaluation import COCOBoxEvaluator, RoleFilter

CLASSES = ["cat", "dog", "cow"]


def image(image_id, category_ids=(), **extra):
    return {
        "file_name": f"{image_id}.jpg",
        "image_id": image_id,
        "height": 4,
        "width": 6,
        "annotations": [{"category_id": c, "iscrowd": 0} for c in category_ids],
        **extra,
    }


@pytest.fixture
def register():
    """Registers detection datasets in memory, and removes everything afterwards."""

    def add(name, dicts, classes=CLASSES, **metadata):
        DatasetCatalog.register(name, lambda: dicts)
        if classes is not None:
            metadata["thing_classes"] = classes
        MetadataCatalog.get(name).set(**metadata)

    with registered():
        yield add


def roles(name):
    return {r["image_id"]: r["role"] for r in DatasetCatalog.get(name)}


def test_roles_and_order(register):
    register("t_a", [image(1), image(2)])
    register("t_b", [image(4), image(2), image(3)])
    register("t_c", [image(1)])
    register_retrieval_dataset("t_r", database=("t_a", "t_c"), queries="t_b")
    assert list(roles("t_r").items()) == [
        (1, "database"),  # listed by two database datasets
        (2, "both"),
        (4, "query"),
        (3, "query"),
    ]


def test_a_dataset_against_itself(register):
    register("t_a", [image(1), image(2)])
    register_retrieval_dataset("t_r", database="t_a", queries="t_a")
    assert roles("t_r") == {1: "both", 2: "both"}


def test_one_image_whose_id_is_a_number_here_and_text_there(register):
    register("t_a", [image(1)])
    register("t_b", [image("1")])
    register_retrieval_dataset("t_r", database="t_a", queries="t_b")
    assert roles("t_r") == {1: "both"}


def test_an_image_without_id(register):
    register("t_a", [{"file_name": "a.jpg"}])
    register_retrieval_dataset("t_r", database="t_a", queries="t_a")
    with pytest.raises(ValueError, match="an image of t_a has no image_id or no file_name"):
        DatasetCatalog.get("t_r")


def test_dicts_are_copies(register):
    dicts = [image(1, [2])]
    register("t_a", dicts)
    register_retrieval_dataset("t_r", database="t_a", queries="t_a")
    DatasetCatalog.get("t_r")
    assert dicts == [image(1, [2])]


def test_labels(register):
    crowd = image(2, [1, 0])
    crowd["annotations"][0]["iscrowd"] = 1
    register("t_a", [image(1, [2, 0, 2]), crowd, image(3)])
    register("t_b", [image(4, [1], image_labels=[0, 1], difficult_labels=[0])])
    register_retrieval_dataset("t_r", database="t_a", queries="t_b")
    labels = {r["image_id"]: r["image_labels"] for r in DatasetCatalog.get("t_r")}
    assert labels == {1: [0, 2], 2: [0, 1], 3: [], 4: [0, 1]}
    difficult = [r["difficult_labels"] for r in DatasetCatalog.get("t_r")]
    assert difficult == [[], [], [], [0]]


def test_metadata(register):
    register("t_a", [image(1)], dirname="A", year=2007, split="train")
    register("t_b", [image(2)], dirname="B", year=2012, split="val")
    register_retrieval_dataset("t_r", database="t_a", queries="t_b")
    metadata = MetadataCatalog.get("t_r")
    assert metadata.evaluator_type == "regiondh_retrieval"
    assert metadata.thing_classes == CLASSES
    assert metadata.database_datasets == ("t_a",)
    assert metadata.query_datasets == ("t_b",)
    assert (metadata.dirname, metadata.year, metadata.split) == ("B", 2012, "val")

    register_retrieval_dataset("t_r2", database="t_a", queries=["t_a", "t_b"])
    assert MetadataCatalog.get("t_r2").get("dirname") is None  # not one folder


def test_classes_known_only_after_loading(register):
    def load():
        MetadataCatalog.get("t_lazy").thing_classes = CLASSES
        return [image(1, [2])]

    DatasetCatalog.register("t_lazy", load)
    register_retrieval_dataset("t_r", database="t_lazy", queries="t_lazy")
    assert MetadataCatalog.get("t_r").get("thing_classes") is None
    DatasetCatalog.get("t_r")
    assert MetadataCatalog.get("t_r").thing_classes == CLASSES


def test_repetition(register):
    register("t_a", [image(1)])
    register("t_b", [image(2)])
    register_retrieval_dataset("t_r", database="t_a", queries="t_b")
    register_retrieval_dataset("t_r", database=["t_a"], queries=("t_b",))
    with pytest.raises(ValueError, match="'t_r' is already registered"):
        register_retrieval_dataset("t_r", database="t_b", queries="t_a")


def test_refused_at_registration(register):
    register("t_a", [image(1)])
    register("t_other", [image(2)], classes=["cat", "dog", "sheep"])
    register("t_order", [image(2)], classes=["dog", "cat", "cow"])
    with pytest.raises(ValueError, match="'t_none' is not a registered dataset"):
        register_retrieval_dataset("t_r", database="t_a", queries="t_none")
    with pytest.raises(ValueError, match="queries names no dataset"):
        register_retrieval_dataset("t_r", database="t_a", queries=())
    with pytest.raises(ValueError, match="different thing_classes .*cow, sheep"):
        register_retrieval_dataset("t_r", database="t_a", queries="t_other")
    with pytest.raises(ValueError, match="the order differs"):
        register_retrieval_dataset("t_r", database="t_a", queries="t_order")
    assert "t_r" not in DatasetCatalog.list()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (image(1, [0], file_name="elsewhere.jpg"), r"image_id 1 .* file_name: 1.jpg and elsewhere"),
        (image(1, [1]), r"image_id 1 .* image_labels: \[0\] and \[1\]"),
        (image(2, [3]), r"2.jpg of t_b has class ids \[3\], but there are 3 classes"),
        (image(2, [-1]), r"2.jpg of t_b has class ids \[-1\]"),
    ],
)
def test_refused_at_loading(register, query, message):
    register("t_a", [image(1, [0])])
    register("t_b", [query])
    register_retrieval_dataset("t_r", database="t_a", queries="t_b")
    with pytest.raises(ValueError, match=message):
        DatasetCatalog.get("t_r")


def test_no_classes_anywhere(register):
    register("t_a", [image(1)], classes=None)
    register_retrieval_dataset("t_r", database="t_a", queries="t_a")
    with pytest.raises(ValueError, match="none of t_a has thing_classes"):
        DatasetCatalog.get("t_r")


@pytest.mark.parametrize("side", ["database", "queries"])
def test_a_side_without_images(register, side):
    register("t_a", [image(1)])
    register("t_none", [])
    register_retrieval_dataset("t_r", **{"database": "t_a", "queries": "t_a", side: "t_none"})
    with pytest.raises(ValueError, match="'t_r': its (database|query) side, t_none, holds no imag"):
        DatasetCatalog.get("t_r")


def write_coco(path, first_id, *images):
    """COCO JSON of images, each a list of (category id, XYXY box, iscrowd)."""
    annotations = [
        {
            "id": 100 * index + number,
            "image_id": index,
            "category_id": category_id,
            "bbox": BoxMode.convert(box, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS),
            "area": (box[2] - box[0]) * (box[3] - box[1]),
            "iscrowd": crowd,
        }
        for index, objects in enumerate(images, first_id)
        for number, (category_id, box, crowd) in enumerate(objects, 1)
    ]
    content = {
        "images": [
            {"id": index, "file_name": f"{index}.jpg", "width": 60, "height": 40}
            for index in range(first_id, first_id + len(images))
        ],
        "annotations": annotations,
        "categories": [{"id": 90, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    path.write_text(json.dumps(content))


@pytest.fixture
def coco(register, tmp_path):
    """COCO files of two images each: one with objects, and one empty or with a crowd alone."""
    cat, dog = (2, [1.0, 2.0, 21.0, 32.0], 0), (90, [10.0, 5.0, 50.0, 35.0], 0)
    write_coco(tmp_path / "train.json", 1, [cat, dog], [])
    write_coco(tmp_path / "val.json", 3, [dog], [(2, [0.0, 0.0, 60.0, 40.0], 1)])
    (tmp_path / "images").mkdir()
    for number in range(1, 5):
        (tmp_path / f"images/{number}.jpg").touch()
    for split in ("train", "val"):
        path = str(tmp_path / f"{split}.json")
        register_coco_instances(f"t_{split}", {}, path, str(tmp_path / "images"))
    register_retrieval_dataset("t_coco", database="t_train", queries="t_val")
    return "t_coco"


def test_coco_roles_and_labels(coco, tmp_path):
    """Labels are positions among the categories by id; crowds show their class, too."""
    records = DatasetCatalog.get(coco)
    assert [(r["image_id"], r["role"], r["image_labels"]) for r in records] == [
        (1, "database", [0, 1]),
        (2, "database", []),
        (3, "query", [1]),
        (4, "query", [0]),
    ]
    assert [r["difficult_labels"] for r in records] == [[]] * 4
    assert records[0]["file_name"] == str(tmp_path / "images/1.jpg")
    assert MetadataCatalog.get(coco).thing_classes == ["cat", "dog"]


@pytest.mark.parametrize(("found", "average_precision"), [([1], 100.0), ([0], 0.0)])
def test_coco_box_ap_of_the_queries(coco, found, average_precision):
    """The one object of the queries, found as its class or as another; the database is left out."""
    evaluator = RoleFilter("query", COCOBoxEvaluator("t_val"))
    evaluator.reset()
    for record in DatasetCatalog.get(coco):
        boxes = Boxes(torch.tensor([[10.0, 5.0, 50.0, 35.0]]))
        instances = Instances((40, 60), pred_boxes=boxes, scores=torch.tensor([0.9]))
        instances.pred_classes = torch.tensor(found)
        if record["image_id"] != 4:  # a crowd would swallow it
            evaluator.process([record], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(average_precision)


def test_coco_files_that_number_their_images_alike(coco, tmp_path):
    write_coco(tmp_path / "val.json", 2, [(90, [1.0, 1.0, 9.0, 9.0], 0)])
    with pytest.raises(ValueError, match=r"image_id 2 of t_val occurs twice .*; ids must differ"):
        DatasetCatalog.get(coco)


def test_coco_is_here_where_its_lists_are(coco, tmp_path):
    assert is_present(coco)
    (tmp_path / "train.json").unlink()
    assert not is_present(coco)


def test_over_a_dataset_of_detectron2():
    name = "voc_2007_val"
    try:
        register_retrieval_dataset("t_builtin", database="voc_2007_train", queries=name)
        metadata = MetadataCatalog.get("t_builtin")
        assert metadata.split == "val"
        assert len(metadata.thing_classes) == 20
    finally:
        DatasetCatalog.remove("t_builtin")
        MetadataCatalog.remove("t_builtin")


@pytest.mark.parametrize("row", [*VOC_RETRIEVAL, *COCO_RETRIEVAL], ids=lambda row: row[0])
def test_shipped_names(row):
    name, database, queries = row
    metadata = MetadataCatalog.get(name)
    assert name in DatasetCatalog.list()
    assert (metadata.database_datasets, metadata.query_datasets) == ((database,), (queries,))
    assert metadata.thing_classes == MetadataCatalog.get(queries).thing_classes
    try:
        found = roles(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert set(found.values()) == {"database", "query"}
    assert list(found.values()).count("query") == len(DatasetCatalog.get(queries))
