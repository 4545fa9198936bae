"""Codes of images and of the objects in them, and where they come from.

Each image is identified by its file: a root (a folder), the path below it, and the file's size and
time of modification when it was encoded. A dataset's images also have an id.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..config import changes_of_image_codes
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from ..utils.paths import folder_start, is_below
from .packed import check_packed, pack_codes

__all__ = [
    "UNKNOWN",
    "CodeFileError",
    "CodeSet",
    "InstanceCodes",
    "check_code_set",
    "check_comparable",
    "check_holds",
    "check_one_file",
    "check_root_count",
    "codes_from_outputs",
    "join_code_sets",
    "join_path",
    "move_root",
    "take_rows",
]

UNKNOWN = -1  # a size or a time of modification that is not known

SHA256_BYTES = 32
_MAX_ROOTS = 1 << 16  # root_index is uint16

# A column that was not given. CodeSet replaces it by a column of defaults.
_NOT_GIVEN = np.empty(0, np.int64)

# Arrays with a row for each image, and for each detection.
_COLUMNS = (
    *("codes", "labels", "activations", "features"),
    *("root_index", "size", "mtime_ns", "content_sha256", "positions"),
)
_INSTANCE_COLUMNS = ("codes", "image_index", "boxes", "scores", "classes")

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
            _below(self.roots[root], name)
            for root, name in zip(self.root_index.tolist(), self.file_names, strict=True)
        ]


def join_path(root: str, relative_path: str) -> str:
    """Join a root with a path below it, in which "/" separates folders."""
    return os.path.join(root, relative_path.replace("/", os.sep)) if root else relative_path


def _below(root: str, file_name: str) -> str:
    """The inverse of :func:`join_path`.

    Raises:
        RegionDHError: the file is not below the root.
    """
    if not root:
        return file_name
    start = folder_start(root)
    if not file_name.startswith(start):
        raise RegionDHError(f"{display_name(file_name)} is not below {display_name(root)}")
    return file_name[len(start) :].replace(os.sep, "/")


def move_root(code_set: CodeSet, old: str, new: str) -> CodeSet:
    """The code set after a folder of photos was moved. No photo is read.

    Args:
        code_set: the codes.
        old: the folder before the move: a root, or a folder above or below one.
        new: where that folder is now.

    Raises:
        CodeFileError: no image is in ``old``.
    """
    if not any(is_below(name, old) for name in code_set.file_names):
        known = ", ".join(display_name(root) for root in code_set.roots if root) or "none"
        raise CodeFileError(f"no image is in {display_name(old)}; the roots are: {known}")

    def moved(path: str) -> str:
        return new + path[len(old) :] if is_below(path, old) else path

    names = [moved(name) for name in code_set.file_names]
    # A root above ``old`` stays for the photos that have not moved; the others get ``new``.
    roots = list(dict.fromkeys([*map(moved, code_set.roots), new]))
    position = {root: i for i, root in enumerate(roots)}
    root_index = [
        position[moved(root) if not root or is_below(name, moved(root)) else new]
        for root, name in zip((code_set.roots[i] for i in code_set.root_index), names, strict=True)
    ]
    # The id of a photo that is in no dataset is its file name.
    ids = [
        name if image_id == before else image_id
        for image_id, before, name in zip(
            code_set.image_ids, code_set.file_names, names, strict=True
        )
    ]
    check_root_count(len(roots))
    return _with_distinct_roots(
        replace(
            code_set,
            image_ids=ids,
            file_names=names,
            roots=roots,
            root_index=np.array(root_index, np.uint16),
        )
    )


def _with_distinct_roots(code_set: CodeSet) -> CodeSet:
    """The code set without repeated and unused roots."""
    used = np.unique(code_set.root_index)
    roots = list(dict.fromkeys(code_set.roots[i] for i in used)) or [""]
    position = {root: i for i, root in enumerate(roots)}
    new_index = np.zeros(max(1, len(code_set.roots)), np.uint16)
    for i in used:
        new_index[i] = position[code_set.roots[i]]
    return replace(code_set, roots=roots, root_index=new_index[code_set.root_index])


def codes_from_outputs(
    outputs: Sequence[Mapping[str, Any]],
    *,
    image_ids: Sequence[str],
    file_names: Sequence[str],
    labels: Sequence[Sequence[int]] | None = None,
    class_names: Sequence[str] = (),
    instance_min_score: float = 0.3,
    activations: bool = True,
    features: bool = False,
    **attributes: Any,
) -> CodeSet:
    """A model's outputs as a code set on the CPU.

    Args:
        outputs: a dict for each image with ``image_code``, bool (K,), and if available
            ``image_activation``, float (K,), ``image_feature``, float (D,), and ``instances`` with
            ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_codes``, bool (R, K1). Where
            they also have ``pred_regions``, int (R,), a region that was kept for several classes
            gets one row, with its best class.
        image_ids, file_names: a string for each image.
        labels: the class ids of each image, or None where unknown.
        class_names: the names of all classes.
        instance_min_score: detections below this score get no row.
        activations: whether to keep ``image_activation``, if there is one.
        features: whether to keep ``image_feature``.
        attributes: other fields of :class:`CodeSet`.

    Raises:
        RegionDHError: an output has no ``image_code``, or no ``image_feature`` although
            ``features`` is set.
    """
    if not all("image_code" in output for output in outputs):
        raise RegionDHError("the model gave no image_code: use a model that hashes images")
    if features and not all("image_feature" in output for output in outputs):
        raise RegionDHError(
            "the model gave no image_feature: use a model that has features of whole images, such "
            "as ImageHash, or store none"
        )
    activations = activations and all("image_activation" in output for output in outputs)

    def stack(key: str) -> np.ndarray:
        return np.stack([output[key].float().cpu().numpy() for output in outputs])

    codes = stack("image_code").astype(bool)
    multi_hot = None
    if labels is not None:
        multi_hot = np.zeros((len(outputs), len(class_names)), np.uint8)
        for row, classes in enumerate(labels):
            multi_hot[row, list(classes)] = 1
    return CodeSet(
        codes=pack_codes(codes),
        bits=codes.shape[1],
        image_ids=list(image_ids),
        file_names=list(file_names),
        labels=multi_hot,
        class_names=list(class_names),
        activations=stack("image_activation").astype(np.float16) if activations else None,
        features=stack("image_feature").astype(np.float16) if features else None,
        instances=_keep_instances(
            [output.get("instances") for output in outputs], instance_min_score
        ),
        **attributes,
    )


def _keep_instances(found: Sequence[Any], min_score: float) -> InstanceCodes | None:
    """The detections of all images as one table; None if no image has instance codes."""
    parts = []
    for row, instances in enumerate(found):
        if instances is None or not instances.has("pred_codes"):
            continue
        instances = instances[instances.scores >= min_score].to("cpu")
        instances = instances[_best_of_each_region(instances)]
        codes = instances.pred_codes.numpy().astype(bool)
        parts.append(
            InstanceCodes(
                codes=pack_codes(codes),
                bits=codes.shape[1],
                image_index=np.full(len(codes), row, np.int64),
                boxes=instances.pred_boxes.tensor.float().numpy(),
                scores=instances.scores.float().numpy(),
                classes=instances.pred_classes.numpy(),
            )
        )
    return _concatenate_instances(parts) if parts else None


def _best_of_each_region(instances: Any) -> np.ndarray:
    """The rows of an image's detections to keep, int64, ascending.

    Of the detections of a region that have the same code, it keeps the one with the highest score;
    of equal scores, the first. IAH makes another code for each class, so all of its detections
    stay.
    """
    if not instances.has("pred_regions"):
        return np.arange(len(instances))
    regions = instances.pred_regions.numpy()[:, None]
    codes = pack_codes(instances.pred_codes.numpy().astype(bool))
    order = np.argsort(-instances.scores.float().numpy(), kind="stable")
    _, first = np.unique(np.hstack([regions, codes])[order], axis=0, return_index=True)
    return np.sort(order[first])


def _concatenate_instances(parts: Sequence[InstanceCodes]) -> InstanceCodes:
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _INSTANCE_COLUMNS
    }
    return replace(parts[0], **columns)


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
        if name == "content_sha256":
            values = [
                np.zeros((len(code_set), SHA256_BYTES), np.uint8) if value is None else value
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
    roots, root_index = _join_roots(code_sets)
    weights = [part.class_weights for part in code_sets if part.class_weights is not None]
    if any(not np.array_equal(weights[0], other) for other in weights):
        raise CodeFileError(
            "codes with different class_weights cannot be joined in one set: they are of two models"
        )
    columns: dict[str, Any] = {name: column(name) for name in _COLUMNS if name != "root_index"}
    return replace(
        first,
        **columns,
        image_ids=[image_id for code_set in code_sets for image_id in code_set.image_ids],
        file_names=[name for code_set in code_sets for name in code_set.file_names],
        instances=_concatenate_instances(instances) if instances else None,
        roots=roots,
        root_index=root_index,
        class_weights=weights[0] if weights else None,
        shard=first.shard if len({part.shard for part in code_sets}) == 1 else "",
    )


def _join_roots(code_sets: Sequence[CodeSet]) -> tuple[list[str], np.ndarray]:
    """The roots of all code sets, each once, and the index of each image's root."""
    position: dict[str, int] = {}
    indexes = []
    for code_set in code_sets:
        new_index = np.zeros(max(1, len(code_set.roots)), np.int64)
        for old in np.unique(code_set.root_index):
            new_index[old] = position.setdefault(code_set.roots[old], len(position))
        indexes.append(new_index[code_set.root_index])
    check_root_count(len(position))
    return list(position) or [""], np.concatenate(indexes).astype(np.uint16)


def check_root_count(count: int) -> None:
    """Check that a code set can hold this number of roots.

    Raises:
        CodeFileError: it can't.
    """
    if count > _MAX_ROOTS:
        raise CodeFileError(
            f"the images have {count} roots, and a code file can hold {_MAX_ROOTS}: name a folder "
            "above them instead of each file"
        )


def take_rows(code_set: CodeSet, rows: Sequence[int] | np.ndarray) -> CodeSet:
    """Some rows of a code set, in the order given, each with its instances.

    Args:
        code_set: the codes to choose from.
        rows: row numbers, with repetitions if wanted.
    """
    rows = np.asarray(rows, np.int64)
    columns = {name: getattr(code_set, name) for name in _COLUMNS}
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
            name: getattr(instances, name)[picked] for name in _INSTANCE_COLUMNS
        }
        instance_columns["image_index"] = np.repeat(np.arange(len(rows)), taken)
        instances = replace(instances, **instance_columns)
    return _with_distinct_roots(
        replace(
            code_set,
            **taken_columns,
            image_ids=[code_set.image_ids[row] for row in rows],
            file_names=[code_set.file_names[row] for row in rows],
            instances=instances,
        )
    )


def check_one_file(image_id: str, first: str, second: str) -> None:
    """Check that no image id names two files.

    Raises:
        RegionDHError: the names of the files differ.
    """
    if first != second:
        raise RegionDHError(
            f"image_id {image_id} names two files, {first} and {second}: image ids must be unique"
        )


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
    weights = code_set.class_weights
    if weights is not None:
        shape, wanted = np.shape(weights), (code_set.bits + 1, len(names) or "classes")
        if len(shape) != 2 or shape[0] != wanted[0] or shape[1] != (len(names) or shape[1]):
            raise RegionDHError(f"class_weights are of shape {shape}, not {wanted}")
        if not np.isfinite(weights).all():
            raise RegionDHError("class_weights hold values that are not finite")
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
    if count and not (np.min(found.image_index) >= 0 and np.max(found.image_index) < images):
        raise RegionDHError(f"instances/image_index points outside the {images} images")
    if count and not (np.min(found.classes) >= 0 and np.max(found.classes) < (classes or np.inf)):
        raise RegionDHError(f"instances/classes points outside the {classes} class names")
