"""Strict reader of datasets in PASCAL VOC layout.

Detectron2's own reader drops the `difficult` flag, which a retrieval ground truth needs, and turns
a defective file into a traceback from deep inside. Here every defect is one line that names the
file, the object and the mend.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.structures import BoxMode

from regiondh_d2.data.catalog import register_source

from ..utils.errors import RegionDHError

# Detectron2's order, so that category ids mean the same as in its builtin datasets.
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


class VOCFormatError(RegionDHError):
    """A VOC folder, list or annotation is defective; the message is one line with the mend."""


class VOCNotFoundError(VOCFormatError, FileNotFoundError):
    """A VOC folder or image list is not where it was looked for."""


def load_voc(
    dirname: str | os.PathLike,
    split_or_ids: str | Sequence[str],
    class_names: Sequence[str],
    *,
    subset: Callable[[str], bool] | None = None,
    problems: list[str] | None = None,
) -> list[dict]:
    """Read images and boxes in VOC layout.

    Args:
        dirname: folder that holds `Annotations`, `ImageSets/Main` and `JPEGImages`.
        split_or_ids: a list's name (`ImageSets/Main/<name>.txt`) or the image ids themselves.
        class_names: the known classes; a class's position is its category id.
        subset: keeps the image ids for which it is true; None keeps all.
        problems: None raises at the first defect; a list receives a line for each instead, and
            the defective object or image is left out.

    Returns:
        One dict an image, in the list's order: `file_name`, `image_id` (str), `height`, `width`
        (int, pixels, as the XML says), `image_labels` (sorted class ids of all objects),
        `difficult_labels` (sorted class ids that occur as difficult objects only) and
        `annotations`, each with `bbox` (4 floats, pixels, XYXY_ABS: VOC's 1-based inclusive
        corners as edges), `bbox_mode`, `category_id` and `difficult` (bool; False without a tag).

    Raises:
        VOCNotFoundError: the folder or the list does not exist.
        VOCFormatError: any other defect.
    """
    dirname = os.fspath(dirname)

    def report(error: VOCFormatError) -> None:
        if problems is None:
            raise error
        problems.append(str(error))

    try:
        if isinstance(split_or_ids, str):
            origin = _list_file(dirname, split_or_ids)
            image_ids = _read_list(dirname, split_or_ids, report)
        else:
            origin = "the given image ids"
            image_ids = list(split_or_ids)
            _require_layout(dirname)
    except VOCNotFoundError as error:
        report(error)
        return []
    class_ids = {name: index for index, name in enumerate(class_names)}
    records = (
        _load_image(dirname, image_id, class_ids, origin, report)
        for image_id in image_ids
        if subset is None or subset(image_id)
    )
    return [record for record in records if record is not None]


@dataclass(frozen=True)
class VOCSource:
    """A dataset in VOC layout; the fields are `register_voc`'s."""

    dirname: str
    split: str
    class_names: tuple[str, ...]
    year: int
    subset: Callable[[str], bool] | None

    @property
    def list_file(self) -> str:
        """Path of the image list."""
        return _list_file(self.dirname, self.split)

    def load(self, problems: list[str] | None = None) -> list[dict]:
        """Read the dicts; see `load_voc`."""
        return load_voc(
            self.dirname, self.split, self.class_names, subset=self.subset, problems=problems
        )


def register_voc(
    name: str,
    dirname: str | os.PathLike,
    split: str,
    class_names: Sequence[str],
    year: int = 2012,
    subset: Callable[[str], bool] | None = None,
) -> None:
    """Register a detection dataset in VOC layout; nothing is read before the dataset is used.

    Args:
        name: dataset name, not yet taken (Detectron2 itself owns `voc_2007_train` and the like).
        dirname: folder that holds `Annotations`, `ImageSets/Main` and `JPEGImages`.
        split: name of the list in `ImageSets/Main`, without `.txt`.
        class_names: the classes, in the order of their category ids.
        year: which average precision Detectron2's evaluator computes: 2007 (11 points) or 2012
            (area under the curve).
        subset: keeps the image ids for which it is true. Such a dataset has no `split` in its
            metadata, because Detectron2's evaluator would take the whole list as ground truth and
            report a far too low box AP without a word; its `parent_split` says where it is from.

    Raises:
        ValueError: another dataset has that name, or `year` is neither 2007 nor 2012.
    """
    if year not in (2007, 2012):
        raise RegionDHError(f"dataset {name!r}: year must be 2007 or 2012, got {year!r}")
    source = VOCSource(os.fspath(dirname), split, tuple(class_names), year, subset)
    register_source(
        name,
        source,
        thing_classes=list(class_names),
        dirname=source.dirname,
        year=year,
        evaluator_type="pascal_voc",
        **({"split": split} if subset is None else {"parent_split": split}),
    )


def _list_file(dirname: str, split: str) -> str:
    return os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")


def _require_layout(dirname: str) -> None:
    root = Path(dirname).absolute()
    for folder in ("", "Annotations", "ImageSets/Main", "JPEGImages"):
        if not (root / folder).is_dir():
            raise VOCNotFoundError(
                f"{root / folder}: no such folder; expected"
                f" {root.name}/{{Annotations,ImageSets/Main,JPEGImages}} in {root.parent}: set"
                " $DETECTRON2_DATASETS to the folder that holds it (see datasets/README.md)"
            )


def _read_list(dirname: str, split: str, report: Callable[[VOCFormatError], None]) -> list[str]:
    """Read the ids of one list; duplicates and malformed lines are reported and dropped."""
    _require_layout(dirname)
    path = _list_file(dirname, split)
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        present = sorted(
            entry[:-4] for entry in os.listdir(os.path.dirname(path)) if entry.endswith(".txt")
        )
        raise VOCNotFoundError(
            f"{path}: no such image list; the folder has {', '.join(present) or 'no lists'}"
            " (see datasets/README.md)"
        ) from None
    image_ids: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) > 1:
            report(VOCFormatError(f"{path}: line {number}: expected one image id, got {line!r}"))
        elif words[0] in image_ids:
            report(VOCFormatError(f"{path}: line {number}: {words[0]} is listed twice: delete one"))
        else:
            image_ids[words[0]] = None
    if not image_ids:
        report(VOCFormatError(f"{path}: the list is empty: write one image id a line"))
    return list(image_ids)


def _load_image(
    dirname: str,
    image_id: str,
    class_ids: dict[str, int],
    origin: str,
    report: Callable[[VOCFormatError], None],
) -> dict | None:
    """Read one image's dict; None after a defect that spoils the whole image."""
    xml_path = os.path.join(dirname, "Annotations", f"{image_id}.xml")
    image_path = os.path.join(dirname, "JPEGImages", f"{image_id}.jpg")
    try:
        root = ET.parse(xml_path).getroot()
        width, height = _read_size(root)
    except FileNotFoundError:
        report(
            VOCFormatError(
                f"{xml_path}: missing, but {origin} names {image_id}: add the file or drop the id"
            )
        )
        return None
    except ET.ParseError as error:
        report(VOCFormatError(f"{xml_path}: not well-formed XML ({error}): mend or replace it"))
        return None
    except ValueError as error:
        report(VOCFormatError(f"{xml_path}: {error}"))
        return None
    if not os.path.isfile(image_path):
        report(
            VOCFormatError(
                f"{image_path}: image missing, but {origin} names {image_id}: add it or drop the id"
            )
        )
        return None

    annotations = []
    for index, element in enumerate(root.findall("object")):
        class_name = (element.findtext("name") or "").strip()
        try:
            annotations.append(_read_object(element, class_name, class_ids, width, height))
        except ValueError as error:
            report(VOCFormatError(f"{xml_path}: object {index} ({class_name or '?'}): {error}"))
    labels = {annotation["category_id"] for annotation in annotations}
    easy = {a["category_id"] for a in annotations if not a["difficult"]}
    return {
        "file_name": image_path,
        "image_id": image_id,
        "height": height,
        "width": width,
        "image_labels": sorted(labels),
        "difficult_labels": sorted(labels - easy),
        "annotations": annotations,
    }


def _read_size(root: ET.Element) -> tuple[int, int]:
    """Width and height in pixels; ValueError where they are missing or not positive."""
    try:
        width, height = (int(root.findtext(f"size/{key}") or "") for key in ("width", "height"))
    except ValueError:
        width = height = 0
    if width <= 0 or height <= 0:
        raise RegionDHError("no usable <size>: write <width> and <height> of the image in pixels")
    return width, height


def _read_object(
    element: ET.Element, class_name: str, class_ids: dict[str, int], width: int, height: int
) -> dict:
    """Read one `<object>`; ValueError says what is wrong with it."""
    if class_name not in class_ids:
        raise RegionDHError(
            f"unknown class {class_name!r}: correct the name or add it to the dataset's classes"
            f" ({', '.join(class_ids)})"
        )
    # Some official VOC 2012 boxes are fractional.
    texts = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        xmin, ymin, xmax, ymax = (float(text or "") for text in texts)
    except ValueError:
        raise RegionDHError(
            f"<bndbox> needs four numbers xmin, ymin, xmax, ymax, got {texts}"
        ) from None
    box = f"box ({', '.join(f'{value:g}' for value in (xmin, ymin, xmax, ymax))})"
    if xmin > xmax or ymin > ymax:
        raise RegionDHError(f"{box} is inverted: xmin <= xmax and ymin <= ymax are required")
    # Written so that a NaN fails too. VOC counts pixels from 1, so xmax == width is inside.
    if not (1 <= xmin <= xmax <= width and 1 <= ymin <= ymax <= height):
        raise RegionDHError(
            f"{box} is outside the image of {width} x {height}: corners count from 1 to the size"
        )
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise RegionDHError(f"<difficult> must be 0 or 1, got {difficult!r}")
    return {
        "bbox": [xmin - 1.0, ymin - 1.0, xmax, ymax],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": class_ids[class_name],
        "difficult": difficult == "1",
    }
