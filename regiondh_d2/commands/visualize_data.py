"""Draw the ground truth of a dataset, or the images that a network is trained on.

A dataset's images are drawn with their role (query, database or both), labels and boxes; boxes of
difficult objects are dashed. With a config, the images are the augmented ones of the training
loader.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ..data.catalog import load_dataset, require_dataset
from ..data.training import build_train_loader
from ..engine import build_cfg
from ..engine.defaults import check_datasets, config_inputs, dataset_inputs
from ..engine.network import learns_from_boxes
from ..engine.user_code import import_user_code
from ..utils.display import print_line
from ..utils.file_io import check_output_file
from ..visualization.dataset_pictures import draw_record, draw_training_input
from ..visualization.draw import save_image


def output_file(args: argparse.Namespace, datasets: Sequence[str], place: int, image: str) -> Path:
    """The file of a picture.

    Args:
        datasets: the datasets in use.
        place: number of the image.
        image: its file.

    Raises:
        OutputExistsError: a file is there that must stay.
    """
    path = args.output_dir / f"{place:06d}_{Path(image).stem}.jpg"
    # Checked only if the file exists.
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
    # Check all of them before drawing the first.
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
