"""Evaluators of box AP: against cases counted by hand, and Detectron2's own for PASCAL VOC.

Those of the evaluator of COCO are in ``test_coco.py``, with its annotations.
"""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from regiondh_d2.evaluation import RoleFilter, VOCBoxEvaluator

CLASSES = ["cat", "dog", "horse"]


def test_role_filter():
    class Recorder(DatasetEvaluator):
        def reset(self):
            self.seen = []

        def process(self, inputs, outputs):
            self.seen += zip(inputs, outputs, strict=True)

        def evaluate(self):
            return self.seen

    roles = ["query", "database", "both", "database", "query"]
    inputs = [{"image_id": i, "role": role} for i, role in enumerate(roles)]
    outputs = [{"output": i} for i in range(len(roles))]
    for role, expected in (("query", [0, 2, 4]), ("database", [1, 2, 3])):
        evaluator = RoleFilter(role, Recorder())
        evaluator.reset()
        for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
            evaluator.process(inputs[rows], outputs[rows])
        assert evaluator.evaluate() == [(inputs[i], outputs[i]) for i in expected]
    with pytest.raises(ValueError, match="role must be"):
        RoleFilter("both", Recorder())


@pytest.fixture
def boxes():
    """Three images: classes 0 and 1 with boxes (one has decimals, one is difficult), 2 without."""

    def annotation(class_id, *bbox, difficult=False):
        return {
            "category_id": class_id,
            "bbox": list(bbox),
            "bbox_mode": BoxMode.XYXY_ABS,
            "difficult": difficult,
        }

    dicts = [
        {"image_id": "a", "annotations": [annotation(0, 10, 10, 50, 50)]},
        {
            "image_id": "b",
            "annotations": [
                annotation(1, 9.7, 20.2, 60.4, 80.1),
                annotation(1, 100, 100, 150, 150, difficult=True),
            ],
        },
        {"image_id": "c", "annotations": []},
    ]
    name = "fake_boxes_for_evaluator_tests"
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=CLASSES, year=2012)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def box_ap(name, found):
    """``found``: image id to rows (class, score, x0, y0, x1, y1)."""
    return run(VOCBoxEvaluator(name), found)


def run(evaluator, found):
    evaluator.reset()
    for image_id, rows in found.items():
        table = torch.tensor(np.array(rows), dtype=torch.float32).reshape(-1, 6)
        instances = Instances(
            (200, 200),
            pred_boxes=Boxes(table[:, 2:]),
            scores=table[:, 1],
            pred_classes=table[:, 0].long(),
        )
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def test_box_ap(boxes):
    perfect = {"a": [(0, 0.9, 10, 10, 50, 50)], "b": [(1, 0.8, 10, 20, 60, 80)], "c": []}
    # Class 2 has no true box: it does not pull the mean down, not even when it is detected.
    assert box_ap(boxes, perfect | {"c": [(2, 0.9, 0, 0, 9, 9)]}) == {
        "AP": 100,
        "AP50": 100,
        "AP75": 100,
    }
    # A difficult object counts neither way.
    perfect["b"].append((1, 0.9, 100, 100, 150, 150))
    assert box_ap(boxes, perfect)["AP"] == 100
    # A confident false alarm halves class 1; a class without detections is a zero.
    assert box_ap(boxes, {"c": [(1, 1.0, 0, 0, 9, 9)], "b": perfect["b"]})["AP50"] == 25
    # An overlap of 0.64 counts at 0.5, not at 0.75.
    loose = box_ap(boxes, {"a": [(0, 0.9, 10, 10, 42, 50)]})
    assert loose["AP50"] == 50
    loose = box_ap(boxes, {"a": [(0, 0.9, 10, 10, 36, 50)]})
    assert (loose["AP50"], loose["AP75"]) == (50, 0)


@pytest.mark.parametrize(
    "names",
    [
        ["my photo (0)", " b ", "c  c"],
        ["day1/a", "day2/a", "../a"],
        ["a", "b", "c" * 250],
        ["é{}", "猫", "\udce9 x"],
        [1, "2", 30],
        ["a%20b", "a b", "a+b"],
    ],
)
def test_box_ap_of_any_ids_and_class_names(boxes, names):
    """Ids and names are keys and nothing else."""
    rows = {
        0: [(0, 0.9, 10, 10, 42, 50), (0, 0.3, 100, 100, 120, 120)],
        1: [(1, 0.8, 10, 20, 60, 80)],
        2: [(1, 0.9, 0, 0, 9, 9)],
    }
    plain = box_ap(boxes, {"abc"[i]: found for i, found in rows.items()})
    for entry, name in zip(DatasetCatalog.get(boxes), names, strict=True):
        entry["image_id"] = name
    MetadataCatalog.get(boxes).__dict__["thing_classes"] = [" big cat", "<dog> {}", "naïve"]
    assert box_ap(boxes, {names[i]: found for i, found in rows.items()}) == plain
    assert 0 < plain["AP50"] < 100


def test_box_ap_uses_eleven_points_in_2007_only(boxes):
    found = {"c": [(0, 1.0, 0, 0, 9, 9)], "a": [(0, 0.9, 10, 10, 50, 50)]}
    area = box_ap(boxes, found)["AP50"]
    MetadataCatalog.get(boxes).__dict__["year"] = 2007
    assert box_ap(boxes, found)["AP50"] == pytest.approx(area)
    # Detected one of two: recall stops at a half, 6 of 11 points against half of the area.
    DatasetCatalog.get(boxes)[2]["annotations"].append(
        {"category_id": 0, "bbox": [100, 100, 140, 140], "bbox_mode": BoxMode.XYXY_ABS}
    )
    found = {"a": [(0, 0.9, 10, 10, 50, 50)]}
    assert box_ap(boxes, found)["AP50"] == pytest.approx(100 * 6 / 11 / 2)
    MetadataCatalog.get(boxes).__dict__["year"] = 2012
    assert box_ap(boxes, found)["AP50"] == pytest.approx(25)


def write_voc(folder, dicts):
    """Annotations as PASCAL VOC's, which Detectron2's evaluator reads."""
    (folder / "Annotations").mkdir()
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/val.txt").write_text("\n".join(d["image_id"] for d in dicts))
    for entry in dicts:
        root = ElementTree.Element("annotation")
        for annotation in entry["annotations"]:
            element = ElementTree.SubElement(root, "object")
            x0, y0, x1, y1 = annotation["bbox"]
            for tag, value in (
                ("name", CLASSES[annotation["category_id"]]),
                ("pose", ""),
                ("truncated", "0"),
                ("difficult", str(int(annotation["difficult"]))),
            ):
                ElementTree.SubElement(element, tag).text = value
            box = ElementTree.SubElement(element, "bndbox")
            corners = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
            for tag, value in corners.items():
                ElementTree.SubElement(box, tag).text = str(value)
        ElementTree.ElementTree(root).write(folder / f"Annotations/{entry['image_id']}.xml")


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize("seed", range(6))
def test_box_ap_is_that_of_detectron2(tmp_path, seed, year):
    """Objects close to each other, many equal scores, and overlaps that equal a threshold."""
    rng = np.random.default_rng(seed)
    dicts, found = [], {}
    for i in range(12):
        corners = rng.integers(0, 40, (int(rng.integers(1, 6)), 2))
        true = np.hstack([corners, corners + rng.choice([9, 10, 20], corners.shape)])
        dicts.append(
            {
                "image_id": f"{i:03d}",
                "annotations": [
                    {
                        "category_id": int(rng.integers(0, 3)),
                        "bbox": box.tolist(),
                        "bbox_mode": BoxMode.XYXY_ABS,
                        "difficult": bool(rng.random() < 0.2),
                    }
                    for box in true
                ],
            }
        )
        # Each object is found by its class, near its place, and by any class twice.
        boxes = np.tile(true, (3, 1)) + rng.choice([0, 0, 0, 0, 1, 2.27, 5], (3 * len(true), 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        classes = [annotation["category_id"] for annotation in dicts[-1]["annotations"]]
        classes += rng.integers(0, 3, 2 * len(true)).tolist()
        scores = rng.choice([0.1, 0.5, 0.5004, 0.7, 0.91], len(boxes))
        found[f"{i:03d}"] = np.column_stack((classes, scores, boxes))
    write_voc(tmp_path, dicts)
    name = "fake_voc_for_evaluator_tests"
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(
        thing_classes=CLASSES, year=year, dirname=str(tmp_path), split="val"
    )
    try:
        theirs = run(PascalVOCDetectionEvaluator(name), found)
        ours = run(VOCBoxEvaluator(name), found)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert 0 < theirs["AP75"] < theirs["AP50"] < 95
    assert ours == pytest.approx(theirs, rel=1e-14)
