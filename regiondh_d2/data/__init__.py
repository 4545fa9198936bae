"""Datasets: the strict readers of VOC and COCO, retrieval datasets and the generated scenes.

Importing this package registers the shipped names; no file is read before a dataset is used.
"""

from regiondh_d2.data.builtin import register_builtin
from regiondh_d2.data.catalog import register_coco
from regiondh_d2.data.coco import COCOFormatError
from regiondh_d2.data.retrieval import register_retrieval_dataset
from regiondh_d2.data.scenes import SCENE_CLASSES, generate_scenes, register_scenes
from regiondh_d2.data.training import StrictMapper, UnreadableImageError, build_train_loader
from regiondh_d2.data.voc import VOC_CLASSES, VOCFormatError, load_voc, register_voc

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
