#!/usr/bin/env python
"""Code images: a dataset, or files and folders, into one code file; resumable when interrupted."""

import argparse
import math
import os
import sys

import regiondh_d2  # noqa: F401  isort: skip  (registers what configs name, and first, to be quiet)
import torch
from detectron2.data import MetadataCatalog

from regiondh_d2.checkpoint import model_fingerprint
from regiondh_d2.config import code_settings
from regiondh_d2.data.catalog import load_dataset, require_dataset
from regiondh_d2.data.photo_files import PhotoScan, find_photos
from regiondh_d2.data.retrieval import with_labels
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import (
    load_trained_model,
    positive_int,
    run_command,
    run_workers,
)
from regiondh_d2.engine.defaults import config_inputs, dataset_inputs
from regiondh_d2.engine.user_code import add_import_option, import_user_code
from regiondh_d2.retrieval.extract import (
    CodeExtractor,
    ExtractionResult,
    check_output,
    images_to_code,
    known_files,
)
from regiondh_d2.retrieval.images import ImageEntry, ImageLoader, dataset_images
from regiondh_d2.utils.arguments import CommandParser
from regiondh_d2.utils.display import print_line
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.file_io import check_output_file, refuse_inputs


def seconds(text: str) -> float:
    """An argument type: a time of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time in seconds")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--config-file", required=True, metavar="C", help="config of the model")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--dataset", metavar="NAME", help="code a registered dataset")
    images.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="code these files, and the images in these folders and the folders in them",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files and folders whose name, or path below the given folder, matches, "
        "such as 'raw*' or 'holiday/drafts'; repeatable",
    )
    parser.add_argument("--output", required=True, metavar="CODES.h5", help="the file to write")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on after an interruption, or add new images to a finished output",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="with --resume: read all files and compare their content, not only those whose size "
        "or time of modification is another",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="with --resume: remove the codes of photos that have gone from the given folders",
    )
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="with --resume: the photos in folder OLD are in folder NEW now; repeatable",
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out images that can't be read"
    )
    parser.add_argument(
        "--no-instances", action="store_true", help="code images alone, which is faster"
    )
    parser.add_argument(
        "--activations", action="store_true", help="also store what the codes are rounded from"
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="also store the features of each image, where the model has some (ImageHash)",
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=4, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--save-every",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="the most that an interruption can lose (default: %(default)g)",
    )
    parser.add_argument(
        "--num-gpus",
        type=positive_int,
        default=1,
        metavar="N",
        help="processes, on CPUs as well (default: %(default)s)",
    )
    add_import_option(parser)
    parser.add_overrides()
    return parser


def dataset_entries(name: str, cfg) -> tuple[list[ImageEntry], list[str]]:
    """The images of a dataset to code, and its class names."""
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    require_dataset(name, "--dataset")
    dicts = load_dataset(name)
    if any("annotations" in record for record in dicts):
        dicts = [with_labels(record) for record in dicts]
    class_names = list(MetadataCatalog.get(name).get("thing_classes", []))
    if len(class_names) != count:
        raise RegionDHError(
            f"{name} has {len(class_names)} classes, but MODEL.ROI_HEADS.NUM_CLASSES is "
            f"{count}: use the config of a model for this dataset"
        )
    return dataset_images(dicts, cfg.TEST.RETRIEVAL.COUNT_DIFFICULT), class_names


def classes_of_model(cfg) -> list[str]:
    """The class names of the datasets that the model's config names, if they may be its own."""
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    known = [MetadataCatalog.get(name).get("thing_classes") or [] for name in names]
    return next((c for c in known if len(c) == cfg.MODEL.ROI_HEADS.NUM_CLASSES), [])


def encode(
    args: argparse.Namespace,
    cfg,
    scan: PhotoScan | None,
    images: list[ImageEntry],
    class_names: list[str],
) -> None:
    """What every process does."""
    model = load_trained_model(cfg)
    if not hasattr(model, "encode_images"):
        raise RegionDHError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} codes no images; use RegionDH"
        )
    extractor = CodeExtractor(
        model.encode_images if args.no_instances else model.inference,
        ImageLoader(cfg),
        {
            "dataset": args.dataset or "",
            "config": os.path.basename(args.config_file),
            "class_names": class_names,
            "count_difficult": cfg.TEST.RETRIEVAL.COUNT_DIFFICULT,
            "model_fingerprint": model_fingerprint(model),
            "settings": code_settings(
                cfg,
                activations=args.activations,
                features=args.features,
                instances=not args.no_instances,
            ),
        },
        size_divisibility=model.backbone.size_divisibility,
        batch_size=args.batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        instance_min_score=cfg.TEST.RETRIEVAL.INSTANCE_MIN_SCORE,
        activations=args.activations,
        features=args.features,
        save_every=args.save_every,
        log=lambda line: print(line, flush=True),
    )
    result = extractor.extract(
        images,
        args.output,
        resume=args.resume,
        skip_bad=args.skip_bad,
        scan=scan,
        moves=args.root,
        verify=args.verify,
        prune=args.prune,
    )
    if result is not None:  # the main process
        print_summary(result, args.output)


def print_summary(result: ExtractionResult, output: str) -> None:
    """The lines at the end.

    Raises:
        RegionDHError: there is no output, because of images that can't be read.
    """
    for error in result.unreadable:
        print_line(f"unreadable: {error}", sys.stderr)
    for name in result.vanished:
        print_line(f"deleted meanwhile: {name}", sys.stderr)
    bad = len(result.unreadable)
    if not result.complete and bad + len(result.vanished) == result.images:
        raise RegionDHError(f"none of the {result.images} images can be read")
    if not result.complete:
        raise RegionDHError(
            f"{bad} of {result.images} images can't be read; the others are coded: fix or remove "
            "those and go on with --resume, or leave them out with --resume --skip-bad"
        )
    left_out = f", {bad} unreadable left out" if bad else ""
    pruned = f", {result.pruned} of photos that have gone removed" if result.pruned else ""
    rows = f"{result.rows} rows, {result.coded} of them coded now"
    print_line(f"{output}: {rows}{left_out}{pruned}")
    if result.gone:
        print_line(
            f"{result.gone} of the rows are of photos that have gone: remove them with --resume "
            "--prune"
        )


def extract(args: argparse.Namespace) -> None:
    import_user_code(args.imports)
    cfg = build_cfg(args.config_file, args.opts)
    cfg.freeze()
    if cfg.MODEL.DEVICE.startswith("cuda") and args.num_gpus > torch.cuda.device_count():
        raise RegionDHError(
            f"--num-gpus {args.num_gpus}: this machine has {torch.cuda.device_count()}"
        )
    check_output(args.output, args.resume)
    inputs = config_inputs(args.config_file, args.opts)
    if args.dataset:
        inputs += dataset_inputs([args.dataset])
    inputs += [path for path in args.input or () if os.path.isfile(path)]
    refuse_inputs(args.output, inputs)
    known = known_files(args.output, args.root)  # tells of a file that another program writes
    check_output_file(args.output, overwrite=None, kind="codes")
    if args.dataset:
        scan, notes = None, []
        images, class_names = dataset_entries(args.dataset, cfg)
    else:
        scan = find_photos(
            args.input,
            args.exclude,
            lambda photo: known.get(photo.path) == (photo.size, photo.mtime_ns),
        )
        images, notes = images_to_code(scan, args.input, known)
        class_names = classes_of_model(cfg)
    refuse_inputs(args.output, photos=[image.file_name for image in images])
    for line in notes:
        print_line(line, sys.stderr)
    try:
        run_workers(encode, args.num_gpus, (args, cfg, scan, images, class_names))
    finally:
        for line in scan.summary() if scan else ():
            print_line(line)


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with status 2 where an option would have no effect."""
    for option in ("verify", "prune", "root"):
        if getattr(args, option) and not args.resume:
            parser.error(f"--{option} is of a code file that exists: give --resume, too")
    for option in ("exclude", "prune", "root"):
        if getattr(args, option) and args.dataset:
            parser.error(f"--{option} is of folders of photos, not of a dataset: leave it out")


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    check_options(parser, args)
    return run_command(
        lambda: extract(args),
        interrupted=f"interrupted: go on with the same command and --resume ({args.output})",
    )


if __name__ == "__main__":
    sys.exit(main())
