"""Rows of code sets: several sets joined in one, or some rows of a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .code_roots import join_roots, with_distinct_roots
from .codes import (
    COLUMNS,
    INSTANCE_COLUMNS,
    SHA256_BYTES,
    THUMBNAIL_SIDE,
    CodeFileError,
    CodeSet,
    InstanceCodes,
)

__all__ = ["concatenate_instances", "join_code_sets", "take_rows"]

_ZEROS_WHERE_UNKNOWN = {"content_sha256": SHA256_BYTES, "thumbnails": THUMBNAIL_SIDE**2}
"""The width of columns that only some of the sets may have."""


def join_code_sets(code_sets: Sequence[CodeSet]) -> CodeSet:
    """Join the rows of code sets in order, with the attributes of the first set.

    Raises:
        CodeFileError: the codes are of different models, settings or datasets, the sets have
            different columns, or they have too many roots together.
    """
    first = code_sets[0]
    for name in ("bits", "dataset", "count_difficult", "model_fingerprint", "settings"):
        if any(getattr(other, name) != getattr(first, name) for other in code_sets):
            raise CodeFileError(f"codes of different {name} cannot be joined in one set")
    if any(list(other.class_names) != list(first.class_names) for other in code_sets):
        raise CodeFileError("codes of different class_names cannot be joined in one set")

    def column(name: str) -> np.ndarray | None:
        values = [getattr(code_set, name) for code_set in code_sets]
        if all(value is None for value in values):
            return None
        if name in _ZEROS_WHERE_UNKNOWN:
            width = _ZEROS_WHERE_UNKNOWN[name]
            values = [
                np.zeros((len(code_set), width), np.uint8) if value is None else value
                for value, code_set in zip(values, code_sets, strict=True)
            ]
        if any(value is None for value in values):
            raise CodeFileError(f"codes with {name} cannot be joined with codes without")
        return np.concatenate(values)

    instances = []
    start = 0
    for code_set in code_sets:
        found = code_set.instances
        if found is not None:
            instances.append(replace(found, image_index=found.image_index + start))
        start += len(code_set)
    if len({part.bits for part in instances}) > 1:
        raise CodeFileError("codes with instances of different bits cannot be joined in one set")
    roots, root_index = join_roots(code_sets)
    weights = [part.class_weights for part in code_sets if part.class_weights is not None]
    if any(not np.array_equal(weights[0], other) for other in weights):
        raise CodeFileError(
            "codes with different class_weights cannot be joined in one set: they are of two models"
        )
    columns: dict[str, Any] = {name: column(name) for name in COLUMNS if name != "root_index"}
    return replace(
        first,
        **columns,
        image_ids=[image_id for code_set in code_sets for image_id in code_set.image_ids],
        file_names=[name for code_set in code_sets for name in code_set.file_names],
        instances=concatenate_instances(instances) if instances else None,
        roots=roots,
        root_index=root_index,
        class_weights=weights[0] if weights else None,
        shard=first.shard if len({part.shard for part in code_sets}) == 1 else "",
    )


def concatenate_instances(parts: Sequence[InstanceCodes]) -> InstanceCodes:
    """The objects of all parts, which have the same number of bits and count the same images."""
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in INSTANCE_COLUMNS
    }
    return replace(parts[0], **columns)


def take_rows(code_set: CodeSet, rows: Sequence[int] | np.ndarray) -> CodeSet:
    """Some rows of a code set, in the order given, each with its instances.

    Args:
        code_set: the codes to choose from.
        rows: row numbers, with repetitions if wanted.
    """
    rows = np.asarray(rows, np.int64)
    columns = {name: getattr(code_set, name) for name in COLUMNS}
    taken_columns: dict[str, Any] = {
        name: None if values is None else values[rows] for name, values in columns.items()
    }
    instances = code_set.instances
    if instances is not None:
        # Instances of row r are order[first[r]], order[first[r] + 1] and so on, count[r] of them.
        order = np.argsort(instances.image_index, kind="stable")
        count = np.bincount(instances.image_index, minlength=len(code_set)).astype(np.int64)
        first = np.cumsum(count) - count
        taken = count[rows]
        start = np.cumsum(taken) - taken
        picked = order[np.arange(taken.sum()) + np.repeat(first[rows] - start, taken)]
        instance_columns: dict[str, Any] = {
            name: getattr(instances, name)[picked] for name in INSTANCE_COLUMNS
        }
        instance_columns["image_index"] = np.repeat(np.arange(len(rows)), taken)
        instances = replace(instances, **instance_columns)
    return with_distinct_roots(
        replace(
            code_set,
            **taken_columns,
            image_ids=[code_set.image_ids[row] for row in rows],
            file_names=[code_set.file_names[row] for row in rows],
            instances=instances,
        )
    )
