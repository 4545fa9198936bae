"""Registers and loads datasets. Registering twice is harmless; loading can collect all problems.

A *source* is a frozen dataclass that describes a dataset completely and loads it. Two equal sources
are the same dataset.
"""

from __future__ import annotations

import difflib
import os
from typing import Any, Protocol

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..utils.errors import RegionDHError
from .coco import COCOSource, coco_source


class DatasetSource(Protocol):
    """What `register_source` needs of a dataset description."""

    def load(self, problems: list[str] | None = None, notes: list[str] | None = None) -> list[dict]:
        """Return the dataset dicts.

        Args:
            problems: None raises at the first defect. A list receives a line for each defect
                instead, and the defective parts are left out.
            notes: receives a line about each oddity that is no defect, such as boxes that are
                clipped to their image. None logs these lines as warnings.
        """


_SOURCES: dict[str, DatasetSource] = {}


def register_source(name: str, source: DatasetSource, **metadata: Any) -> None:
    """Register `source` as dataset `name`; a repeated call with an equal source does nothing.

    Args:
        name: the name in Detectron2's catalogs.
        source: the dataset. Nothing is loaded before somebody asks for the dicts.
        metadata: attributes for `MetadataCatalog.get(name)`.

    Raises:
        ValueError: the name is taken by a different dataset.
    """
    if name in DatasetCatalog.list():
        if find_source(name) == source:
            return
        raise RegionDHError(
            f"dataset name {name!r} is already registered for something else"
            f" ({find_source(name) or 'by other code'}): choose another name"
        )
    DatasetCatalog.register(name, source.load)
    _SOURCES[name] = source
    MetadataCatalog.get(name).set(**metadata)


def register_coco(name: str, json_file: str | os.PathLike, images: str | os.PathLike) -> None:
    """Register a detection dataset in COCO format; nothing is read before the dataset is used.

    Args:
        name: dataset name, not yet taken. Repeating a registration does nothing.
        json_file: the annotations.
        images: the folder to which the `file_name` of each image is relative.

    Raises:
        RegionDHError: another dataset has that name.
    """
    source = COCOSource(name, os.fspath(json_file), os.fspath(images))
    register_source(
        name,
        source,
        json_file=source.json_file,
        image_root=source.images,
        evaluator_type="coco",
    )


def adopt(name: str) -> None:
    """Let our strict reader read a dataset that Detectron2's `register_coco_instances` registered.

    From then on `DatasetCatalog.get(name)` checks the files. Other datasets and unknown names stay
    as they are.
    """
    source = coco_source(name)
    if source is not None:
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, source.load)


def find_source(name: str) -> DatasetSource | None:
    """The source behind a name: registered here, or adopted; None for a dataset of other code."""
    if name not in DatasetCatalog.list():
        return None
    source = _SOURCES.get(name)
    if source is not None and DatasetCatalog[name] == source.load:
        return source
    source = getattr(DatasetCatalog[name], "__self__", None)
    return source if isinstance(source, COCOSource) else None


def load_dataset(
    name: str, problems: list[str] | None = None, notes: list[str] | None = None
) -> list[dict]:
    """Load any registered dataset; `problems` and `notes` as in `DatasetSource.load`.

    Datasets that other code registered can't collect problems: they raise their own errors.

    Raises:
        RegionDHError: no dataset of this name is registered.
    """
    require_dataset(name)
    adopt(name)
    source = find_source(name)
    if source is None or (problems is None and notes is None):
        return DatasetCatalog.get(name)
    return source.load(problems, notes)


def registered_names() -> list[str]:
    """The names that were registered here, in the order of registration."""
    return [name for name in _SOURCES if find_source(name) is _SOURCES[name]]


def require_dataset(name: str, told: str = "dataset") -> None:
    """Check that a dataset is registered, here or by other code.

    Args:
        name: of the dataset.
        told: text before the name in the message, such as the option.

    Raises:
        RegionDHError: it isn't registered; the message lists the names that were registered here.
    """
    known = DatasetCatalog.list()
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    raise RegionDHError(
        f"{told} {name!r}, which isn't registered; known: {', '.join(registered_names())}, and "
        "Detectron2's own; --import MODULE_OR_FILE imports the code that registers yours"
        f"{f'; did you mean {near[0]}?' if near else ''}"
    )
