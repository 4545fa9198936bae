"""Checks of code sets: do the arrays of one fit together, and can two be compared?"""

from __future__ import annotations

import numpy as np

from ..config import changes_of_image_codes
from ..utils.errors import RegionDHError
from .code_roots import check_root_count
from .codes import (
    SHA256_BYTES,
    THUMBNAIL_SIDE,
    UNKNOWN,
    CodeFileError,
    CodeSet,
    InstanceCodes,
)
from .packed import check_packed

__all__ = ["check_code_set", "check_comparable", "check_one_file"]


def check_comparable(query: CodeSet, database: CodeSet) -> list[str]:
    """Check that distances between two code sets mean something.

    Returns:
        Warnings, one line each, for what cannot be checked or makes numbers hard to compare.

    Raises:
        CodeFileError: different code lengths, class names, model fingerprints or class weights.
    """
    if query.bits != database.bits:
        raise CodeFileError(
            f"the queries have {query.bits} bits and the database {database.bits}: "
            "encode both with the same model"
        )
    if list(query.class_names) != list(database.class_names):
        raise CodeFileError(
            f"the queries' {len(query.class_names)} class names are not the database's "
            f"{len(database.class_names)}: labels of different classes cannot be compared"
        )
    prints = {query.model_fingerprint, database.model_fingerprint}
    notes = []
    if "" in prints:
        notes.append("a model fingerprint is missing: cannot check that one model made all codes")
    elif len(prints) > 1:
        raise CodeFileError(
            f"the queries were encoded by model {query.model_fingerprint[:12]} and the database by "
            f"{database.model_fingerprint[:12]}: encode both with the same model"
        )
    ours, theirs = query.class_weights, database.class_weights
    if ours is not None and theirs is not None and not np.array_equal(ours, theirs):
        raise CodeFileError(
            "the queries have other class_weights than the database, so two models made the codes: "
            "encode both with the same model"
        )
    changes = changes_of_image_codes(query.settings, database.settings)
    if changes:
        notes.append(
            f"the queries and the database were encoded with different settings: {changes[0]}"
            f"{f' ({len(changes) - 1} more)' if len(changes) > 1 else ''}"
        )
    if query.count_difficult != database.count_difficult:
        notes.append("only one side counts difficult objects as labels")
    return notes


def check_one_file(image_id: str, first: str, second: str) -> None:
    """Check that no image id names two files.

    Raises:
        RegionDHError: the names of the files differ.
    """
    if first != second:
        raise RegionDHError(
            f"image_id {image_id} names two files, {first} and {second}: image ids must be unique"
        )


def check_code_set(code_set: CodeSet) -> None:
    """Check that the arrays of a code set fit together.

    Raises:
        RegionDHError: they don't; the message doesn't name the file.
    """
    rows = len(check_packed("codes", code_set.codes, code_set.bits))
    for name in ("image_ids", "file_names"):
        values = getattr(code_set, name)
        if not isinstance(values, (list, tuple, np.ndarray)) or len(values) != rows:
            raise RegionDHError(f"{name} must be {rows} strings, one a code")
    _check_files(code_set, rows)
    names, labels = code_set.class_names, code_set.labels
    if labels is not None:
        if np.ndim(labels) != 2 or len(labels) != rows:
            raise RegionDHError(f"labels are of shape {np.shape(labels)}, not ({rows}, classes)")
        if len(names) and labels.shape[1] != len(names):
            raise RegionDHError(
                f"labels have {labels.shape[1]} columns for {len(names)} class names"
            )
        if not np.isin(labels, (0, 1)).all():
            raise RegionDHError("labels are not multi-hot: only 0 and 1 are allowed")
    for name, width in (("activations", code_set.bits), ("features", None)):
        values = getattr(code_set, name)
        if values is None:
            continue
        shape = np.shape(values)
        if len(shape) != 2 or shape[0] != rows or shape[1] != (width or shape[1]):
            raise RegionDHError(f"{name} are of shape {shape}, not ({rows}, {width or 'features'})")
        _check_finite(name, values)
    weights = code_set.class_weights
    if weights is not None:
        shape, wanted = np.shape(weights), (code_set.bits + 1, len(names) or "classes")
        if len(shape) != 2 or shape[0] != wanted[0] or shape[1] != (len(names) or shape[1]):
            raise RegionDHError(f"class_weights are of shape {shape}, not {wanted}")
        _check_finite("class_weights", weights)
    if code_set.instances is not None:
        _check_instances(code_set.instances, rows, len(names))


def _check_files(code_set: CodeSet, rows: int) -> None:
    """As :func:`check_code_set`, for the columns about the images' files."""
    wanted: dict[str, tuple[int, ...]] = {
        "root_index": (rows,),
        "size": (rows,),
        "mtime_ns": (rows,),
    }
    if code_set.content_sha256 is not None:
        wanted["content_sha256"] = (rows, SHA256_BYTES)
    if code_set.thumbnails is not None:
        wanted["thumbnails"] = (rows, THUMBNAIL_SIDE**2)
    if code_set.positions is not None:
        wanted["positions"] = (rows,)
    for name, shape in wanted.items():
        values = getattr(code_set, name)
        if np.shape(values) != shape or not np.issubdtype(values.dtype, np.integer):
            raise RegionDHError(
                f"{name} must be integers of shape {shape}, not {values.dtype} of shape "
                f"{np.shape(values)}"
            )
    if rows and not (
        np.min(code_set.root_index) >= 0 and np.max(code_set.root_index) < len(code_set.roots)
    ):
        raise RegionDHError(f"root_index points outside the {len(code_set.roots)} roots")
    if rows and np.min(code_set.size) < UNKNOWN:
        raise RegionDHError(f"size holds {np.min(code_set.size)}")
    check_root_count(len(code_set.roots))
    _ = code_set.relative_paths  # refuses a name that is not below its root


def _check_instances(found: InstanceCodes, images: int, classes: int) -> None:
    """As :func:`check_code_set`, for detected objects; ``classes`` is 0 where unknown."""
    count = len(check_packed("instances/codes", found.codes, found.bits))
    for name, tail in (("image_index", ()), ("boxes", (4,)), ("scores", ()), ("classes", ())):
        shape = np.shape(getattr(found, name))
        if shape != (count, *tail):
            raise RegionDHError(f"instances/{name} is of shape {shape}, not {(count, *tail)}")
    for name in ("boxes", "scores"):
        _check_finite(f"instances/{name}", getattr(found, name))
    if count and not (np.min(found.image_index) >= 0 and np.max(found.image_index) < images):
        raise RegionDHError(f"instances/image_index points outside the {images} images")
    if count and not (np.min(found.classes) >= 0 and np.max(found.classes) < (classes or np.inf)):
        raise RegionDHError(f"instances/classes points outside the {classes} class names")


def _check_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise RegionDHError(f"{name} hold values that are not finite")
