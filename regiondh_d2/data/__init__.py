"""Datasets: the strict readers of VOC and COCO, retrieval datasets and the generated scenes.

Importing this package registers the shipped names; no file is read before a dataset is used.
"""

from .catalog import register_coco
from .coco import COCOFormatError
from .datasets.builtin import register_builtin
from .datasets.scenes import SCENE_CLASSES, generate_scenes, register_scenes
from .retrieval import register_retrieval_dataset
from .training import StrictMapper, UnreadableImageError, build_train_loader
from .voc import VOC_CLASSES, VOCFormatError, load_voc, register_voc

__all__ = [
    "COCOFormatError",
    "SCENE_CLASSES",
    "StrictMapper",
    "UnreadableImageError",
    "VOC_CLASSES",
    "VOCFormatError",
    "build_train_loader",
    "generate_scenes",
    "load_voc",
    "register_coco",
    "register_retrieval_dataset",
    "register_scenes",
    "register_voc",
]

register_builtin()
