"""Object queries on cached features, for several weights of the image's distance, as one table.

``regiondh evaluate-objects`` measures the same on images. Here the annotated boxes are rows of the
feature cache, and a network takes minutes instead of half an hour.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

import regiondh_d2  # noqa: F401  (registers the datasets)
from regiondh_cli.arguments import CommandParser
from regiondh_cli.options import (
    add_config_option,
    add_import_option,
    add_overwrite_option,
    weight,
)
from regiondh_d2.checkpoint import model_fingerprint
from regiondh_d2.commands.evaluate_objects import true_objects
from regiondh_d2.config import code_settings
from regiondh_d2.data.catalog import load_dataset, require_dataset
from regiondh_d2.data.retrieval import with_labels
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import load_trained_model, run_command
from regiondh_d2.engine.defaults import config_inputs, dataset_inputs
from regiondh_d2.engine.feature_cache import FeatureCache
from regiondh_d2.engine.user_code import import_user_code
from regiondh_d2.evaluation.object_queries import evaluate_object_queries
from regiondh_d2.modeling.cached import CachedNetwork
from regiondh_d2.retrieval.images import dataset_images
from regiondh_d2.structures.codes import CodeSet, InstanceCodes
from regiondh_d2.structures.model_outputs import codes_from_outputs
from regiondh_d2.utils.file_io import check_output_file, write_json

# Columns of the table, and the beginnings of the metrics' names.
MEASURES = {
    "all": "",
    "several classes": "several_classes/",
    "mean of classes": "class_mean/",
    "box on an object": "where/",
    "the same, several classes": "several_classes/where/",
}


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m experiments.objects", description=__doc__.splitlines()[0]
    )
    add_config_option(parser)
    parser.add_argument("--queries", required=True, metavar="NAME", help="whose objects search")
    parser.add_argument("--database", required=True, metavar="NAME", help="the images to search in")
    parser.add_argument(
        "--blend",
        type=weight,
        nargs="+",
        default=[0.5],
        metavar="W",
        help="weights of the distance of the images beside that of the objects (default: 0.5)",
    )
    parser.add_argument("--json", metavar="OUT.json", help="also write all numbers, by weight")
    add_import_option(parser)
    add_overwrite_option(parser)
    parser.add_overrides()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    names = (args.queries, args.database)
    require_dataset(args.queries, "--queries")
    require_dataset(args.database, "--database")
    inputs = [*config_inputs(args.config_file, args.opts), *dataset_inputs(names)]
    check_output_file(args.json, inputs=inputs, overwrite=args.overwrite, kind="json")
    cfg = build_cfg(args.config_file, args.opts)
    model: Any = load_trained_model(cfg)
    query, objects = encode(cfg, model, args.queries)
    database, _ = encode(cfg, model, args.database)
    true = true_objects(args.database, database)
    found = {
        value: evaluate_object_queries(
            query, objects, database, blend=value, true_objects=true
        ).metrics
        for value in args.blend
    }
    first = next(iter(found.values()))
    print(
        f"{first['num_queries']} objects, {first['several_classes/num_queries']} of them in images "
        f"of several classes, searched in {len(database)} images with "
        f"{len(database.objects().codes)} detected objects"
    )
    print(markdown_table(found))
    if args.json:
        write_json(args.json, {str(value): metrics for value, metrics in found.items()})


@torch.no_grad()
def encode(cfg, model: Any, name: str) -> tuple[CodeSet, InstanceCodes]:
    """The codes of a dataset's images, with their detections, and of its annotated objects."""
    cache = FeatureCache(cfg)
    cache.ensure(model, name, mirrored=False)
    network = CachedNetwork(model).eval()
    outputs, annotated = [], []
    for inputs in cache.test_loader(name):
        outputs += network(inputs)
        codes = network.object_codes(inputs)
        annotated += [of_ground_truth(*pair) for pair in zip(inputs, codes, strict=True)]
    records = [with_labels(record) for record in load_dataset(name)]
    images = dataset_images(records, count_difficult=True)
    fields: dict[str, Any] = {
        "image_ids": [image.image_id for image in images],
        "file_names": [image.file_name for image in images],
        "labels": [image.labels for image in images],
        "class_names": MetadataCatalog.get(name).get("thing_classes", []),
        "instance_min_score": cfg.TEST.RETRIEVAL.INSTANCE_MIN_SCORE,
        "model_fingerprint": model_fingerprint(model),
        "settings": code_settings(cfg),
    }
    with_objects = [{**o, "instances": a} for o, a in zip(outputs, annotated, strict=True)]
    return (
        codes_from_outputs(outputs, **fields),
        codes_from_outputs(with_objects, **fields).objects(),
    )


def of_ground_truth(inputs: dict, codes: torch.Tensor) -> Instances:
    """The ground truth of an image as detections of score 1, in pixels of the file's image."""
    true, height, width = inputs["instances"], inputs["height"], inputs["width"]
    boxes = Boxes(true.gt_boxes.tensor.clone())
    boxes.scale(width / true.image_size[1], height / true.image_size[0])
    return Instances(
        (height, width),
        pred_boxes=boxes,
        scores=torch.ones(len(boxes)),
        pred_classes=true.gt_classes,
        pred_codes=codes.cpu(),
    )


def markdown_table(found: dict[float, dict[str, float]]) -> str:
    """A row each for objects, images, and the blend by each weight."""
    rows = ["| ranked by | " + " | ".join(MEASURES) + " |", "|---|" + "---|" * len(MEASURES)]
    first = next(iter(found.values()))
    for label, ranking, metrics in (
        ("objects", "objects", first),
        ("images", "images", first),
        *((f"objects + {value:g} x images", "blend", found[value]) for value in found),
    ):
        names = (f"{prefix}{ranking}/MAP_all" for prefix in MEASURES.values())
        values = (metrics.get(name, np.nan) for name in names)
        cells = ("" if np.isnan(value) else f"{value:.3f}" for value in values)
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
