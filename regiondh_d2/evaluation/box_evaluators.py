"""Evaluators of box AP, on annotations as the dataset's reader returns them."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_ap
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..data.catalog import load_dataset
from ..utils.errors import RegionDHError
from ..utils.file_io import write_json

__all__ = ["COCOBoxEvaluator", "RoleFilter", "VOCBoxEvaluator", "of_known_classes"]


def of_known_classes(output: dict, count: int) -> dict:
    """An output without detections of classes that the dataset lacks.

    A network may know more classes than a dataset. Detections of the additional classes are
    ignored.
    """
    found = output.get("instances")
    if found is None or not found.has("pred_classes"):
        return output
    return {**output, "instances": found[found.pred_classes < count]}


class RoleFilter(DatasetEvaluator):
    """Passes only the images of one role to another evaluator, for example only queries to box
    AP."""

    def __init__(self, role: str, evaluator: DatasetEvaluator):
        """
        Args:
            role: "query" or "database"; images of the role "both" always pass.
            evaluator: the evaluator to feed.

        Raises:
            ValueError: another role.
        """
        if role not in ("query", "database"):
            raise RegionDHError(f"role must be 'query' or 'database', not {role!r}")
        self._roles = (role, "both")
        self._evaluator = evaluator

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        pairs = [
            pair for pair in zip(inputs, outputs, strict=True) if pair[0]["role"] in self._roles
        ]
        if pairs:
            self._evaluator.process([given for given, _ in pairs], [output for _, output in pairs])

    def evaluate(self):
        return self._evaluator.evaluate()


class COCOBoxEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator on annotations as the dataset's reader returns them.

    Detectron2's own opens the JSON file again, which it may not be able to read. It requires
    numbers as ids, and an area and a crowd flag for each object.
    """

    def __init__(self, dataset_name: str, output_dir: str | os.PathLike | None = None):
        """
        Args:
            dataset_name: a registered detection dataset in COCO format.
            output_dir: where to write predictions; None writes none.

        Raises:
            RegionDHError: the dataset has a defect, or no classes.
        """
        dicts = load_dataset(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("thing_classes") is None:
            raise RegionDHError(f"dataset {dataset_name!r} has no thing_classes in its metadata")
        # COCO's code sorts the ids of all images, so they must not mix numbers and text.
        self._id_type = int if all(isinstance(d["image_id"], int) for d in dicts) else str
        # The base class wants a dataset name whose metadata has a file, so we make both
        # temporarily.
        name = f"{dataset_name} as read"
        known = {
            key: metadata.get(key)
            for key in ("thing_classes", "thing_dataset_id_to_contiguous_id")
            if metadata.get(key) is not None
        }
        with tempfile.TemporaryDirectory(prefix="regiondh_coco_eval_") as folder:
            path = os.path.join(folder, "truth.json")
            write_json(path, _coco_content(dicts, self._id_type, **known))
            MetadataCatalog.get(name).set(json_file=path, **known)
            try:
                super().__init__(
                    name,
                    output_dir=None if output_dir is None else os.fspath(output_dir),
                    use_fast_impl=self._id_type is int,
                )
            finally:
                MetadataCatalog.remove(name)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        given = [{**record, "image_id": self._id_type(record["image_id"])} for record in inputs]
        count = len(self._metadata.thing_classes)
        super().process(given, [of_known_classes(output, count) for output in outputs])


def _coco_content(
    dicts: Sequence[dict],
    id_type: type,
    thing_classes: Sequence[str],
    thing_dataset_id_to_contiguous_id: Mapping[int, int] | None = None,
) -> dict:
    """Dataset dicts in COCO's format, with the categories' own ids, if there are any."""
    category_ids = list(range(len(thing_classes)))
    for category_id, position in (thing_dataset_id_to_contiguous_id or {}).items():
        category_ids[position] = category_id
    annotations: list[dict] = []
    for entry in dicts:
        for annotation in entry.get("annotations", ()):
            box = BoxMode.convert(
                [float(value) for value in annotation["bbox"]],
                annotation["bbox_mode"],
                BoxMode.XYWH_ABS,
            )
            found = {
                "id": len(annotations) + 1,  # 0 would count as no match
                "image_id": id_type(entry["image_id"]),
                "category_id": category_ids[annotation["category_id"]],
                "bbox": list(box),
                "area": annotation.get("area", box[2] * box[3]),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
            if isinstance(segmentation := annotation.get("segmentation"), dict):
                counts = segmentation["counts"]
                counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
                found["segmentation"] = {**segmentation, "counts": counts}
            elif segmentation:
                found["segmentation"] = segmentation
            if keypoints := annotation.get("keypoints"):
                found["keypoints"] = [
                    value if place % 3 == 2 else value - 0.5
                    for place, value in enumerate(keypoints)
                ]
                found["num_keypoints"] = sum(visible > 0 for visible in keypoints[2::3])
            annotations.append(found)
    images = [
        {
            "id": id_type(entry["image_id"]),
            "file_name": str(entry["file_name"]),
            "height": entry["height"],
            "width": entry["width"],
        }
        for entry in dicts
    ]
    categories = [
        {"id": i, "name": name} for i, name in zip(category_ids, thing_classes, strict=True)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


class VOCBoxEvaluator(DatasetEvaluator):
    """PASCAL VOC's box AP for any registered dataset with annotations.

    It computes the same as Detectron2's ``PascalVOCDetectionEvaluator``, from the registered dicts
    instead of annotation files: a split needs no ImageSets file, coordinates may have decimals, and
    ids and classes may be any text. Objects marked ``difficult`` are ignored. Classes without a
    true box are left out of the mean; Detectron2 counts each as zero.
    """

    def __init__(self, dataset_name: str):
        """
        Args:
            dataset_name: registered detection dataset. ``year`` 2007 in its metadata asks for the
                11-point AP, anything else for the area under the curve.
        """
        self._dataset_name = dataset_name
        self._is_2007 = MetadataCatalog.get(dataset_name).get("year") == 2007
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self) -> None:
        # By class: image id, score, box.
        self._found: dict[int, list[tuple[str, float, list[float]]]] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.clone()
            boxes[:, :2] += 1  # VOC counts pixels from 1 and includes the last one
            for class_id, score, box in zip(
                instances.pred_classes.tolist(),
                instances.scores.tolist(),
                boxes.tolist(),
                strict=True,
            ):
                # As many digits as VOC's result files have, so that ties are the same.
                found = (str(given["image_id"]), round(score, 3), [round(x, 1) for x in box])
                self._found.setdefault(class_id, []).append(found)

    def evaluate(self) -> OrderedDict:
        """Measures all images; call it on all ranks.

        Returns:
            On the main process ``{"bbox": {"AP", "AP50", "AP75"}}`` in percent, NaN if no class has
            a true box; elsewhere an empty dict.
        """
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return OrderedDict()
        dicts = load_dataset(self._dataset_name)
        row_of = {str(entry["image_id"]): row for row, entry in enumerate(dicts)}
        aps = []
        for class_id, truth in sorted(_true_boxes(dicts).items()):
            count = sum(int((~boxes.difficult).sum()) for boxes in truth.values())
            found = [
                (row_of[image_id], score, box)
                for part in gathered
                for image_id, score, box in part.get(class_id, ())
            ]
            if count:
                aps.append(_average_precisions(found, truth, count, self._is_2007))
        if aps:
            mean = 100 * np.array(aps).mean(axis=0)
        else:
            self._logger.warning("%s has no true boxes: box AP is undefined", self._dataset_name)
            mean = np.full(len(_THRESHOLDS), np.nan)
        values = {"AP": float(mean.mean()), "AP50": float(mean[0]), "AP75": float(mean[5])}
        return OrderedDict(bbox=values)


_THRESHOLDS = np.arange(50, 100, 5) / 100  # of the IoU of a correct detection


@dataclass(frozen=True)
class _TrueBoxes:
    """The objects of one class in one image.

    Attributes:
        boxes: float64 (M, 4), XYXY in whole pixels, counted from 1, the last ones included.
        difficult: bool (M,), objects that are ignored.
    """

    boxes: np.ndarray
    difficult: np.ndarray


def _true_boxes(dicts: Sequence[dict]) -> dict[int, dict[int, _TrueBoxes]]:
    """The objects by class and by row of their image in ``dicts``."""
    found: dict[int, dict[int, list[dict]]] = {}
    for row, entry in enumerate(dicts):
        for annotation in entry.get("annotations", ()):
            of_class = found.setdefault(annotation["category_id"], {})
            of_class.setdefault(row, []).append(annotation)
    return {
        class_id: {
            row: _TrueBoxes(
                np.array([_voc_box(annotation) for annotation in annotations], np.float64),
                np.array([bool(annotation.get("difficult", False)) for annotation in annotations]),
            )
            for row, annotations in rows.items()
        }
        for class_id, rows in found.items()
    }


def _voc_box(annotation: dict) -> list[int]:
    x0, y0, x1, y1 = BoxMode.convert(
        list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS
    )
    return [round(x0 + 1), round(y0 + 1), round(x1), round(y1)]


def _average_precisions(
    found: Sequence[tuple[int, float, list[float]]],
    truth: Mapping[int, _TrueBoxes],
    count: int,
    is_2007: bool,
) -> list[float]:
    """The AP of one class at each of the thresholds.

    A detection is assigned to the object that it overlaps most. It is correct if the overlap
    exceeds the threshold and no detection of a higher score was assigned to the object.

    Args:
        found: row of the image, score and box of each detection.
        truth: the objects of the class by row.
        count: how many of them aren't difficult.
        is_2007: whether to compute the 11-point AP.
    """
    order = np.argsort([-score for _, score, _ in found])
    right, wrong = np.zeros((2, len(_THRESHOLDS), len(found)), bool)
    taken = {row: np.zeros((len(_THRESHOLDS), len(m.boxes)), bool) for row, m in truth.items()}
    for rank, place in enumerate(order):
        row, _, box = found[place]
        if row not in truth:
            wrong[:, rank] = True
            continue
        overlaps = _overlaps(np.array(box), truth[row].boxes)
        best = overlaps.argmax()
        near = overlaps[best] > _THRESHOLDS
        wrong[:, rank] = ~near
        if not truth[row].difficult[best]:
            again = near & taken[row][:, best]
            right[:, rank] = near & ~again
            wrong[:, rank] |= again
            taken[row][:, best] |= near
    hits, misses = np.cumsum(right, axis=1), np.cumsum(wrong, axis=1)
    precisions = hits / np.maximum(hits + misses, 1)  # neither, if the first ones are difficult
    return [
        voc_ap(recall, precision, is_2007)
        for recall, precision in zip(hits / count, precisions, strict=True)
    ]


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box (4,) with others (M, 4), whose last pixels are part of them: (M,)."""

    def area(corners: np.ndarray) -> np.ndarray:
        width, height = np.moveaxis(corners[..., 2:] - corners[..., :2] + 1, -1, 0)
        return np.maximum(width, 0) * np.maximum(height, 0)

    first = np.maximum(box[:2], others[:, :2])
    last = np.minimum(box[2:], others[:, 2:])
    shared = area(np.concatenate((first, last), axis=1))
    return shared / (area(box) + area(others) - shared)
