"""Strict reader of detection datasets in COCO's JSON format.

Detectron2's own reader accepts impossible boxes (NaN, text, negative sides), which then spoil the
training silently or stop it with a misleading error; and a defective file gives a traceback. Here
every defect is one line that names the file, the image and the field.

With :func:`.catalog.adopt` this reader also reads datasets that Detectron2's
``register_coco_instances`` registered.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..utils.display import display_name
from ..utils.errors import InputNotFoundError, RegionDHError
from .annotations import ClippedBoxes, Folder, decode_text, log_notes
from .coco_fields import (
    Defect,
    check_object,
    field,
    get,
    is_number,
    is_unicode,
    read_box,
    read_id,
    read_segmentation,
    read_side,
    show,
)

__all__ = ["COCOFormatError", "COCOSource", "coco_source"]

_REGISTRAR = "detectron2.data.datasets.coco"  # the module of Detectron2's registration
# COCO's own files have a few boxes of width or height 0. Nobody should have to edit those files.
_PUBLISHED = frozenset(
    name for splits in builtin._PREDEFINED_SPLITS_COCO.values() for name in splits
)


class COCOFormatError(RegionDHError):
    """A COCO file is defective; the message is one line that says what to correct."""


@dataclass(frozen=True)
class COCOSource:
    """A dataset in COCO format; the first three fields are those of `catalog.register_coco`.

    Attributes:
        published: whether this is one of COCO's own files, which users don't edit. Its defective
            objects are left out and counted in a note.
    """

    name: str
    json_file: str
    images: str
    published: bool = False

    def load(self, problems: list[str] | None = None, notes: list[str] | None = None) -> list[dict]:
        """Read images, boxes and classes, and set the classes in the metadata.

        Args:
            problems: None raises at the first defect; a list receives a line for each instead, and
                the defective object or image is left out.
            notes: receives a line about each oddity that is no defect; None logs it.

        Returns:
            One dict an image, by ascending id, as Detectron2's ``load_coco_json`` returns them:
            `file_name`, `image_id`, `height`, `width` and `annotations`, each with `bbox` (4
            numbers, pixels, XYWH_ABS, clipped to the image), `bbox_mode`, `category_id`, `iscrowd`
            (0 or 1), `area` (pixels) and, where the file has them, `segmentation` and `keypoints`.
            An id that is a text of digits becomes a number.

        Raises:
            InputNotFoundError: the file does not exist.
            COCOFormatError: any other defect.
        """
        path = PathManager.get_local_path(self.json_file)
        shown = display_name(self.json_file)

        def on_defect(message: str) -> None:
            error = COCOFormatError(f"{shown}: {message}")
            if problems is None:
                raise error
            problems.append(str(error))

        try:
            content = _read_json(path)
        except FileNotFoundError:
            message = f"{shown}: no such file (see `regiondh check-dataset --help`)"
            if problems is None:
                raise InputNotFoundError(message) from None
            problems.append(message)
            return []
        except RegionDHError as error:
            on_defect(str(error))
            return []
        reader = _Reader(content, Folder(self.images), on_defect, self.published)
        records = reader.read()
        self._learn_classes(reader, on_defect)
        lines = [*reader.notes, *reader.clipped.notes()]
        log_notes((f"{shown}: {line}" for line in lines), notes, __name__)
        return records

    def _learn_classes(self, reader: _Reader, on_defect: Callable[[str], None]) -> None:
        if not reader.class_names:
            return
        metadata = MetadataCatalog.get(self.name)
        for key, value in (
            ("thing_classes", reader.class_names),
            ("thing_dataset_id_to_contiguous_id", reader.position_of),
        ):
            known = metadata.get(key)
            if known is None:
                metadata.set(**{key: value})
            elif type(value)(known) != value:
                on_defect(
                    f"categories are {reader.class_names} with ids {list(reader.position_of)}, but"
                    f" the dataset {self.name!r} is registered with {key} {known}: correct one"
                )
                return


def coco_source(name: str) -> COCOSource | None:
    """The source of a dataset that Detectron2's own function registered, or None."""
    if name not in DatasetCatalog.list():
        return None
    if getattr(DatasetCatalog[name], "__module__", None) != _REGISTRAR:
        return None
    metadata = MetadataCatalog.get(name)
    json_file, images = metadata.get("json_file"), metadata.get("image_root")
    if json_file is None or images is None or metadata.get("evaluator_type") != "coco":
        return None
    return COCOSource(name, os.fspath(json_file), os.fspath(images), name in _PUBLISHED)


# --------------------------------------------------------------------------------------------------
# Reading


def _read_json(path: str) -> Any:
    data = Path(path).read_bytes()
    if not data.strip():
        raise RegionDHError("the file is empty: export it again")
    text = decode_text(data)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RegionDHError(
            f"not complete JSON (line {error.lineno}, column {error.colno}: {error.msg}): export"
            " it again"
        ) from None
    except (RecursionError, ValueError):  # the latter: a number of thousands of digits
        raise RegionDHError("not COCO format: export it again") from None


class _Reader:
    """Reads the content of one file.

    Attributes:
        class_names: the names of the categories by ascending id.
        position_of: category ids to positions among the classes.
        clipped: boxes that reach beyond their images.
        notes: further lines for the user.
    """

    def __init__(
        self, content: Any, folder: Folder, on_defect: Callable[[str], None], published: bool
    ):
        self._content = content
        self._folder = folder
        self._on_defect = on_defect
        self._published = published
        self._left_out: list[str] = []
        self._spoiled_categories: set[int | str] = set()
        self.class_names: list[str] = []
        self.position_of: dict[int, int] = {}
        self.clipped = ClippedBoxes()
        self.notes: list[str] = []

    def read(self) -> list[dict]:
        """The dicts, without defective `annotations`."""
        lists = self._lists()
        if lists is None:
            return []
        images, annotations, categories = lists
        self._read_categories(categories)
        records, spoiled = self._read_images(images)
        used = self._read_annotations(annotations, records, spoiled)
        self._note_unused(categories, used)
        if self._left_out:
            self.notes.append(
                f"{len(self._left_out)} objects with a defect are left out; first"
                f" {self._left_out[0]}"
            )
        return [records[i] for i in sorted(records, key=lambda i: (isinstance(i, str), i))]

    def _lists(self) -> tuple[list, list, list] | None:
        if not isinstance(self._content, dict):
            self._on_defect(
                f"not COCO format: expected an object with images, annotations and categories, got"
                f" {show(self._content)}"
            )
            return None
        lists = []
        for key in ("images", "annotations", "categories"):
            value = self._content.get(key)
            if key not in self._content:
                self._on_defect(
                    f"{key} is missing: COCO format has images, annotations, categories"
                )
            elif not isinstance(value, list):
                self._on_defect(f"{key} must be a list, got {show(value)}")
            elif key != "annotations" and not value:
                self._on_defect(f"{key} is an empty list: a dataset needs some")
            else:
                lists.append(value)
        return (lists[0], lists[1], lists[2]) if len(lists) == 3 else None

    def _read_categories(self, categories: list) -> None:
        names: dict[int, str] = {}
        for index, category in enumerate(categories):
            where, number = f"categories[{index}]", None
            try:
                check_object(category)
                name = category.get("name")
                if isinstance(name, str):
                    where += f" ({display_name(name)})"
                number = read_id(field(category, "id"))
                if not isinstance(number, int):
                    number = None
                    raise Defect(f"id must be a whole number, got {show(category['id'])}")
                if number in names:
                    other, number = display_name(names[number]), None
                    raise Defect(f"id {category['id']} is also the id of {other}: renumber them")
                if not isinstance(name, str) or not name.strip():
                    raise Defect(f"name must be text, got {show(name)}")
                if not is_unicode(name):
                    raise Defect(f"name {show(name)} has half a letter: write it again")
                if name in names.values():
                    raise Defect("another category has the same name: rename or join them")
                names[number] = name
            except Defect as defect:
                if number is not None:
                    self._spoiled_categories.add(number)
                self._on_defect(f"{where}: {defect}")
        self.class_names = [names[number] for number in sorted(names)]
        self.position_of = {number: place for place, number in enumerate(sorted(names))}

    def _read_images(self, images: list) -> tuple[dict[int | str, dict], set[int | str]]:
        """The records by id, and the ids of images with a defect."""
        records: dict[int | str, dict] = {}
        spoiled: set[int | str] = set()
        id_of: dict[str, int | str] = {}  # by file, so far
        for index, image in enumerate(images):
            where, number = f"images[{index}]", None
            try:
                check_object(image)
                name = image.get("file_name")
                if isinstance(name, str):
                    where += f" ({display_name(name)})"
                number = read_id(field(image, "id"))
                if number is None:
                    raise Defect(f"id must be a number or text, got {show(image['id'])}")
                if number in records:
                    other = display_name(records[number]["file_name"])
                    raise Defect(f"id {show(number)} is also the id of {other}: renumber them")
                if not isinstance(field(image, "file_name"), str) or not name.strip():
                    raise Defect(f"file_name must be text, got {show(name)}")
                width, height = (read_side(image, key) for key in ("width", "height"))
                path = self._folder.find(name) or self._folder.find_tail(name)
                if path is None:
                    raise Defect(
                        f"file_name: there is no such image in {display_name(self._folder.path)}:"
                        " add it, drop the entry, or name the right folder"
                    )
                first = id_of.setdefault(os.path.normpath(path), number)
                if first != number:
                    raise Defect(
                        f"file_name: image id {show(first)} has the same file: drop one of them"
                    )
            except Defect as defect:
                if number is not None:
                    spoiled.add(number)
                self._on_defect(f"{where}: {defect}")
                continue
            records[number] = {
                "file_name": path,
                "height": height,
                "width": width,
                "image_id": number,
                "annotations": [],
            }
        return records, spoiled

    def _read_annotations(
        self, annotations: list, records: dict[int | str, dict], spoiled: set
    ) -> set[int]:
        """Put the annotations into their records; return the positions of the classes in use."""
        seen: set[int | str] = set()
        used: set[int] = set()
        for index, annotation in enumerate(annotations):
            where = f"annotations[{index}]"
            try:
                check_object(annotation)
                number = read_id(field(annotation, "id"))
                if number is not None:
                    where += f" (id {show(number)})"
                image_id = read_id(annotation.get("image_id"))
                record = None if image_id is None else records.get(image_id)
                if record is not None:
                    where += f" of image {display_name(record['file_name'])}"
                if number is None:
                    raise Defect(f"id must be a number or text, got {show(annotation['id'])}")
                if number in seen:
                    raise Defect("another annotation has the same id: renumber them")
                seen.add(number)
                field(annotation, "image_id")
                if record is None:
                    if image_id in spoiled:
                        continue  # the image's defect is listed already
                    raise Defect(f"image_id {show(annotation['image_id'])} is not in images")
                if read_id(annotation.get("category_id")) in self._spoiled_categories:
                    continue  # the category's defect is listed already
                read, clipped = self._read_object(annotation, record)
            except Defect as defect:
                if self._published:
                    self._left_out.append(f"{where}: {defect}")
                else:
                    # Without an id of the annotation, name its image.
                    image_id = read_id(get(annotation, "image_id"))
                    known = None if image_id is None else records.get(image_id)
                    if known is not None and " of image " not in where:
                        where += f" of image {display_name(known['file_name'])}"
                    self._on_defect(f"{where}: {defect}")
                continue
            record["annotations"].append(read)
            used.add(read["category_id"])
            if clipped:
                self.clipped.add(where)
        return used

    def _read_object(self, annotation: dict, record: dict) -> tuple[dict, bool]:
        category = field(annotation, "category_id")
        position = self._position(category)
        if position is None:
            known = ", ".join(map(str, self.position_of))
            raise Defect(f"category_id {show(category)} is not in categories; known: {known}")
        box, clipped = read_box(field(annotation, "bbox"), record["width"], record["height"])
        crowd = annotation.get("iscrowd") or 0
        if crowd not in (0, 1) or isinstance(crowd, str):
            raise Defect(f"iscrowd must be 0 or 1, got {show(crowd)}")
        if annotation.get("ignore") or 0:
            raise Defect("ignore isn't supported: delete the object, or set iscrowd to 1")
        area = annotation.get("area")
        if area is None:
            area = box[2] * box[3]
        elif not is_number(area) or not math.isfinite(area) or area < 0:
            raise Defect(f"area must be a number of pixels, got {show(area)}")
        read = {
            "iscrowd": int(crowd),
            "bbox": box,
            "category_id": position,
            "bbox_mode": BoxMode.XYWH_ABS,
            "area": area,
        }
        segmentation = read_segmentation(annotation.get("segmentation"))
        if segmentation:
            read["segmentation"] = segmentation
        keypoints = annotation.get("keypoints")
        if keypoints:
            if not isinstance(keypoints, list) or not all(map(is_number, keypoints)):
                raise Defect(f"keypoints must be numbers, got {show(keypoints)}")
            # As Detectron2 does: COCO's pixel indices become pixel centers.
            read["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(keypoints)]
        return read, clipped

    def _position(self, category_id: Any) -> int | None:
        """The position of a category among the classes; None if no category has the id."""
        number = read_id(category_id)
        return self.position_of.get(number) if isinstance(number, int) else None

    def _note_unused(self, categories: list, used: set[int]) -> None:
        """Note an unused category that some tools write as a heading of all others."""
        for category in categories:
            position = self._position(get(category, "id"))
            # Roboflow and LabelMe's converter write it like this.
            heading = (
                get(category, "supercategory") == "none" or get(category, "name") == "_background_"
            )
            if position is not None and heading and position not in used and not self._published:
                self.notes.append(
                    f"category {category['id']} ({display_name(category['name'])}) has no object;"
                    " it is a class all the same: delete it if it is only the others' heading"
                )
