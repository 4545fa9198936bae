"""Strict reader of datasets in PASCAL VOC layout.

Detectron2's own reader drops the `difficult` flag, which a retrieval ground truth needs, and turns
a defective file into a traceback from deep inside. Here every defect is one line that names the
file, the object and the fix.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.structures import BoxMode

from ..utils.display import display_name
from ..utils.errors import RegionDHError
from .annotations import (
    IMAGE_ENDINGS,
    ClippedBoxes,
    Folder,
    decode_text,
    did_you_mean,
    fit_box,
    log_notes,
)
from .catalog import register_source

# Detectron2's order, so that category ids mean the same as in its builtin datasets.
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

# VOC's numbers, and the truth values that some tools write.
_DIFFICULT = {"": False, "0": False, "false": False, "1": True, "true": True}


class VOCFormatError(RegionDHError):
    """A VOC folder, list or annotation is defective; the message is one line with the fix."""


class VOCNotFoundError(VOCFormatError, FileNotFoundError):
    """A VOC folder or image list is missing."""


def load_voc(
    dirname: str | os.PathLike,
    split_or_ids: str | Sequence[str],
    class_names: Sequence[str],
    *,
    subset: Callable[[str], bool] | None = None,
    problems: list[str] | None = None,
    notes: list[str] | None = None,
) -> list[dict]:
    r"""Read images and boxes in VOC layout.

    Lists and annotations may be in any encoding that they declare or that a byte order mark shows.
    An id may hold blanks and folders (``day1/my photo``); a line of a list may also quote it, write
    ``\`` for ``/``, or name the file of the image or of the annotation
    (``VOC2007/JPEGImages/1.jpg``). The image of an id is the file that its ``<filename>`` names, if
    it exists, or else the one of the id with any ending of an image.

    Args:
        dirname: folder that holds `Annotations`, `ImageSets/Main` and `JPEGImages`.
        split_or_ids: a list's name (`ImageSets/Main/<name>.txt`) or the image ids themselves.
        class_names: the known classes; a class's position is its category id.
        subset: keeps the image ids for which it is true; None keeps all.
        problems: None raises at the first defect; a list receives a line for each instead, and
            the defective object or image is left out.
        notes: receives a line about each oddity that is no defect, such as boxes that reach beyond
            their images; None logs it.

    Returns:
        One dict an image, in the list's order: `file_name`, `image_id` (str), `height`, `width`
        (int, pixels, as the XML says), `image_labels` (sorted class ids of all objects),
        `difficult_labels` (sorted class ids that occur as difficult objects only) and
        `annotations`, each with `bbox` (4 floats, pixels, XYXY_ABS: VOC's 1-based inclusive
        corners converted to edges and clipped to the image, since some tools count from 0),
        `bbox_mode`, `category_id` and `difficult` (bool; False without a tag).

    Raises:
        VOCNotFoundError: the folder or the list does not exist.
        VOCFormatError: any other defect.
    """
    dirname = os.fspath(dirname)

    def on_defect(error: VOCFormatError) -> None:
        if problems is None:
            raise error
        problems.append(str(error))

    annotations = Folder(os.path.join(dirname, "Annotations"))
    try:
        if isinstance(split_or_ids, str):
            origin = _list_file(dirname, split_or_ids)
            image_ids = _read_list(dirname, split_or_ids, annotations, on_defect)
        else:
            origin = "the given image ids"
            image_ids = list(split_or_ids)
            _require_layout(dirname)
    except VOCNotFoundError as error:
        on_defect(error)
        return []
    reader = _Reader(
        annotations,
        Folder(os.path.join(dirname, "JPEGImages")),
        {name: index for index, name in enumerate(class_names)},
        origin,
        on_defect,
    )
    wanted = (i for i in image_ids if subset is None or subset(i))
    records = [record for record in map(reader.read, wanted) if record is not None]
    log_notes(reader.clipped.notes(), notes, __name__)
    return records


@dataclass(frozen=True)
class VOCSource:
    """A dataset in VOC layout; the fields are those of `register_voc`."""

    dirname: str
    split: str
    class_names: tuple[str, ...]
    year: int
    subset: Callable[[str], bool] | None

    @property
    def list_file(self) -> str:
        """Path of the image list."""
        return _list_file(self.dirname, self.split)

    def load(self, problems: list[str] | None = None, notes: list[str] | None = None) -> list[dict]:
        """Read the dicts; see `load_voc`."""
        return load_voc(
            self.dirname,
            self.split,
            self.class_names,
            subset=self.subset,
            problems=problems,
            notes=notes,
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
            silently report a far too low box AP; its `parent_split` names the list.

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
                " $DETECTRON2_DATASETS to the folder that holds it (see"
                " `regiondh check-dataset --help`)"
            )


def _read_list(
    dirname: str, split: str, annotations: Folder, on_defect: Callable[[VOCFormatError], None]
) -> list[str]:
    """Read the ids of one list; duplicates and malformed lines are reported and dropped."""
    _require_layout(dirname)
    path = _list_file(dirname, split)
    try:
        text = decode_text(Path(path).read_bytes())
    except FileNotFoundError:
        present = sorted(
            entry[:-4] for entry in os.listdir(os.path.dirname(path)) if entry.endswith(".txt")
        )
        raise VOCNotFoundError(
            f"{path}: no such image list; the folder has {', '.join(present) or 'no lists'}"
            " (see `regiondh check-dataset --help`)"
        ) from None
    except RegionDHError as error:
        on_defect(VOCFormatError(f"{path}: {error}"))
        return []
    image_ids: dict[str, None] = {}
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        line = line.strip()
        if not line:
            continue
        image_id = _id_of_line(line, annotations)
        if image_id is None:
            on_defect(
                VOCFormatError(
                    f"{path}: line {number}: expected one image id, got {display_name(line)!r},"
                    f" and Annotations has no {display_name(line)}.xml"
                )
            )
        elif image_id in image_ids:
            shown = display_name(image_id)
            on_defect(VOCFormatError(f"{path}: line {number}: {shown} is listed twice: delete one"))
        else:
            image_ids[image_id] = None
    if not image_ids:
        on_defect(VOCFormatError(f"{path}: the list is empty: write one image id a line"))
    return list(image_ids)


def _id_of_line(line: str, annotations: Folder) -> str | None:
    """The image id that a line of a list means, or None if it is no id.

    A line without blanks is an id even if its annotation is missing, so that the error names the
    missing file.
    """
    unquoted = line[1:-1] if len(line) > 1 and line[0] == line[-1] == '"' else line
    forms = [line, unquoted, unquoted.replace("\\", "/")]
    forms.append(re.sub(r"^(.*/)?(JPEGImages|Annotations)/", "", forms[-1]))
    stem, ending = os.path.splitext(forms[-1])
    if ending.lower() in (*IMAGE_ENDINGS, ".xml"):
        forms.append(stem)
    for form in dict.fromkeys(forms):
        if annotations.find_stem(form, (".xml",)) is not None:
            return form
    return None if len(line.split()) > 1 else line


class _Reader:
    """Reads the annotations of one dataset."""

    def __init__(
        self,
        annotations: Folder,
        images: Folder,
        class_ids: dict[str, int],
        origin: str,
        on_defect: Callable[[VOCFormatError], None],
    ):
        self._annotations = annotations
        self._images = images
        self._class_ids = class_ids
        self._origin = origin
        self._on_defect = on_defect
        self._id_of: dict[str, str] = {}  # by image file, so far
        self.clipped = ClippedBoxes()

    def read(self, image_id: str) -> dict | None:
        """Read one image's dict; None if a defect makes the whole image unusable."""
        xml_path = self._annotations.find_stem(image_id, (".xml",))
        if xml_path is None:
            xml_path = os.path.join(self._annotations.path, f"{image_id}.xml")
            self._fail(
                xml_path, f"missing, but {self._names(image_id)}: add the file or drop the id"
            )
            return None
        try:
            root = _parse_xml(xml_path)
            width, height = _read_size(root)
        except RegionDHError as error:
            self._fail(xml_path, str(error))
            return None
        named = (root.findtext("filename") or "").strip()
        image_path = self._find_image(image_id, named)
        if image_path is None:
            given = f", nor is {display_name(named)}, its <filename>" if named else ""
            image_path = os.path.join(self._images.path, f"{image_id}.jpg")
            self._fail(
                image_path,
                f"image missing, but {self._names(image_id)} (no other ending is there{given}):"
                " add it or drop the id",
            )
            return None
        other = self._id_of.setdefault(os.path.normpath(image_path), image_id)
        if other != image_id:
            self._fail(
                xml_path,
                f"its image {display_name(image_path)} is also that of id {display_name(other)}:"
                " correct <filename> or drop one of the ids",
            )
            return None

        objects = []
        for index, element in enumerate(root.findall("object")):
            class_name = (element.findtext("name") or "").strip()
            where = f"object {index} ({display_name(class_name) or '?'})"
            try:
                read, clipped = _read_object(element, class_name, self._class_ids, width, height)
            except RegionDHError as error:
                self._fail(xml_path, f"{where}: {error}")
                continue
            objects.append(read)
            if clipped:
                self.clipped.add(f"{display_name(xml_path)}: {where}")
        labels = {annotation["category_id"] for annotation in objects}
        easy = {a["category_id"] for a in objects if not a["difficult"]}
        return {
            "file_name": image_path,
            "image_id": image_id,
            "height": height,
            "width": width,
            "image_labels": sorted(labels),
            "difficult_labels": sorted(labels - easy),
            "annotations": objects,
        }

    def _names(self, image_id: str) -> str:
        return f"{display_name(self._origin)} names {display_name(image_id)}"

    def _fail(self, path: str, what: str) -> None:
        self._on_defect(VOCFormatError(f"{display_name(path)}: {what}"))

    def _find_image(self, image_id: str, named: str) -> str | None:
        r"""The file that ``<filename>`` names, or else the id with any ending of an image.

        Tools write only the name, or a name with folders, a path of their machine
        (``C:\\set\\1.jpg``), or a name without ending. The folder of the id comes first, since
        several folders may have a file of that name.
        """
        if named:
            base = re.split(r"[/\\]", named)[-1]
            beside = os.path.join(os.path.dirname(image_id), base)
            for find in (self._images.find, self._images.find_stem):
                found = find(beside) if base else None
                if found is not None:
                    return found
            found = self._images.find_tail(named)
            if found is not None:
                return found
        return self._images.find_stem(image_id)


def _parse_xml(path: str) -> ET.Element:
    """The root element of an XML file in any encoding; RegionDHError if it isn't XML."""
    try:
        text = decode_text(Path(path).read_bytes())
        # Parsed as text, so that the declared encoding is ignored.
        return ET.fromstring(text.lstrip("\ufeff \t\r\n"))
    except ET.ParseError as error:
        raise RegionDHError(f"not well-formed XML ({error}): correct or replace it") from None


def _read_size(root: ET.Element) -> tuple[int, int]:
    """Width and height in pixels; RegionDHError if they are missing or not positive."""
    try:
        size = [float(root.findtext(f"size/{key}") or "") for key in ("width", "height")]
        width, height = map(int, size)
    except (ValueError, OverflowError):
        size, width, height = [], 0, 0
    if size != [width, height] or width <= 0 or height <= 0:
        raise RegionDHError("no usable <size>: write <width> and <height> of the image in pixels")
    return width, height


def _read_object(
    element: ET.Element, class_name: str, class_ids: dict[str, int], width: int, height: int
) -> tuple[dict, bool]:
    """Read one `<object>`, and whether its box was clipped; RegionDHError if it is wrong."""
    if class_name not in class_ids:
        raise RegionDHError(
            f"unknown class {display_name(class_name)!r}{did_you_mean(class_name, class_ids)}:"
            f" correct the name or add it to the dataset's classes ({', '.join(class_ids)})"
        )
    # Some official VOC 2012 boxes are fractional.
    texts = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        xmin, ymin, xmax, ymax = (float(text or "") for text in texts)
    except ValueError:
        raise RegionDHError(
            f"<bndbox> needs four numbers xmin, ymin, xmax, ymax, got {texts}"
        ) from None
    shown = f"box ({', '.join(f'{value:g}' for value in (xmin, ymin, xmax, ymax))})"
    if xmin > xmax or ymin > ymax:
        raise RegionDHError(f"{shown} is inverted: xmin <= xmax and ymin <= ymax are required")
    try:
        # VOC counts pixels from 1 and includes the last one.
        box, clipped = fit_box((xmin - 1, ymin - 1, xmax, ymax), width, height)
    except RegionDHError as error:
        raise RegionDHError(f"{shown} {error}") from None
    written = (element.findtext("difficult") or "").strip()
    difficult = _DIFFICULT.get(written.lower())
    if difficult is None:
        raise RegionDHError(f"<difficult> must be 0 or 1, got {display_name(written)!r}")
    return {
        "bbox": list(box),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": class_ids[class_name],
        "difficult": difficult,
    }, clipped
