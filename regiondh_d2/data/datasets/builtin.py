"""The dataset names that exist as soon as the package is imported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import detectron2.data  # noqa: F401  (registers its own datasets, COCO's among them)

from ..retrieval import register_retrieval_dataset
from ..voc import VOC_CLASSES, register_voc
from .scenes import register_scenes


@dataclass(frozen=True)
class SplitByIdDigest:
    """True for the image ids in some of `parts` equal parts of all ids.

    The part follows from a hash of the id, so it doesn't depend on the other images.
    """

    parts: int
    kept: tuple[int, ...]

    def __call__(self, image_id: str) -> bool:
        digest = hashlib.blake2b(image_id.encode()).digest()
        return int.from_bytes(digest, "big") % self.parts in self.kept


# (detection dataset, folder, list, year, subset)
VOC_DETECTION: Sequence[tuple[str, str, str, int, SplitByIdDigest | None]] = (
    ("regiondh_voc_2007_train", "VOC2007", "train", 2007, None),
    ("regiondh_voc_2007_val", "VOC2007", "val", 2007, None),
    ("regiondh_voc_2007_trainval", "VOC2007", "trainval", 2007, None),
    ("regiondh_voc_2007_test", "VOC2007", "test", 2007, None),
    ("regiondh_voc_2007_train_base", "VOC2007", "train", 2007, SplitByIdDigest(5, (0, 1, 2, 4))),
    ("regiondh_voc_2007_dev", "VOC2007", "train", 2007, SplitByIdDigest(5, (3,))),
    # About 200 images: check first that a recipe can overfit them.
    ("regiondh_voc_2007_overfit", "VOC2007", "train", 2007, SplitByIdDigest(12, (0,))),
    ("regiondh_voc_2007_vala", "VOC2007", "val", 2007, SplitByIdDigest(2, (0,))),
    ("regiondh_voc_2007_valb", "VOC2007", "val", 2007, SplitByIdDigest(2, (1,))),
    ("regiondh_voc_2012_train", "VOC2012", "train", 2012, None),
    ("regiondh_voc_2012_val", "VOC2012", "val", 2012, None),
    ("regiondh_voc_2012_trainval", "VOC2012", "trainval", 2012, None),
)

# (retrieval dataset, database, queries)
VOC_RETRIEVAL: Sequence[tuple[str, str, str]] = (
    (
        "voc_2007_retrieval_trainval_test",
        "regiondh_voc_2007_trainval",
        "regiondh_voc_2007_test",
    ),
    ("voc_2007_retrieval_train_val", "regiondh_voc_2007_train", "regiondh_voc_2007_val"),
    ("voc_2007_retrieval_train_dev", "regiondh_voc_2007_train_base", "regiondh_voc_2007_dev"),
    ("voc_2007_retrieval_overfit", "regiondh_voc_2007_overfit", "regiondh_voc_2007_overfit"),
    ("voc_2007_retrieval_vala_valb", "regiondh_voc_2007_vala", "regiondh_voc_2007_valb"),
    ("voc_2012_retrieval_train_val", "regiondh_voc_2012_train", "regiondh_voc_2012_val"),
)

# Their parts are datasets that Detectron2 registers itself, in the same folder.
COCO_RETRIEVAL: Sequence[tuple[str, str, str]] = (
    ("coco_2017_retrieval_train_val", "coco_2017_train", "coco_2017_val"),
)


def register_builtin() -> None:
    """Register every shipped name; repeating it does nothing.

    The datasets are in `$DETECTRON2_DATASETS`, or in `datasets` if that is not set.
    """
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    for name, folder, split, year, subset in VOC_DETECTION:
        register_voc(name, os.path.join(root, folder), split, VOC_CLASSES, year, subset)
    for name, database, queries in (*VOC_RETRIEVAL, *COCO_RETRIEVAL):
        register_retrieval_dataset(name, database=database, queries=queries)
    register_scenes(os.path.join(root, "scenes"))
