"""Measure object queries: every annotated object of a dataset searches a database.

The database's images are ranked by the smallest distance of their detected objects to the object
and, for comparison, by the distance of the whole images' codes; with --blend also by both together.
Images that show its class are relevant. With --database-dataset it is also measured whether the
answer's box is on an object of the class.
"""

import argparse
import sys
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from ..checkpoint import model_fingerprint
from ..config import code_settings
from ..data.catalog import load_dataset, require_dataset
from ..data.retrieval import with_labels
from ..engine import build_cfg
from ..engine.command import load_trained_model
from ..engine.defaults import config_inputs, dataset_inputs
from ..engine.query_encoder import encode_boxes
from ..engine.user_code import import_user_code
from ..evaluation.object_places import TrueObjects
from ..evaluation.object_queries import (
    RANKINGS,
    check_object_queries,
    evaluate_object_queries,
)
from ..evaluation.same_images import find_same_images
from ..retrieval.code_store import read_codes
from ..retrieval.images import ImageLoader, dataset_images
from ..structures.codes import CodeSet, InstanceCodes
from ..structures.model_outputs import codes_from_outputs
from ..utils.display import print_line
from ..utils.errors import RegionDHError
from ..utils.file_io import check_output_file, refuse_inputs, write_json
from ..utils.progress import Progress

COLUMNS = {"expected": "", "pessimistic": "-pessimistic", "optimistic": "-optimistic"}


def log(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


class ObjectEncoder:
    """Encodes the annotated objects of a dataset, and their images."""

    def __init__(self, cfg, dataset: str, count_difficult: bool):
        """
        Args:
            cfg: with ``MODEL.WEIGHTS`` of a trained RegionDH.
            dataset: name of a registered dataset.
            count_difficult: whether classes of difficult objects alone count as labels.

        Raises:
            WeightsError: see :func:`load_trained_model`.
            ValueError: the model encodes no objects.
        """
        # Of any architecture: what it can is asked of it.
        self._model: Any = load_trained_model(cfg)
        if not hasattr(self._model, "encode_images"):
            raise RegionDHError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} encodes no objects; use "
                "RegionDH"
            )
        self._load = ImageLoader(cfg)
        self._fields = {
            "class_names": MetadataCatalog.get(dataset).get("thing_classes", []),
            "instance_min_score": cfg.TEST.RETRIEVAL.INSTANCE_MIN_SCORE,
            "count_difficult": count_difficult,
            "model_fingerprint": model_fingerprint(self._model),
            "settings": code_settings(cfg),
        }

    def encode(self, records: list[dict]) -> tuple[CodeSet, InstanceCodes]:
        """
        Args:
            records: dicts of the dataset, with labels.

        Returns:
            The codes of the images, with their detections, and of the annotated objects.
        """
        progress = Progress(log, "images encoded", len(records))
        coded = []
        for record in records:
            coded.append(self._code_image(record))
            progress.step()
        entries = dataset_images(records, self._fields["count_difficult"])
        fields = {
            "image_ids": [entry.image_id for entry in entries],
            "file_names": [entry.file_name for entry in entries],
            "labels": [entry.labels for entry in entries],
            **self._fields,
        }
        with_objects = [{**output, "instances": objects} for output, objects in coded]
        query = codes_from_outputs([output for output, _ in coded], **fields)
        return query, codes_from_outputs(with_objects, **fields).objects()

    @torch.no_grad()
    def _code_image(self, record: dict) -> tuple[dict, Instances]:
        """The model's output for an image, and the annotated objects with ``pred_codes``."""
        inputs = self._load(str(record["file_name"]))
        (output,) = self._model.inference([inputs])
        objects = annotated_objects(record, (inputs["height"], inputs["width"]))
        objects.pred_codes = encode_boxes(self._model, inputs, objects.pred_boxes).cpu()
        return output, objects


def annotated_objects(record: dict, size: tuple[int, int]) -> Instances:
    """The objects of a dataset dict as detections of score 1; crowds are no objects.

    Args:
        record: with ``annotations``.
        size: height and width of the image.
    """
    found = [a for a in record["annotations"] if not a.get("iscrowd", False)]
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in found]
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.ones(len(found)),
        pred_classes=torch.tensor([a["category_id"] for a in found], dtype=torch.int64),
    )


def load_records(dataset: str) -> list[dict]:
    """The images of a dataset that have annotated objects, with labels."""
    require_dataset(dataset, "--dataset")
    records = [with_labels(r) for r in load_dataset(dataset) if r.get("annotations")]
    if not records:
        raise RegionDHError(f"{dataset} has no annotated objects: name a detection dataset")
    return records


def true_objects(dataset: str, database: CodeSet) -> TrueObjects:
    """The annotated objects of a database's images.

    Args:
        dataset: name of a registered dataset.
        database: codes of images in it; it may have more.

    Raises:
        RegionDHError: there is no such dataset, or it lacks an image of the database.
    """
    require_dataset(dataset, "--database-dataset")
    records = {str(record["image_id"]): record for record in load_dataset(dataset)}
    index, boxes, classes = [], [], []
    for row, image_id in enumerate(database.image_ids):
        if image_id not in records:
            raise RegionDHError(
                f"--database-dataset {dataset} has no image {image_id}, which the database has: "
                "name the dataset that was encoded"
            )
        record = {"annotations": [], **records[image_id]}
        objects = annotated_objects(record, (record["height"], record["width"]))
        index += [row] * len(objects)
        boxes.append(objects.pred_boxes.tensor.numpy())
        classes.append(objects.pred_classes.numpy())
    return TrueObjects(np.array(index, np.int64), np.concatenate(boxes), np.concatenate(classes))


def format_table(metrics: dict[str, float]) -> str:
    """MAP over the whole database by each ranking, and the recalls."""
    lines = [f"{'MAP_all, ranked by':32}" + "".join(f"{column:>13}" for column in COLUMNS)]
    for prefix, what in (
        ("", ""),
        ("several_classes/", ", several classes"),
        ("class_mean/", ", mean of classes"),
        ("where/", ", box on an object"),
        ("several_classes/where/", ", both"),
    ):
        for ranking in RANKINGS:
            name = f"{prefix}{ranking}/MAP_all"
            found = [metrics.get(name + order) for order in COLUMNS.values()]
            values = "".join(f"{value:13.4f}" for value in found if value is not None)
            if values:
                lines.append(f"{ranking + what:32}{values}")
    return "\n".join(
        [
            *lines,
            f"several classes: {metrics['several_classes/num_queries']} objects in images of two "
            "or more",
            f"detected: {metrics['query/object_recall']:.1%} of the objects, "
            f"{metrics['query/class_recall']:.1%} of their images' labels, "
            f"{metrics['database/class_recall']:.1%} of the database's labels",
        ]
    )


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    inputs = [args.database, *config_inputs(args.config_file, args.opts)]
    inputs += dataset_inputs(filter(None, [args.dataset, args.database_dataset]))
    check_output_file(args.json, inputs=inputs, overwrite=args.overwrite, kind="json")
    database = read_codes(args.database)
    cfg = build_cfg(args.config_file, args.opts)
    records = load_records(args.dataset)
    true = true_objects(args.database_dataset, database) if args.database_dataset else None
    if args.json:
        read = [record["file_name"] for record in records]
        refuse_inputs(args.json, photos=[*read, *database.file_names])
    encoder = ObjectEncoder(cfg, args.dataset, database.count_difficult)
    # Check with the first image that all fits together, before spending minutes on the others.
    for note in check_object_queries(*encoder.encode(records[:1]), database):
        print_line(f"warning: {note}", sys.stderr)
    query, objects = encoder.encode(records)
    progress = Progress(log, "objects ranked", len(objects.codes))
    metrics = evaluate_object_queries(
        query,
        objects,
        database,
        lambda done, _: progress.show(done),
        exclude_self=args.exclude_self,
        blend=args.blend,
        true_objects=true,
    ).metrics
    for note in find_same_images(query, database).notes(args.exclude_self):
        print_line(f"warning: {note}", sys.stderr)
    print(
        f"{metrics['num_queries']} objects in {len(query)} images, searched in {len(database)} "
        f"images with {len(database.objects().codes)} detected objects"
    )
    print(format_table(metrics))
    left_out = metrics["num_queries_without_relevant"]
    if left_out:
        print(f"{left_out} objects of classes that the database lacks are left out")
    # Last, so that the numbers are printed even if the file can't be written.
    if args.json:
        write_json(args.json, metrics)
