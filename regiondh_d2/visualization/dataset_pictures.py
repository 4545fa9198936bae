"""Pictures of a dataset's ground truth: boxes, classes, roles and labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import sqrt

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import BoxMode
from detectron2.utils.colormap import colormap
from PIL import Image

from ..config import DEFAULT_MAX_PIXELS
from ..data.retrieval import with_labels
from ..data.training import StrictMapper
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from .draw import Label, draw_above, draw_box, draw_labels

__all__ = ["draw_record", "draw_training_input"]

# A small image is enlarged until its shorter or its longer side has this size in pixels. Otherwise
# text would hide it.
_SHORT_SIDE, _LONG_SIDE = 480, 4000
# In pixels, for a picture of up to a megapixel; more in a larger one, which viewers scale down.
_CAPTION_SIZE, _LABEL_SIZE, _LINE_WIDTH = 18, 15, 3
_COLORS = [tuple(map(int, color)) for color in colormap(rgb=True, maximum=255)]


def draw_record(
    record: dict, class_names: Sequence[str], max_pixels: int = DEFAULT_MAX_PIXELS
) -> Image.Image:
    """An image with its ground truth, under a caption of its role, name and labels.

    Boxes of a class have one color; those of difficult objects and of crowds are dashed.

    Args:
        record: a dataset dict; ``role`` and ``annotations`` may be absent.
        class_names: names by class id.
        max_pixels: as ``MODEL.REGION_DH.MAX_PIXELS``.

    Returns:
        An RGB image. A small image is enlarged: its shorter side has at least 480 pixels, unless
        its longer one has 4,000.

    Raises:
        UnreadableImageError: the image is missing, damaged, or not of the annotated size.
        RegionDHError: a box holds a number that isn't finite.
    """
    record = with_labels(record)
    boxes = [_xyxy(annotation, record["file_name"]) for annotation in record.get("annotations", ())]
    read = StrictMapper(is_train=False, augmentations=[], image_format="RGB", max_pixels=max_pixels)
    inputs = read(record)
    pixels = inputs["image"].permute(1, 2, 0).numpy()
    # Smaller than the image in the file if that is above the pixel limit.
    scale = pixels.shape[1] / inputs["width"], pixels.shape[0] / inputs["height"]
    return _draw(pixels, record, [box * (scale * 2) for box in boxes], class_names)


def draw_training_input(inputs: dict, class_names: Sequence[str], image_format: str) -> Image.Image:
    """As :func:`draw_record`, for an augmented image as the network gets it in training.

    Difficult objects are not marked, since the training loader drops the flag.

    Args:
        inputs: from the training loader, with ``image``, and ``instances`` or ``image_labels``.
        class_names: names by class id.
        image_format: ``INPUT.FORMAT`` of the loader.
    """
    record, boxes = {"file_name": inputs["file_name"]}, []
    if "instances" in inputs:
        truth = inputs["instances"]
        record["annotations"] = [{"category_id": i} for i in truth.gt_classes.tolist()]
        boxes = truth.gt_boxes.tensor.numpy()
    else:
        record["image_labels"] = inputs["image_labels"]
    pixels = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), image_format)
    return _draw(pixels, with_labels(record), boxes, class_names)


def _draw(
    pixels: np.ndarray, record: dict, boxes: Sequence[np.ndarray], class_names: Sequence[str]
) -> Image.Image:
    """The boxes of the annotations, XYXY, on uint8 RGB pixels (H, W, 3), and the caption above."""
    height, width = pixels.shape[:2]
    scale = max(1.0, min(_SHORT_SIDE / min(height, width), _LONG_SIDE / max(height, width)))
    picture = Image.fromarray(pixels)
    if scale > 1:
        size = [round(scale * width), round(scale * height)]
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    unit = max(1.0, sqrt(picture.width * picture.height) / 1000)
    labels = []
    for annotation, box in zip(record.get("annotations", ()), boxes, strict=True):
        class_id, marks = annotation["category_id"], _marks(annotation)
        color = _COLORS[class_id % len(_COLORS)]
        box = (scale * box).tolist()
        draw_box(picture, box, color, round(_LINE_WIDTH * unit), dashed=bool(marks))
        labels.append(Label(", ".join([_name(class_id, class_names), *marks]), box, color))
    draw_labels(picture, labels, round(_LABEL_SIZE * unit))
    return draw_above(picture, _caption(record, class_names), round(_CAPTION_SIZE * unit))


def _marks(annotation: dict) -> list[str]:
    """Words to add to an object's class in its label."""
    words = {"difficult": "difficult", "iscrowd": "crowd"}
    return [word for key, word in words.items() if annotation.get(key)]


def _xyxy(annotation: dict, file_name: str) -> np.ndarray:
    """The box of an annotation, float64 (4,), XYXY."""
    box = np.asarray(annotation["bbox"], np.float64)
    if not np.isfinite(box).all():
        raise RegionDHError(
            f"{display_name(file_name)}: bbox {box.tolist()} is no box: correct or drop it"
        )
    return BoxMode.convert(box[None], annotation["bbox_mode"], BoxMode.XYXY_ABS)[0]


def _name(class_id: int, class_names: Sequence[str]) -> str:
    return class_names[class_id] if class_id < len(class_names) else str(class_id)


def _caption(record: dict, class_names: Sequence[str]) -> list[str]:
    """Role, file and labels of an image, in parts between which a line may break."""
    labels = [
        _name(label, class_names) + (" (difficult)" if label in record["difficult_labels"] else "")
        for label in record["image_labels"]
    ]
    role = [f"{record['role']}   "] if "role" in record else []
    name = os.path.basename(record["file_name"])
    commas = [f"{label}, " for label in labels[:-1]] + labels[-1:]
    return [*role, f"{name}   ", *(commas or ["no labels"])]
