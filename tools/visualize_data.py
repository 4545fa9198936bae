#!/usr/bin/env python
"""Draw the ground truth of a dataset, or the images that a network is trained on.

A dataset's images show their role (query, database or both), labels, and boxes, dashed where an
object is marked difficult. With a config instead, the images are those of the training loader,
augmented.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import regiondh_d2  # noqa: F401  isort: skip  (registers what configs name, and first, to be quiet)
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from regiondh_d2.data.catalog import load_dataset, registered_names
from regiondh_d2.data.training import build_train_loader
from regiondh_d2.data.visualize import draw_record, draw_training_input
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import positive_int, run_command
from regiondh_d2.engine.defaults import check_datasets
from regiondh_d2.retrieval.draw import save_image
from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.errors import RegionDHError


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="draw a registered dataset")
    source.add_argument(
        "--config-file", metavar="C", help="draw what training with this config reads, augmented"
    )
    parser.add_argument(
        "--output-dir", required=True, type=Path, metavar="FOLDER", help="for the pictures"
    )
    parser.add_argument(
        "--images",
        type=positive_int,
        default=20,
        metavar="N",
        help="how many, at even distances in the dataset (default: %(default)s)",
    )
    parser.add_overrides()
    return parser


def draw_dataset(name: str, images: int) -> Iterator[tuple[str, Image.Image]]:
    """Files and pictures of some images of a dataset."""
    if name not in DatasetCatalog.list():
        raise RegionDHError(
            f"dataset {name!r} isn't registered; known: {', '.join(registered_names())}, and "
            "Detectron2's own"
        )
    records = load_dataset(name)
    class_names = MetadataCatalog.get(name).get("thing_classes") or ()
    places = np.linspace(0, len(records) - 1, min(images, len(records))).round().astype(int)
    for place in places.tolist():
        record = records[place]
        yield f"{place:06d}_{Path(record['file_name']).stem}", draw_record(record, class_names)


def draw_training(
    config_file: str, opts: list[str], images: int
) -> Iterator[tuple[str, Image.Image]]:
    """Files and pictures of the first images of a training."""
    cfg = build_cfg(config_file, opts)
    check_datasets(cfg)
    loader = itertools.chain.from_iterable(build_train_loader(cfg))
    class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes") or ()
    for place, inputs in enumerate(itertools.islice(loader, images)):
        picture = draw_training_input(inputs, class_names, cfg.INPUT.FORMAT)
        yield f"{place:06d}_{Path(inputs['file_name']).stem}", picture


def run(args: argparse.Namespace) -> None:
    if args.dataset:
        pictures = draw_dataset(args.dataset, args.images)
    else:
        pictures = draw_training(args.config_file, args.opts, args.images)
    count = 0
    for name, picture in tqdm(pictures, disable=None, leave=False):
        save_image(picture, args.output_dir / f"{name}.jpg")
        count += 1
    print(f"{count} pictures in {args.output_dir}")


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.dataset and args.opts:
        parser.error(f"{args.opts[0]} is a config override, which --dataset has no config for")
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
