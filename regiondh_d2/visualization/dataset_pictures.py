"""Pictures of what a dataset says about its images, by Detectron2's ``Visualizer``.

Not imported with the package: it needs matplotlib and OpenCV.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import BoxMode
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from matplotlib import rc_context
from PIL import Image

from regiondh_d2.data.retrieval import with_labels
from regiondh_d2.data.training import StrictMapper
from regiondh_d2.utils.text import draw_text, drawable, font_families, text_width

__all__ = ["draw_record", "draw_training_input"]

_SHORT_SIDE = 480  # small images are enlarged to it, or text would hide them
_COLORS = colormap(rgb=True, maximum=1)
_FONT_SIZE, _BOX_FONT_SIZE = 18, 13
_INK, _PAPER = (33, 37, 41), (240, 241, 243)


def draw_record(record: dict, class_names: Sequence[str]) -> Image.Image:
    """An image with its ground truth, under a line of its role, name and labels.

    Boxes of a class have one color; those of difficult objects and of crowds are dashed.

    Args:
        record: a dataset dict; ``role`` and ``annotations`` may be absent.
        class_names: names by class id.

    Returns:
        An RGB image, the shorter side of the picture at least 480 pixels.

    Raises:
        UnreadableImageError: the image is missing, damaged, or not of the annotated size.
    """
    record = with_labels(record)
    inputs = StrictMapper(is_train=False, augmentations=[], image_format="RGB")(record)
    pixels = inputs["image"].permute(1, 2, 0).numpy()
    # Smaller than the file's image where that is above the pixel limit.
    scale = pixels.shape[1] / inputs["width"], pixels.shape[0] / inputs["height"]
    annotations = [
        {**annotation, "bbox": _xyxy(annotation) * (scale * 2), "bbox_mode": BoxMode.XYXY_ABS}
        for annotation in record.get("annotations", ())
    ]
    return _draw(pixels, {**record, "annotations": annotations}, class_names)


def draw_training_input(inputs: dict, class_names: Sequence[str], image_format: str) -> Image.Image:
    """As :func:`draw_record`, for an augmented image as the network gets it in training.

    Which objects are difficult isn't known any more.

    Args:
        inputs: from the training loader, with ``image`` and ``instances``.
        class_names: names by class id.
        image_format: ``INPUT.FORMAT`` of the loader.
    """
    truth = inputs["instances"]
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": class_id}
        for box, class_id in zip(
            truth.gt_boxes.tensor.tolist(), truth.gt_classes.tolist(), strict=True
        )
    ]
    record = with_labels({"file_name": inputs["file_name"], "annotations": annotations})
    pixels = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), image_format)
    return _draw(pixels, record, class_names)


def _draw(pixels: np.ndarray, record: dict, class_names: Sequence[str]) -> Image.Image:
    """Boxes on uint8 RGB pixels (H, W, 3), and the line above."""
    canvas = Visualizer(pixels, scale=max(1.0, _SHORT_SIDE / min(pixels.shape[:2])))
    with rc_context({"font.sans-serif": font_families(drawable("".join(class_names)))}):
        for annotation in record.get("annotations", ()):
            _draw_object(canvas, annotation, class_names)
        picture = Image.fromarray(canvas.get_output().get_image())
    return _put_above(picture, _describe(record, class_names))


def _draw_object(canvas: Visualizer, annotation: dict, class_names: Sequence[str]) -> None:
    class_id = annotation["category_id"]
    box = _xyxy(annotation)
    color = _COLORS[class_id % len(_COLORS)]
    marks = [
        mark
        for key, mark in (("difficult", "difficult"), ("iscrowd", "crowd"))
        if annotation.get(key)
    ]
    canvas.draw_box(box, alpha=0.9, edge_color=color, line_style="--" if marks else "-")
    text = ", ".join([_name(class_id, class_names), *marks])
    canvas.draw_text(
        drawable(text).replace("$", r"\$"),  # between two of which matplotlib reads formulas
        tuple(box[:2]),
        font_size=_BOX_FONT_SIZE / canvas.output.scale,  # the canvas scales text, too
        color=color,
        horizontal_alignment="left",
    )


def _xyxy(annotation: dict) -> np.ndarray:
    """The box of an annotation, float (4,), XYXY."""
    box = np.asarray(annotation["bbox"], np.float64)[None]
    return BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)[0]


def _name(class_id: int, class_names: Sequence[str]) -> str:
    return class_names[class_id] if class_id < len(class_names) else str(class_id)


def _describe(record: dict, class_names: Sequence[str]) -> str:
    """Role, file and labels of an image, in a line."""
    labels = [
        _name(label, class_names) + (" (difficult)" if label in record["difficult_labels"] else "")
        for label in record["image_labels"]
    ]
    role = [record["role"]] if "role" in record else []
    name = os.path.basename(record["file_name"])
    return "   ".join([*role, name, ", ".join(labels) or "no labels"])


def _put_above(picture: Image.Image, text: str) -> Image.Image:
    """The picture under a line of text."""
    margin, height = _FONT_SIZE // 2, 2 * _FONT_SIZE
    text = drawable(text)
    width = max(picture.width, 2 * margin + round(text_width(text, _FONT_SIZE)))
    framed = Image.new("RGB", (width, height + picture.height), _PAPER)
    framed.paste(picture, (0, height))
    draw_text(framed, (margin, (height - _FONT_SIZE) // 2 - 2), text, _FONT_SIZE, _INK)
    return framed
