"""Binary codes in memory and on disk: one HDF5 layout for evaluation, indexing and search.

========================= ====================== ================================================
root attributes                                  ``format`` "regiondh-codes", ``version``,
                                                 ``bits`` K, ``dataset``, ``config``,
                                                 ``class_names``, ``count_difficult``,
                                                 ``model_fingerprint``; optional ``settings``
``codes``                 uint8 (N, ceil(K/8))   as ``numpy.packbits`` with bitorder "big"
``labels``                uint8 (N, C)           multi-hot; absent where unknown
``image_ids``             UTF-8 str (N,)
``file_names``            UTF-8 str (N,)
``activations``           float16 (N, K)         optional
``features``              float16 (N, D)         optional
``instances``             group                  optional; attribute ``bits`` K1
``instances/codes``       uint8 (M, ceil(K1/8))  one row a detection
``instances/image_index`` int64 (M,)             row of ``codes``
``instances/boxes``       float32 (M, 4)         XYXY, pixels of the original image
``instances/scores``      float32 (M,)
``instances/classes``     int64 (M,)
========================= ====================== ================================================
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..structures.packed import check_packed, pack_codes, unpack_codes
from ..utils.errors import RegionDHError
from ..utils.file_io import replace_when_complete

__all__ = [
    "CodeFileError",
    "CodeSet",
    "InstanceCodes",
    "check_comparable",
    "check_holds",
    "check_one_file",
    "codes_from_outputs",
    "join_code_sets",
    "pack_codes",
    "read_codes",
    "take_rows",
    "unpack_codes",
    "write_codes",
]

FORMAT = "regiondh-codes"
VERSION = 1

# Arrays with a row for each image, and for each detection.
_COLUMNS = ("codes", "labels", "activations", "features")
_INSTANCE_COLUMNS = ("codes", "image_index", "boxes", "scores", "classes")

# What a code set may lack: its name in messages, and how to extract it.
_OPTIONAL = {
    "labels": ("labels", "from a labelled dataset"),
    "activations": ("activations", "with --activations"),
    "features": ("features", "with --features"),
    "instances": ("detected objects", "with objects"),
}

_MAX_COMPRESSION = 1040  # deflate cannot shrink data further than about 1,032 to 1


class CodeFileError(RegionDHError):
    """A code file that cannot be used; the message is one line with the file and the mend."""


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

    Attributes:
        codes: uint8 (N, ceil(bits / 8)).
        bits: code length K.
        image_ids, file_names: N strings each.
        labels: multi-hot uint8 (N, C), or None where unknown.
        class_names: C names, or empty where unknown.
        dataset: name of the dataset.
        config: name of the model's configuration.
        count_difficult: whether ``labels`` count classes that only difficult objects show.
        model_fingerprint: sha256 over the model's state dict; codes of two models do not mix.
        settings: what else decides about the codes, a line "KEY VALUE" each; "" where unknown.
        activations: float16 (N, bits) before binarisation, or None.
        features: float16 (N, D), or None.
        instances: codes of detected objects, or None.
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

    def __len__(self) -> int:
        return len(self.codes)


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
    """What a model says of some images, as a code set on the CPU.

    Args:
        outputs: a dict for each image with ``image_code``, bool (K,), and if available
            ``image_activation``, float (K,), ``image_feature``, float (D,), and ``instances`` with
            ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_codes``, bool (R, K1).
        image_ids, file_names: a string for each image.
        labels: the class ids of each image, or None where unknown.
        class_names: the names of all classes.
        instance_min_score: detections below this score get no row.
        activations: whether to keep ``image_activation``, if there is one.
        features: whether to keep ``image_feature``.
        attributes: other fields of :class:`CodeSet`.

    Raises:
        ValueError: an output has no ``image_code``, or no ``image_feature`` where it is to be kept.
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


def _concatenate_instances(parts: Sequence[InstanceCodes]) -> InstanceCodes:
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _INSTANCE_COLUMNS
    }
    return replace(parts[0], **columns)


def join_code_sets(code_sets: Sequence[CodeSet]) -> CodeSet:
    """The rows of all code sets, one after the other, with the attributes of the first.

    Raises:
        CodeFileError: they differ in where the codes come from, or in what they hold.
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
    return replace(
        first,
        **{name: column(name) for name in _COLUMNS},
        image_ids=[image_id for code_set in code_sets for image_id in code_set.image_ids],
        file_names=[name for code_set in code_sets for name in code_set.file_names],
        instances=_concatenate_instances(instances) if instances else None,
    )


def take_rows(code_set: CodeSet, rows: Sequence[int]) -> CodeSet:
    """Some rows of a code set, in the order given, each with its instances.

    Args:
        code_set: the codes to choose from.
        rows: row numbers, none of them twice.
    """
    rows = np.asarray(rows, np.int64)
    found = {name: getattr(code_set, name) for name in _COLUMNS}
    instances = code_set.instances
    if instances is not None:
        new_row = np.full(len(code_set), -1, np.int64)
        new_row[rows] = np.arange(len(rows))
        image_index = new_row[instances.image_index]
        order = np.argsort(image_index, kind="stable")
        order = order[image_index[order] >= 0]
        columns = {name: getattr(instances, name)[order] for name in _INSTANCE_COLUMNS}
        instances = replace(instances, **columns | {"image_index": image_index[order]})
    return replace(
        code_set,
        **{name: None if values is None else values[rows] for name, values in found.items()},
        image_ids=[code_set.image_ids[row] for row in rows],
        file_names=[code_set.file_names[row] for row in rows],
        instances=instances,
    )


def check_one_file(image_id: str, first: str, second: str) -> None:
    """Refuses an image id that names two files.

    Raises:
        ValueError: the names of the files differ.
    """
    if first != second:
        raise RegionDHError(
            f"image_id {image_id} names two files, {first} and {second}: image ids must be unique"
        )


def check_comparable(query: CodeSet, database: CodeSet) -> list[str]:
    """Refuses two code sets whose distances mean nothing.

    Returns:
        Warnings, one line each, for what cannot be checked or makes numbers hard to compare.

    Raises:
        CodeFileError: different code lengths, class names or model fingerprints.
    """
    if query.bits != database.bits:
        raise CodeFileError(
            f"the queries have {query.bits} bits and the database {database.bits}: "
            "code both with the same model"
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
            f"the queries were coded by model {query.model_fingerprint[:12]} and the database by "
            f"{database.model_fingerprint[:12]}: code both with the same model"
        )
    if query.count_difficult != database.count_difficult:
        notes.append("only one side counts difficult objects as labels")
    return notes


def check_holds(codes: CodeSet, name: str, *attributes: str) -> None:
    """Refuses a code set that lacks what is needed of it.

    Args:
        codes: the code set.
        name: what the message calls it, such as its file.
        attributes: what is needed, of "labels", "activations", "features" and "instances".

    Raises:
        CodeFileError: one is None.
    """
    for attribute in attributes:
        if getattr(codes, attribute) is None:
            what, how = _OPTIONAL[attribute]
            raise CodeFileError(f"no {what} in {name}: extract the codes {how}")


def write_codes(path: str | os.PathLike, code_set: CodeSet) -> None:
    """Writes a code file: complete, or absent (an older file of that name stays).

    Raises:
        CodeFileError: the code set's arrays do not fit together.
        OSError: the file cannot be written, for instance because the disk is full.
    """
    try:
        _check(code_set)
    except ValueError as error:
        raise CodeFileError(f"{path}: not written, {error}") from None
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(_file_image(code_set))


def _file_image(code_set: CodeSet) -> bytes:
    """The bytes of a code file, made in memory: on a full disk HDF5 would crash the process."""

    def strings(values: Sequence[str]) -> np.ndarray:
        """Fixed length, since HDF5 follows damaged references of variable-length text blindly."""
        encoded = [str(value).encode("utf-8") for value in values]
        length = max(map(len, encoded), default=0) or 1
        return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))

    # Since HDF5 1.10 headers carry checksums: damage is then an error, not a crash of the library.
    with h5py.File(
        "codes.h5", "w", libver=("v110", "v110"), driver="core", backing_store=False
    ) as file:
        attributes = {"format": FORMAT, "class_names": list(code_set.class_names)}
        for name in ("dataset", "config", "model_fingerprint", "settings"):
            attributes[name] = getattr(code_set, name)
        for name, value in attributes.items():
            text = strings(value if isinstance(value, list) else [value])
            file.attrs.create(name, text if isinstance(value, list) else text[0], dtype=text.dtype)
        file.attrs["version"] = VERSION
        file.attrs["bits"] = int(code_set.bits)
        file.attrs["count_difficult"] = bool(code_set.count_difficult)
        file["codes"] = code_set.codes
        for name in ("image_ids", "file_names"):
            file[name] = strings(getattr(code_set, name))
        for name, dtype in (("labels", "u1"), ("activations", "f2"), ("features", "f2")):
            values = getattr(code_set, name)
            if values is not None:
                file[name] = np.asarray(values, dtype)
        found = code_set.instances
        if found is not None:
            group = file.create_group("instances")
            group.attrs["bits"] = int(found.bits)
            group["codes"] = found.codes
            group["image_index"] = np.asarray(found.image_index, "i8")
            group["boxes"] = np.asarray(found.boxes, "f4")
            group["scores"] = np.asarray(found.scores, "f4")
            group["classes"] = np.asarray(found.classes, "i8")
        file.flush()
        return file.id.get_file_image()


def read_codes(path: str | os.PathLike) -> CodeSet:
    """Reads a code file and checks everything that a reader relies on.

    The file may come from a stranger: only plain datasets of this layout are read, and nothing is
    allocated for a size that the file's bytes cannot hold.

    Raises:
        CodeFileError: missing, not HDF5, damaged, another format or version, or inconsistent.
    """
    path = Path(path)
    if not path.is_file():
        raise CodeFileError(f"{path}: no such file; write it with tools/extract_codes.py")
    try:
        code_set = _read(path)
        _check(code_set)
    except ValueError as error:
        raise CodeFileError(f"{path}: {error}; extract the codes again") from error
    return code_set


def _read(path: Path) -> CodeSet:
    """The contents of a file; raises CodeFileError with what is wrong in half a line."""
    try:
        with h5py.File(path, "r") as file:
            return _parse(file)
    except CodeFileError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CodeFileError(
            f"not a readable HDF5 code file, damaged or incomplete ({reason})"
        ) from error


def _parse(file: h5py.File) -> CodeSet:
    def attribute(source: h5py.Group, name: str, kind: type) -> Any:
        if name not in source.attrs:
            raise CodeFileError(f"attribute {name!r} is missing")
        value = source.attrs[name]
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        if isinstance(value, (np.generic, np.ndarray)) and np.ndim(value) == 0:
            value = value.item()
        if not isinstance(value, kind):
            raise CodeFileError(
                f"attribute {name!r} is {type(value).__name__}, not {kind.__name__}"
            )
        return value

    def array(name: str, kinds: str) -> np.ndarray:
        # A link could point at another file, and external or virtual storage at any file.
        link = file
        for part in name.split("/"):
            if not isinstance(link.get(part, getlink=True), h5py.HardLink):
                raise CodeFileError(f"{name} is a link")
            link = link[part]
        dataset = link
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise CodeFileError(f"{name} is not an array")
        if dataset.is_virtual or dataset.external:
            raise CodeFileError(f"{name} is stored elsewhere")
        declared = math.prod(dataset.shape) * dataset.dtype.itemsize
        if declared > _MAX_COMPRESSION * dataset.id.get_storage_size():
            raise CodeFileError(
                f"{name} declares shape {dataset.shape} but holds "
                f"{dataset.id.get_storage_size()} bytes"
            )
        if h5py.check_string_dtype(dataset.dtype) is not None:
            if "O" not in kinds:
                raise CodeFileError(f"{name} holds text")
            return dataset.asstr("utf-8")[()]
        if dataset.dtype.kind not in kinds:
            raise CodeFileError(f"{name} holds {dataset.dtype}, not the expected type")
        return dataset[()]

    if "format" not in file.attrs or attribute(file, "format", str) != FORMAT:
        raise CodeFileError(f"an HDF5 file, but not of format {FORMAT!r}")
    version = attribute(file, "version", int)
    if version != VERSION:
        raise CodeFileError(
            f"format version {version}, of a newer regiondh_d2 perhaps; this one reads {VERSION}"
        )
    for name in ("codes", "image_ids", "file_names"):
        if name not in file:
            raise CodeFileError(f"{name} is missing")
    instances = None
    if "instances" in file:
        instances = InstanceCodes(
            codes=array("instances/codes", "u"),
            bits=attribute(file["instances"], "bits", int),
            image_index=array("instances/image_index", "iu"),
            boxes=array("instances/boxes", "f"),
            scores=array("instances/scores", "f"),
            classes=array("instances/classes", "iu"),
        )
    names = attribute(file, "class_names", np.ndarray)
    return CodeSet(
        codes=array("codes", "u"),
        bits=attribute(file, "bits", int),
        image_ids=array("image_ids", "O").tolist(),
        file_names=array("file_names", "O").tolist(),
        labels=array("labels", "u") if "labels" in file else None,
        class_names=[n.decode("utf-8") if isinstance(n, bytes) else str(n) for n in names.ravel()],
        dataset=attribute(file, "dataset", str),
        config=attribute(file, "config", str),
        count_difficult=attribute(file, "count_difficult", bool),
        model_fingerprint=attribute(file, "model_fingerprint", str),
        settings=attribute(file, "settings", str) if "settings" in file.attrs else "",
        activations=array("activations", "f") if "activations" in file else None,
        features=array("features", "f") if "features" in file else None,
        instances=instances,
    )


def _check(code_set: CodeSet) -> None:
    """Raises ValueError, with half a line, if the arrays of a code set do not fit together."""
    rows = len(check_packed("codes", code_set.codes, code_set.bits))
    for name in ("image_ids", "file_names"):
        values = getattr(code_set, name)
        if not isinstance(values, (list, tuple, np.ndarray)) or len(values) != rows:
            raise RegionDHError(f"{name} must be {rows} strings, one a code")
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
    if code_set.instances is not None:
        _check_instances(code_set.instances, rows, len(names))


def _check_instances(found: InstanceCodes, images: int, classes: int) -> None:
    """As :func:`_check`, for the codes of detected objects; ``classes`` is 0 where unknown."""
    count = len(check_packed("instances/codes", found.codes, found.bits))
    for name, tail in (("image_index", ()), ("boxes", (4,)), ("scores", ()), ("classes", ())):
        shape = np.shape(getattr(found, name))
        if shape != (count, *tail):
            raise RegionDHError(f"instances/{name} is of shape {shape}, not {(count, *tail)}")
    if count and not (np.min(found.image_index) >= 0 and np.max(found.image_index) < images):
        raise RegionDHError(f"instances/image_index points outside the {images} images")
    if count and not (np.min(found.classes) >= 0 and np.max(found.classes) < (classes or np.inf)):
        raise RegionDHError(f"instances/classes points outside the {classes} class names")
