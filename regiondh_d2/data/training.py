"""Reads the training data: records that fit the network, and images, naming unreadable ones."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.build import print_instances_class_histogram
from detectron2.structures import BoxMode
from fvcore.transforms.transform import HFlipTransform

from ..config import DEFAULT_MAX_PIXELS, max_pixels, square_sizes
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from .catalog import adopt
from .image_reader import ImagePixels, UnreadableImage, read_image
from .proposals import dicts_with_proposals
from .retrieval import common_classes
from .squares import squashed
from .train_stream import grouped_loader

logger = logging.getLogger(__name__)


class UnreadableImageError(RegionDHError):
    """An image of a dataset can't be read; the message is one line with the file and the fix."""

    def __init__(self, message: str):
        # A loader's worker process passes an exception on by calling its class with the text of the
        # traceback, which ends with the class and the message.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


class StrictMapper(DatasetMapper):
    """Detectron2's mapper over our image reader; an unreadable image gives a one-line error.

    Pixels come from :func:`~regiondh_d2.data.image_reader.read_image`, as in extraction and search.
    If a JPEG above the pixel limit is read at a smaller size, its boxes are scaled, too; ``height``
    and ``width`` stay those of the file.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        squares: Sequence[int] = (),
        **options,
    ):
        """
        Args:
            is_train: whether annotations are wanted.
            max_pixels: as ``MODEL.REGION_DH.MAX_PIXELS``.
            squares: sides of the squares that image encoders read.
            options: as of the base class.
        """
        super().__init__(is_train, **options)
        self.max_pixels = max_pixels
        self.squares = tuple(squares)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        options = super().from_config(cfg, is_train)
        return {**options, "max_pixels": max_pixels(cfg), "squares": square_sizes(cfg)}

    def __call__(self, dataset_dict: dict) -> dict:
        """As in the base class, with ``squares`` for image encoders. They show the photo as it was
        read, mirrored if the image is, without any other augmentation.

        Raises:
            UnreadableImageError: the image is missing, damaged, or not of the annotated size.
        """
        record = copy.deepcopy(dataset_dict)
        read, mask = self._read(record)
        inputs = T.AugInput(read.pixels, sem_seg=mask)
        transforms = self.augmentations(inputs)
        if self.squares:
            flips = [t for t in transforms.transforms if isinstance(t, HFlipTransform)]
            record["squares"] = squashed(read.pixels, self.squares, mirrored=len(flips) % 2 == 1)
        size = read.size
        if (size.read_height, size.read_width) != (size.height, size.width):
            shrink = T.ScaleTransform(size.height, size.width, size.read_height, size.read_width)
            transforms = shrink + transforms
        shape = inputs.image.shape[:2]
        record["image"] = torch.as_tensor(np.array(inputs.image.transpose(2, 0, 1), order="C"))
        if inputs.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(inputs.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(record, shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, shape)
        return record

    def _read(self, record: dict) -> tuple[ImagePixels, np.ndarray | None]:
        """The image, of the size in the record, and its semantic segmentation, if it has one."""
        name, mask_name = record["file_name"], record.pop("sem_seg_file_name", None)
        try:
            read = read_image(name, self.image_format, self.max_pixels)
            # This check needs only the shape. It adds the size to a record that has none.
            utils.check_image_size(record, np.empty((read.size.height, read.size.width, 0)))
            if mask_name is None:
                return read, None
            mask = read_image(mask_name, "L", self.max_pixels)
            return read, mask.pixels[..., 0]
        except UnreadableImage as error:
            name, reason = error.file_name, error.reason
        except utils.SizeMismatchError as error:
            reason = " ".join(str(error).split())
        raise UnreadableImageError(
            f"{display_name(name)}: cannot be read ({reason}): replace it or drop it from the "
            "dataset; `regiondh check-dataset --images` finds all such files"
        )


def check_num_classes(name: str, num_classes: int) -> None:
    """Check that the network has enough classes for a dataset, if its classes are known yet.

    Raises:
        ValueError: the dataset has more.
    """
    found = len(MetadataCatalog.get(name).get("thing_classes") or ())
    if found > num_classes:
        raise RegionDHError(
            f"dataset {name!r} has {found} classes, but MODEL.ROI_HEADS.NUM_CLASSES is "
            f"{num_classes}: set it to {found}"
        )


def check_record(record: dict) -> None:
    """Check the fields and boxes of a dataset dict, since other code's datasets may be wrong.

    Raises:
        RegionDHError: a field is missing or a box is impossible; the message names image and field.
    """
    if not isinstance(record, dict) or not record.get("file_name"):
        raise RegionDHError(f"a dataset dict has no file_name: {str(record)[:200]}")
    image = display_name(str(record["file_name"]))
    width, height = (record.get(key) or math.inf for key in ("width", "height"))
    for index, annotation in enumerate(record.get("annotations", ())):
        where = f"{image}: annotations[{index}]"
        for key in ("bbox", "bbox_mode", "category_id"):
            if annotation.get(key) is None:
                raise RegionDHError(f"{where}: {key} is missing")
        mode, box = annotation["bbox_mode"], annotation["bbox"]
        if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
            continue  # rotated or relative; left to Detectron2
        if isinstance(box, str) or len(box) != 4 or any(isinstance(v, str) for v in box):
            raise RegionDHError(f"{where}: bbox must be four numbers, got {box!r}")
        x, y, right, lower = map(float, box)
        if mode == BoxMode.XYWH_ABS:
            right, lower = x + right, y + lower
        # Written so that a NaN fails, too.
        inside = x < width and y < height and right > 0 and lower > 0
        if not (-math.inf < x < right < math.inf and -math.inf < y < lower < math.inf and inside):
            raise RegionDHError(
                f"{where}: bbox {list(box)} is no box inside the image of {width} x {height}:"
                " correct or drop it"
            )


def training_records(cfg: CfgNode, boxes: bool = True) -> list[dict]:
    """The dicts of ``DATASETS.TRAIN``, one list.

    An image may have ``annotations``, or only ``image_labels``; methods that detect objects can't
    train on the latter. Images with neither are left out, and their number is logged, unless
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` is False.

    Args:
        cfg: the config.
        boxes: whether the network learns from boxes.

    Raises:
        ValueError: no image is left, the datasets have different classes, a class id is outside the
            network's classes, or an image has only labels and the network learns from boxes.
    """
    names, num_classes = list(cfg.DATASETS.TRAIN), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if not names:
        raise RegionDHError("DATASETS.TRAIN is empty: name a dataset")
    for name in names:
        adopt(name)
    try:
        if cfg.MODEL.LOAD_PROPOSALS:
            files = zip(names, cfg.DATASETS.PROPOSAL_FILES_TRAIN, strict=True)
            records = [x for name, file in files for x in dicts_with_proposals(name, file)]
        else:
            records = get_detection_dataset_dicts(
                names,
                filter_empty=False,  # done below, for labels of images, too
                check_consistency=False,  # done below, with the file's name in the message
            )
    except AssertionError as error:  # Detectron2 asserts that there are images
        raise RegionDHError(f"DATASETS.TRAIN: {error}") from error

    def fail(message: str) -> None:
        raise RegionDHError(f"DATASETS.TRAIN: {message}")

    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = _with_something_to_learn(names, records, fail)
    classes = common_classes(names, fail)
    for name in names:  # some datasets know their classes only now
        check_num_classes(name, num_classes)
    limit = num_classes if classes is None else len(classes)
    for record in records:
        check_record(record)
        if boxes and has_labels_alone(record):
            fail(
                f"{display_name(str(record['file_name']))} has image_labels and no annotations; "
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} learns from boxes, and "
                "configs/Base-ImageHash.yaml (DLBHC, SSDH) learns from labels"
            )
        ids = sorted(labels_to_learn(record))
        if ids and not 0 <= ids[0] <= ids[-1] < limit:
            fail(
                f"{record['file_name']} has class ids {ids}; they must count from 0 to {limit - 1}"
            )
    if classes is not None:
        print_instances_class_histogram([_as_annotations(record) for record in records], classes)
    return records


def has_labels_alone(record: dict) -> bool:
    """Whether a dataset dict has labels of the image but no objects."""
    return "annotations" not in record and "image_labels" in record


def labels_to_learn(record: dict) -> set[int]:
    """The classes of an image's objects, or its labels if it has no annotations."""
    if has_labels_alone(record):
        return set(record["image_labels"])
    return {a["category_id"] for a in record.get("annotations", ())}


def _with_something_to_learn(
    names: list[str], records: list[dict], fail: Callable[[str], None]
) -> list[dict]:
    """The records that have a label, or an object that is not a crowd."""

    def has_some(record: dict) -> bool:
        if has_labels_alone(record):
            return bool(record["image_labels"])
        return any(not a.get("iscrowd", 0) for a in record.get("annotations", ()))

    kept = [record for record in records if has_some(record)]
    if not kept:
        fail(
            f"no image of {', '.join(names)} has an object or a label. Images without count only "
            "where DATALOADER.FILTER_EMPTY_ANNOTATIONS is False"
        )
    logger.info(
        f"{len(records) - len(kept)} images without an object or a label are left out; "
        f"{len(kept)} are left"
    )
    return kept


def _as_annotations(record: dict) -> dict:
    """The input of Detectron2's table of classes: an entry for each object, or for each label."""
    if not has_labels_alone(record):
        return {"annotations": record.get("annotations", [])}
    return {"annotations": [{"category_id": label} for label in record["image_labels"]]}


def build_train_loader(cfg: CfgNode, boxes: bool = True):
    """Detectron2's endless loader over :func:`training_records`, with :class:`StrictMapper`.

    With a ``SEED`` of 0 or more and ``DATALOADER.SAMPLER_TRAIN`` TrainingSampler it is a
    :class:`~.train_stream.ResumableLoader`.

    Args:
        cfg, boxes: see :func:`training_records`.

    Raises:
        ValueError: as :func:`training_records`; an :class:`UnreadableImageError` while iterating.
    """
    records, mapper = training_records(cfg, boxes), StrictMapper(cfg, is_train=True)
    node = cfg.DATALOADER
    if cfg.SEED < 0 or node.SAMPLER_TRAIN != "TrainingSampler":
        return build_detection_train_loader(cfg, mapper=mapper, dataset=records)
    return grouped_loader(
        records,
        mapper,
        seed=cfg.SEED,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=node.ASPECT_RATIO_GROUPING,
        num_workers=node.NUM_WORKERS,
    )
