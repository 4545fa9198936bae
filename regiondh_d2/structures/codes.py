"""Codes of images and of the objects in them, and where they come from.

Each image is identified by its file: a root (a folder), the path below it, and the file's size and
time of modification when it was encoded. A dataset's images also have an id.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.paths import folder_start

__all__ = [
    "UNKNOWN",
    "CodeFileError",
    "CodeSet",
    "InstanceCodes",
    "check_holds",
    "join_path",
    "path_below",
]

UNKNOWN = -1  # a size or a time of modification that is not known

SHA256_BYTES = 32
THUMBNAIL_SIDE = 12

# A column that was not given. CodeSet replaces it by a column of defaults.
_NOT_GIVEN = np.empty(0, np.int64)

# Arrays with a row for each image, and for each detection.
COLUMNS = (
    *("codes", "labels", "activations", "features"),
    *("root_index", "size", "mtime_ns", "content_sha256", "thumbnails", "positions"),
)
INSTANCE_COLUMNS = ("codes", "image_index", "boxes", "scores", "classes")

# Optional columns: their names in messages, and how to extract them.
_OPTIONAL = {
    "labels": ("labels", "from a labeled dataset"),
    "activations": ("activations", "with --activations"),
    "features": ("features", "with --features"),
    "instances": ("detected objects", "with objects"),
    "positions": ("positions", "with --shard"),
    "class_weights": (
        "class_weights",
        "again, by a network that classifies images from their codes (--resume adds them)",
    ),
}


class CodeFileError(RegionDHError):
    """Codes that cannot be used. The message is one line that names the file and the fix."""


@dataclass
class InstanceCodes:
    """Codes of detected objects.

    Attributes:
        codes: uint8 (M, ceil(bits / 8)).
        bits: code length K1.
        image_index: int64 (M,), row of the image in the :class:`CodeSet`.
        boxes: float32 (M, 4), XYXY in pixels of the original image.
        scores: float32 (M,).
        classes: int64 (M,).
    """

    codes: np.ndarray
    bits: int
    image_index: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


@dataclass
class CodeSet:
    """Codes of images and where they come from.

    If only ``file_names`` are given, the one root is "", and sizes and times are unknown.

    Attributes:
        codes: uint8 (N, ceil(bits / 8)).
        bits: code length K.
        image_ids, file_names: N strings each. A file name is the root joined with the path below
            it.
        labels: multi-hot uint8 (N, C), or None where unknown.
        class_names: C names, or empty where unknown.
        dataset: name of the dataset.
        config: name of the model's configuration.
        count_difficult: whether ``labels`` include classes that only difficult objects show.
        model_fingerprint: sha256 of the model's state dict; codes of two models can't be compared.
        settings: the settings that change the codes, a line "KEY VALUE" each; "" where unknown.
        activations: float16 (N, bits) before binarization, or None.
        features: float16 (N, D), or None.
        instances: codes of detected objects, or None.
        roots: folders to which the paths are relative; "" where there is none.
        root_index: uint16 (N,), the root of each image.
        size: int64 (N,), bytes of each file when it was encoded, or :data:`UNKNOWN`.
        mtime_ns: int64 (N,), its time of modification, in nanoseconds, or :data:`UNKNOWN`.
        content_sha256: uint8 (N, 32), of each file's bytes, zeros where unknown; or None.
        thumbnails: uint8 (N, 144), grays of each photo in 12 rows of 12, zeros where unknown; or
            None. See :mod:`~regiondh_d2.retrieval.duplicates`.
        class_weights: float32 (bits + 1, C), a classifier on the bits, bias last; or None. See
            :mod:`~regiondh_d2.retrieval.class_decoder`.
        positions: int64 (N,), in a shard the place of each image in the list of all, or -1; else
            None.
        shard: which part of a list of images this is, see
            :class:`~regiondh_d2.retrieval.shards.Shard`; "" for all of it.
    """

    codes: np.ndarray
    bits: int
    image_ids: Sequence[str]
    file_names: Sequence[str]
    labels: np.ndarray | None = None
    class_names: Sequence[str] = field(default_factory=list)
    dataset: str = ""
    config: str = ""
    count_difficult: bool = True
    model_fingerprint: str = ""
    settings: str = ""
    activations: np.ndarray | None = None
    features: np.ndarray | None = None
    instances: InstanceCodes | None = None
    roots: Sequence[str] = ("",)
    root_index: np.ndarray = field(default_factory=lambda: _NOT_GIVEN)
    size: np.ndarray = field(default_factory=lambda: _NOT_GIVEN)
    mtime_ns: np.ndarray = field(default_factory=lambda: _NOT_GIVEN)
    content_sha256: np.ndarray | None = None
    thumbnails: np.ndarray | None = None
    class_weights: np.ndarray | None = None
    positions: np.ndarray | None = None
    shard: str = ""

    def __post_init__(self) -> None:
        rows = len(self.codes)
        self.roots = list(self.roots)
        if self.root_index is _NOT_GIVEN:
            self.root_index = np.zeros(rows, np.uint16)
        for name in ("size", "mtime_ns"):
            if getattr(self, name) is _NOT_GIVEN:
                setattr(self, name, np.full(rows, UNKNOWN, np.int64))

    def __len__(self) -> int:
        return len(self.codes)

    def column(self, name: str) -> np.ndarray:
        """An optional column, such as "labels" or "activations", or an error.

        Raises:
            CodeFileError: the code set lacks it.
        """
        check_holds(self, "the codes", name)
        return getattr(self, name)

    def objects(self) -> InstanceCodes:
        """The detected objects, or an error.

        Raises:
            CodeFileError: the code set has none.
        """
        check_holds(self, "the codes", "instances")
        assert self.instances is not None
        return self.instances

    @property
    def relative_paths(self) -> list[str]:
        """The path of each image below its root, with "/" between folders."""
        return [
            path_below(self.roots[root], name)
            for root, name in zip(self.root_index.tolist(), self.file_names, strict=True)
        ]


def check_holds(codes: CodeSet, name: str, *attributes: str) -> None:
    """Check that a code set has the columns that are needed.

    Args:
        codes: the code set.
        name: its name for the message, such as its file.
        attributes: the needed columns: "labels", "activations", "features", "instances" or
            "class_weights".

    Raises:
        CodeFileError: a column is missing.
    """
    for attribute in attributes:
        if getattr(codes, attribute) is None:
            what, how = _OPTIONAL[attribute]
            raise CodeFileError(f"no {what} in {name}: extract the codes {how}")


def join_path(root: str, relative_path: str) -> str:
    """Join a root with a path below it, in which "/" separates folders."""
    return os.path.join(root, relative_path.replace("/", os.sep)) if root else relative_path


def path_below(root: str, file_name: str) -> str:
    """The path of a file below its root, the inverse of :func:`join_path`.

    Raises:
        RegionDHError: the file is not below the root.
    """
    if not root:
        return file_name
    start = folder_start(root)
    if not file_name.startswith(start):
        raise RegionDHError(f"{display_name(file_name)} is not below {display_name(root)}")
    return file_name[len(start) :].replace(os.sep, "/")
