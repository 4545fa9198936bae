#!/usr/bin/env python
"""Draw the ground truth of a dataset, or the images that a network is trained on.

A dataset's images show their role (query, database or both), labels, and boxes, dashed where an
object is marked difficult. With a config instead, the images are those of the training loader,
augmented.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import regiondh_d2  # noqa: F401  isort: skip  (registers what configs name, and first, to be quiet)
import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image
from tqdm import tqdm

from regiondh_d2.data.catalog import load_dataset, require_dataset
from regiondh_d2.data.training import build_train_loader
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import add_overwrite_option, positive_int, run_command
from regiondh_d2.engine.defaults import check_datasets, config_inputs, dataset_inputs
from regiondh_d2.engine.network import learns_from_boxes
from regiondh_d2.engine.user_code import add_import_option, import_user_code
from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.file_io import check_output_file
from regiondh_d2.visualization.dataset_pictures import draw_record, draw_training_input
from regiondh_d2.visualization.draw import save_image


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
    add_import_option(parser)
    add_overwrite_option(parser)
    parser.add_overrides()
    return parser


def output_file(args: argparse.Namespace, datasets: Sequence[str], place: int, image: str) -> Path:
    """The file of a picture.

    Args:
        datasets: that are read.
        place: number of the image.
        image: its file.

    Raises:
        OutputExistsError: a file is there that must stay.
    """
    path = args.output_dir / f"{place:06d}_{Path(image).stem}.jpg"
    # Looked at only where a file is there.
    photos = (record["file_name"] for name in datasets for record in load_dataset(name))
    inputs = [*config_inputs(args.config_file or "", args.opts), *dataset_inputs(datasets)]
    check_output_file(path, inputs=inputs, photos=photos, overwrite=args.overwrite, kind="picture")
    return path


def draw_dataset(args: argparse.Namespace) -> Iterator[tuple[Path, Image.Image]]:
    """Files and pictures of some images of a dataset."""
    name = args.dataset
    require_dataset(name, "--dataset")
    records = load_dataset(name)
    class_names = MetadataCatalog.get(name).get("thing_classes") or ()
    count = min(args.images, len(records))
    places = np.linspace(0, len(records) - 1, count).round().astype(int).tolist()
    # All of them before the first is drawn.
    files = [output_file(args, [name], place, records[place]["file_name"]) for place in places]
    for place, file in zip(places, files, strict=True):
        yield file, draw_record(records[place], class_names)


def draw_training(args: argparse.Namespace) -> Iterator[tuple[Path, Image.Image]]:
    """Files and pictures of the first images of a training."""
    cfg = build_cfg(args.config_file, args.opts)
    check_datasets(cfg)
    loader = itertools.chain.from_iterable(build_train_loader(cfg, learns_from_boxes(cfg)))
    class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes") or ()
    for place, inputs in enumerate(itertools.islice(loader, args.images)):
        file = output_file(args, cfg.DATASETS.TRAIN, place, inputs["file_name"])
        yield file, draw_training_input(inputs, class_names, cfg.INPUT.FORMAT)


def run(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    pictures = draw_dataset(args) if args.dataset else draw_training(args)
    count = 0
    for file, picture in tqdm(pictures, disable=None, leave=False):
        save_image(picture, file)
        count += 1
    print_line(f"{count} pictures in {args.output_dir}")


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.dataset and args.opts:
        parser.error(f"{args.opts[0]} is a config override, which --dataset has no config for")
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
