"""The collections of an index folder in a Milvus server.

An index folder names two collections of each generation, ``NAME_image_G`` and ``NAME_instance_G``.
Those of the generation before stay on the server, for the readers that have it open. The codes also
are in the folder's code file, from which a collection can be made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..structures.codes import CodeSet
from .engines import ENGINES, MilvusIndex, create_index
from .index_file import IndexFileError
from .queries import name_of_class

__all__ = [
    "attach_collection",
    "build_collection",
    "drop_collections",
    "earlier_collections",
    "is_in_server",
]


def is_in_server(engine: str) -> bool:
    """Whether an index folder of this engine has its index in a server."""
    # The engine itself tells of a wrong name.
    return engine in ENGINES and "collection" in ENGINES[engine].options


def build_collection(
    items: CodeSet,
    granularity: str,
    codes: np.ndarray,
    bits: int,
    options: Mapping[str, Any],
    generation: int,
) -> MilvusIndex:
    """The index of a new generation; a collection that a killed build has begun is completed.

    Args:
        items, granularity: what to index.
        codes, bits: its codes.
        options: of the engine, with the name of the collections.
        generation: of the folder.

    Raises:
        MilvusError: the server can't be used, or a collection of this name has other codes.
    """
    name = f"{options.get('collection') or ''}_{granularity}_{generation}"
    index = _index(bits, {**options, "collection": name}, codes)
    if index.next_row == 0:
        index.add(codes, _fields(items, granularity))
    _check_count(index, len(codes))
    return index


def attach_collection(
    codes: np.ndarray, bits: int, options: Mapping[str, Any], collection: str
) -> MilvusIndex:
    """The index in a collection that :func:`build_collection` made.

    Raises:
        MilvusError: the server can't be used, or lacks the collection, or it has other codes.
        IndexFileError: it has another number of codes.
    """
    index = _index(bits, {**options, "collection": collection, "must_exist": True}, codes)
    _check_count(index, len(codes))
    return index


def _index(bits: int, options: Mapping[str, Any], codes: np.ndarray) -> MilvusIndex:
    owner = hashlib.sha256(np.ascontiguousarray(codes).data).hexdigest()
    index = create_index(bits, "milvus", **{**options, "owner": owner})
    assert isinstance(index, MilvusIndex)
    return index


def _check_count(index: MilvusIndex, count: int) -> None:
    if len(index) != count:
        raise IndexFileError(
            f"Milvus at {index.uri}: collection {index.collection} has {len(index)} codes and the "
            f"code file {count}; build the index again with another --collection"
        )


def earlier_collections(record: Mapping[str, Any] | None, uri: str) -> tuple[list[str], list[str]]:
    """The collections that a folder's record names on this server: its own, and the ones before."""
    if record is None or record["engine"] != "milvus" or record["options"].get("uri") != uri:
        return [], []
    own = [numbers["collection"] for numbers in record["levels"].values()]
    return own, list(record.get("previous_collections", ()))


def drop_collections(index: MilvusIndex, names: Sequence[str]) -> None:
    """Delete collections that no folder names any more from the server of an index."""
    for name in names:
        index.drop(name)


def _fields(items: CodeSet, granularity: str) -> dict[str, Sequence[Any]]:
    """The values that the server keeps beside the codes, see :data:`.milvus_engine.FIELDS`."""
    names = items.class_names
    if granularity == "image":
        fields: dict[str, Sequence[Any]] = {"image_id": items.image_ids}
        if items.labels is not None:
            fields["class_name"] = [
                ",".join(name_of_class(names, int(i)) for i in np.flatnonzero(row))
                for row in items.labels
            ]
        return fields
    found = items.objects()
    boxes = found.boxes.T
    return {
        "image": found.image_index,
        "image_id": [items.image_ids[image] for image in found.image_index],
        "class_id": found.classes,
        "class_name": [name_of_class(names, int(i)) for i in found.classes],
        "score": found.scores,
        **dict(zip(("x1", "y1", "x2", "y2"), boxes, strict=True)),
    }
