"""Encode a dataset, or files and folders, into one code file; can be resumed."""

import argparse
import os
import sys
from functools import partial

import torch
from detectron2.data import MetadataCatalog

from ..data.catalog import load_dataset, require_dataset
from ..data.photo_files import PhotoScan, find_photos
from ..data.retrieval import with_labels
from ..engine import build_cfg
from ..engine.command import load_trained_model, run_workers
from ..engine.config_names import find_config
from ..engine.defaults import config_inputs, dataset_inputs
from ..engine.extraction import classes_of_model, code_extractor
from ..engine.ray_workers import encode_with_ray, import_ray
from ..engine.user_code import import_user_code
from ..retrieval.earlier_codes import keeps_activations, known_files
from ..retrieval.extract import CodeExtractor, ExtractionResult
from ..retrieval.extraction_parts import check_output
from ..retrieval.extraction_plan import images_to_code
from ..retrieval.images import ImageEntry, dataset_images
from ..utils.display import print_line
from ..utils.errors import RegionDHError
from ..utils.file_io import check_output_file, refuse_inputs


def dataset_entries(name: str, cfg) -> tuple[list[ImageEntry], list[str]]:
    """The images of a dataset to encode, and its class names."""
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


def make_extractor(
    args: argparse.Namespace, cfg, class_names: list[str], activations: bool, *, quiet: bool = False
) -> CodeExtractor:
    """The extractor of a process of its own, which knows nothing yet."""
    import_user_code(args.imports)
    return code_extractor(
        load_trained_model(cfg),
        cfg,
        config=os.path.basename(find_config(args.config_file)),
        class_names=class_names,
        dataset=args.dataset or "",
        instances=not args.no_instances,
        activations=activations,
        features=args.features,
        batch_size=args.batch_size,
        save_every=args.save_every,
        log=silent if quiet else log,
    )


def log(line: str) -> None:
    print(line, flush=True)


def silent(line: str) -> None:
    """No line."""


def ray_encoder(args: argparse.Namespace, cfg, class_names: list[str], activations: bool):
    """What encodes batches on the workers of Ray; see :mod:`.engine.ray_workers`."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # a worker's tasks are too short for processes of their own
    make = partial(make_extractor, args, cfg, class_names, activations, quiet=True)

    def encode(images, batches, parts):
        return encode_with_ray(
            make,
            args.ray_workers,
            log,
            images,
            batches,
            parts.folder,
            gpus=int(cfg.MODEL.DEVICE.startswith("cuda")),
        )

    return encode


def encode(
    args: argparse.Namespace,
    cfg,
    scan: PhotoScan | None,
    images: list[ImageEntry],
    class_names: list[str],
    activations: bool,
) -> None:
    """Run in every process."""
    extractor = make_extractor(args, cfg, class_names, activations)
    result = extractor.extract(
        images,
        args.output,
        resume=args.resume,
        skip_bad=args.skip_bad,
        scan=scan,
        moves=args.root,
        verify=args.verify,
        prune=args.prune,
        shard=args.shard,
        encode=ray_encoder(args, cfg, class_names, activations) if args.ray_workers else None,
    )
    if result is not None:  # the main process
        print_summary(result, args.output)


def print_summary(result: ExtractionResult, output: str) -> None:
    """Print the lines at the end.

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
            f"{bad} of {result.images} images can't be read; the others are encoded: fix or remove "
            "those and go on with --resume, or leave them out with --resume --skip-bad"
        )
    left_out = f", {bad} unreadable left out" if bad else ""
    pruned = f", {result.pruned} of photos that have gone removed" if result.pruned else ""
    rows = f"{result.rows} rows, {result.coded} of them encoded now"
    print_line(f"{output}: {rows}{left_out}{pruned}")
    if result.gone:
        print_line(
            f"{result.gone} of the rows are of photos that have gone: remove them with --resume "
            "--prune"
        )


def run(args: argparse.Namespace) -> None:
    if args.ray_workers:
        import_ray()
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
    known = known_files(args.output, args.root)  # an error if another program writes the file
    check_output_file(args.output, overwrite=None, kind="codes")
    activations = args.activations
    if activations is None:
        activations = keeps_activations(args.output)
    scan: PhotoScan | None = None
    notes: list[str] = []
    if args.dataset:
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
        run_workers(encode, args.num_gpus, (args, cfg, scan, images, class_names, activations))
    finally:
        for line in scan.summary() if scan else ():
            print_line(line)
