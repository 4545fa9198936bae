"""Code files as NPZ archives, Parquet tables and PostgreSQL scripts, and back.

An NPZ archive has the arrays of the code file by their names, and ``attributes``, the attributes as
JSON in uint8. A text column is ``NAME/bytes`` and ``NAME/offsets``, as in the code file.

A Parquet table has a row an image: the columns of the code file, codes as binary of fixed size,
other arrays as lists of fixed size, and ``objects``, a list of structures. What is not a value an
image is in the metadata of the schema, under ``regiondh``, as JSON.

Both hold all of a code file, so :func:`import_codes` gives the same code file again.

A PostgreSQL script (pgvector) makes two tables, of images and of objects, with codes as ``bit(n)``.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..structures.code_checks import check_code_set
from ..structures.codes import CodeFileError, CodeSet, InstanceCodes, join_path
from ..structures.packed import unpack_codes
from ..utils.display import display_name
from ..utils.errors import MissingPackageError, RegionDHError
from ..utils.file_io import replace_when_complete
from ..utils.shortage import refuse_if_short
from .code_store import ARRAYS, INSTANCE_ARRAYS, TEXT_ATTRIBUTES, split_texts
from .index_file import IndexFileError, read_arrays

__all__ = ["FORMATS", "export_codes", "import_codes"]

FORMATS = ("parquet", "npz", "pgvector")

_SIGN = "regiondh"  # the key of the metadata, and of the archive's attributes
_VERSION = 1
_TEXTS = ("image_ids", "relative_paths")
_WHOLE = ("class_weights",)  # arrays that have no row an image
_TABLE = re.compile(r"[a-z_][a-z0-9_]{0,50}")
_ROWS_AT_ONCE = 10_000  # of a script


def export_codes(code_set: CodeSet, path: str | os.PathLike, to: str, table: str = "codes") -> None:
    """Write a code set in another format: complete, or absent (an older file of that name stays).

    Args:
        code_set: the codes.
        path: the file to write.
        to: one of :data:`FORMATS`.
        table: for "pgvector", how the names of the tables begin.

    Raises:
        MissingPackageError: "parquet" without pyarrow.
        RegionDHError: a wrong format or table, or code arrays that don't fit together.
    """
    check_code_set(code_set)
    writers = {"parquet": _write_parquet, "npz": _write_npz}
    if to == "pgvector":
        if not _TABLE.fullmatch(table):
            raise RegionDHError(f"table {table!r}: use small letters, digits and _ only")
        with (
            replace_when_complete(path) as temporary,
            open(temporary, "w", encoding="utf-8", newline="\n") as file,
        ):
            _write_script(code_set, file, table)
    elif to in writers:
        writers[to](code_set, path)
    else:
        raise RegionDHError(f"format {to!r} is not one of {', '.join(FORMATS)}")


def import_codes(path: str | os.PathLike) -> CodeSet:
    """Read an NPZ archive or a Parquet table that :func:`export_codes` wrote.

    Raises:
        CodeFileError: no such file, another format, damaged, or inconsistent.
        MissingPackageError: Parquet without pyarrow.
    """
    shown = display_name(path)
    if not Path(path).is_file():
        raise CodeFileError(f"{shown}: no such file; write it with `regiondh export`")
    with open(path, "rb") as file:
        start = file.read(4)
    readers = {b"PAR1": _read_parquet, b"PK\x03\x04": _read_npz}
    if start not in readers:
        raise CodeFileError(f"{shown}: neither an NPZ archive nor a Parquet table")
    try:
        code_set = readers[start](Path(path))
        check_code_set(code_set)
    except (MissingPackageError, FileNotFoundError):
        raise
    # Any program may have written the file, so numpy and pyarrow may raise anything of these.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as e:
        refuse_if_short(e)
        reason = f"{e} is missing" if isinstance(e, KeyError) else str(e).split("\n")[0]
        raise CodeFileError(f"{shown}: not an export of `regiondh export` ({reason})") from e
    return code_set


# --------------------------------------------------------------------------------------------------
# Arrays and attributes


def _attributes(code_set: CodeSet) -> dict[str, Any]:
    found = code_set.instances
    return {
        "version": _VERSION,
        "bits": int(code_set.bits),
        "instance_bits": None if found is None else int(found.bits),
        "count_difficult": bool(code_set.count_difficult),
        "class_names": list(code_set.class_names),
        "roots": list(code_set.roots),
        **{name: getattr(code_set, name) for name in TEXT_ATTRIBUTES},
    }


def _check_attributes(attributes: dict[str, Any]) -> None:
    """Check the types of what JSON may have of any type.

    Raises:
        CodeFileError: one is wrong.
    """
    kinds: dict[str, type] = {"version": int, "bits": int, "count_difficult": bool}
    kinds |= {"class_names": list, "roots": list, **dict.fromkeys(TEXT_ATTRIBUTES, str)}
    if attributes["instance_bits"] is not None:
        kinds["instance_bits"] = int
    for name, kind in kinds.items():
        value = attributes[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CodeFileError(f"{name} is {value!r:.60}")
        if isinstance(value, list) and not all(isinstance(text, str) for text in value):
            raise CodeFileError(f"{name} are no texts")


def _check_arrays(attributes: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Check the types of the arrays, which a code file would convert, and that none is left over.

    Raises:
        CodeFileError: one is wrong.
    """
    kinds = {name: dtype for name, (_, dtype, _) in ARRAYS.items()}
    found = {f"instances/{name}": dtype for name, (_, dtype) in INSTANCE_ARRAYS.items()}
    if attributes["instance_bits"] is None and found.keys() & arrays.keys():
        raise CodeFileError("there are objects, and instance_bits is missing")
    for name, dtype in (kinds | found).items():
        if name in arrays and arrays[name].dtype != np.dtype(dtype):
            raise CodeFileError(f"{name} holds {arrays[name].dtype}, not {np.dtype(dtype)}")


def _arrays(code_set: CodeSet) -> dict[str, np.ndarray]:
    """The arrays of the code file, in its types; those of objects as "instances/NAME"."""
    arrays = {}
    for name, (_, dtype, _) in ARRAYS.items():
        values = getattr(code_set, name)
        if values is not None:
            arrays[name] = np.asarray(values, dtype)
    if code_set.instances is not None:
        for name, (_, dtype) in INSTANCE_ARRAYS.items():
            arrays[f"instances/{name}"] = np.asarray(getattr(code_set.instances, name), dtype)
    return arrays


def _code_set(
    attributes: dict[str, Any], arrays: dict[str, np.ndarray], texts: Mapping[str, Sequence[str]]
) -> CodeSet:
    """The inverse of the two functions above."""
    if attributes["version"] != _VERSION:
        raise CodeFileError(f"version {attributes['version']}, this release reads {_VERSION}")
    _check_attributes(attributes)
    _check_arrays(attributes, arrays)
    instances = None
    if attributes["instance_bits"] is not None:
        found: dict[str, Any] = {name: arrays[f"instances/{name}"] for name in INSTANCE_ARRAYS}
        instances = InstanceCodes(bits=attributes["instance_bits"], **found)
    columns: dict[str, Any] = {
        name: arrays.get(name) if optional else arrays[name]
        for name, (_, _, optional) in ARRAYS.items()
    }
    roots = attributes["roots"]
    places = zip(columns["root_index"].tolist(), texts["relative_paths"], strict=True)
    return CodeSet(
        bits=attributes["bits"],
        image_ids=list(texts["image_ids"]),
        file_names=[join_path(roots[root], place) for root, place in places],
        class_names=attributes["class_names"],
        count_difficult=attributes["count_difficult"],
        instances=instances,
        roots=roots,
        **columns,
        **{name: attributes[name] for name in TEXT_ATTRIBUTES},
    )


def _encoded(texts: Sequence[str]) -> list[bytes]:
    return [os.fsencode(text) for text in texts]


# --------------------------------------------------------------------------------------------------
# NPZ


def _write_npz(code_set: CodeSet, path: str | os.PathLike) -> None:
    columns: dict[str, Any] = dict(_arrays(code_set))
    for name in _TEXTS:
        encoded = _encoded(getattr(code_set, name))
        columns[f"{name}/bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
        columns[f"{name}/offsets"] = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    text = json.dumps({_SIGN: _attributes(code_set)})
    columns["attributes"] = np.frombuffer(text.encode(), np.uint8)
    with replace_when_complete(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **columns)


def _read_npz(path: Path) -> CodeSet:
    try:
        arrays = read_arrays(path, ("attributes", "codes"))
    except IndexFileError as error:
        reason = str(error).removeprefix(f"{path}: ").removesuffix("; build the index again")
        raise CodeFileError(reason) from None
    attributes = json.loads(arrays["attributes"].tobytes())[_SIGN]
    texts = {
        name: split_texts(name, arrays[f"{name}/bytes"], arrays[f"{name}/offsets"])
        for name in _TEXTS
    }
    return _code_set(attributes, arrays, texts)


# --------------------------------------------------------------------------------------------------
# Parquet


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPackageError(
            "Parquet needs a package that isn't installed: pip install 'regiondh_d2[parquet]'"
        ) from None
    return pyarrow, pyarrow.parquet


def _column(pa: Any, name: str, values: np.ndarray) -> Any:
    """An array as a column: rows of bytes as binary of fixed size, others as lists of one size."""
    if values.ndim == 1:
        return pa.array(values)
    if name.endswith(("codes", "content_sha256", "thumbnails")):
        kind = pa.binary(values.shape[1])
        data = pa.py_buffer(np.ascontiguousarray(values))
        return pa.Array.from_buffers(kind, len(values), [None, data])
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _values(column: Any, dtype: str, width: int | None) -> np.ndarray:
    """The inverse of :func:`_column`.

    Raises:
        CodeFileError: a value is missing.
    """
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    if width is None:
        return _without_gaps(array)
    if str(array.type).startswith("fixed_size_binary"):
        _check_no_gaps(array)
        return np.frombuffer(b"".join(array.to_pylist()), dtype).reshape(len(array), width)
    _check_no_gaps(array)
    return _without_gaps(array.flatten()).reshape(len(array), width)


def _without_gaps(array: Any) -> np.ndarray:
    _check_no_gaps(array)
    return array.to_numpy(zero_copy_only=False)


def _check_no_gaps(array: Any) -> None:
    # numpy would read a missing number as NaN, and then as any whole number.
    if array.null_count:
        raise CodeFileError(f"{array.null_count} values of a column are missing")


def _text_column(pa: Any, texts: Sequence[str]) -> Any:
    """Text, or binary if a file name is no UTF-8."""
    encoded = _encoded(texts)
    try:
        return pa.array([text.decode("utf-8") for text in encoded], pa.string())
    except UnicodeDecodeError:
        return pa.array(encoded, pa.binary())


def _write_parquet(code_set: CodeSet, path: str | os.PathLike) -> None:
    pa, parquet = _import_pyarrow()
    columns = {name: _text_column(pa, getattr(code_set, name)) for name in _TEXTS}
    arrays = _arrays(code_set)
    whole = {}
    widths = {}
    for name, values in arrays.items():
        widths[name] = None if values.ndim == 1 else values.shape[1]
        if name in _WHOLE:
            data = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
            whole[name] = {"dtype": values.dtype.str, "shape": values.shape, "data": data}
        elif not name.startswith("instances/"):
            columns[name] = _column(pa, name, values)
    if code_set.instances is not None:
        columns["objects"] = _objects_column(pa, arrays, len(code_set))
    metadata = {**_attributes(code_set), "widths": widths, "whole": whole}
    table = pa.table(columns).replace_schema_metadata({_SIGN: json.dumps(metadata)})
    with replace_when_complete(path) as temporary:
        parquet.write_table(table, temporary)


def _objects_column(pa: Any, arrays: dict[str, np.ndarray], images: int) -> Any:
    """A list of objects an image, each with its row, since they may be in any order."""
    index = arrays["instances/image_index"]
    order = np.argsort(index, kind="stable")
    ends = np.cumsum(np.bincount(index, minlength=images))
    members = {"row": pa.array(order)}
    for name in INSTANCE_ARRAYS:
        if name != "image_index":
            members[name] = _column(pa, name, arrays[f"instances/{name}"][order])
    structures = pa.StructArray.from_arrays(list(members.values()), list(members))
    return pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], ends])), structures)


def _read_parquet(path: Path) -> CodeSet:
    pa, parquet = _import_pyarrow()
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        refuse_if_short(error, memory=False)
        raise CodeFileError(f"damaged: {str(error).splitlines()[0]}") from None
    metadata = json.loads((table.schema.metadata or {})[_SIGN.encode()])
    widths, arrays = metadata["widths"], {}
    for name, (_, dtype, _) in ARRAYS.items():
        if name in metadata["whole"]:
            stored = metadata["whole"][name]
            data = np.frombuffer(base64.b64decode(stored["data"]), stored["dtype"])
            arrays[name] = data.reshape(stored["shape"])
        elif name in table.column_names:
            arrays[name] = _values(table[name], dtype, widths[name])
    if metadata["instance_bits"] is not None or "objects" in table.column_names:
        arrays |= _object_arrays(table["objects"].combine_chunks(), widths)
    texts = {name: list(map(os.fsdecode, table[name].to_pylist())) for name in _TEXTS}
    return _code_set(metadata, arrays, texts)


def _object_arrays(column: Any, widths: dict[str, int | None]) -> dict[str, np.ndarray]:
    lists = column.chunk(0) if hasattr(column, "chunk") else column
    _check_no_gaps(lists)
    counts = lists.value_lengths().to_numpy(zero_copy_only=False)
    structures = lists.flatten()
    _check_no_gaps(structures)
    rows = _without_gaps(structures.field("row"))
    place = np.argsort(rows, kind="stable")
    images = np.repeat(np.arange(len(counts)), counts)
    arrays = {"instances/image_index": images[place].astype(np.int64)}
    for name, (_, dtype) in INSTANCE_ARRAYS.items():
        if name != "image_index":
            width = widths[f"instances/{name}"]
            arrays[f"instances/{name}"] = _values(structures.field(name), dtype, width)[place]
    return arrays


# --------------------------------------------------------------------------------------------------
# PostgreSQL


def _write_script(code_set: CodeSet, file: TextIO, table: str) -> None:
    images, objects = f"{table}_images", f"{table}_objects"
    names = list(code_set.class_names)
    found = code_set.instances
    first = "0" * code_set.bits
    if len(code_set):
        first = _bit_texts(code_set.codes[:1], code_set.bits)[0]
    file.write(
        f"-- Codes of {len(code_set)} images for PostgreSQL with pgvector: psql -f THIS_FILE\n"
        f"-- The images nearest to a code, in the order of every engine of regiondh_d2:\n"
        f"--   SELECT row, image_id, code <~> B'{first}' AS distance\n"
        f"--   FROM {images} ORDER BY distance, row LIMIT 10;\n"
        "CREATE EXTENSION IF NOT EXISTS vector;\n"
        "BEGIN;\n"
        f"CREATE TABLE {images} (row bigint PRIMARY KEY, image_id text NOT NULL, "
        f"file_name text NOT NULL, labels text[], code bit({code_set.bits}) NOT NULL);\n"
        f"COPY {images} (row, image_id, file_name, labels, code) FROM stdin;\n"
    )
    for rows in _blocks(len(code_set)):
        codes = _bit_texts(code_set.codes[rows], code_set.bits)
        for row, code in zip(range(rows.start, rows.stop), codes, strict=True):
            labels = r"\N"
            if code_set.labels is not None:
                classes = np.flatnonzero(code_set.labels[row]).tolist()
                labels = _copy_text(_array_literal([_class_name(names, c) for c in classes]))
            image_id = _copy_text(code_set.image_ids[row])
            name = _copy_text(code_set.file_names[row])
            file.write(f"{row}\t{image_id}\t{name}\t{labels}\t{code}\n")
    file.write("\\.\n")
    if found is not None:
        file.write(
            f"CREATE TABLE {objects} (row bigint PRIMARY KEY, image bigint NOT NULL REFERENCES "
            f"{images}, class text, score real, x1 real, y1 real, x2 real, y2 real, "
            f"code bit({found.bits}) NOT NULL);\n"
            f"COPY {objects} (row, image, class, score, x1, y1, x2, y2, code) FROM stdin;\n"
        )
        for rows in _blocks(len(found.codes)):
            codes = _bit_texts(found.codes[rows], found.bits)
            for row, code in zip(range(rows.start, rows.stop), codes, strict=True):
                name = _copy_text(_class_name(names, int(found.classes[row])))
                numbers = [found.scores[row], *found.boxes[row]]
                shown = "\t".join(str(np.float32(number)) for number in numbers)
                file.write(f"{row}\t{found.image_index[row]}\t{name}\t{shown}\t{code}\n")
        file.write("\\.\n")
    file.write("COMMIT;\n")


def _blocks(count: int) -> Iterator[slice]:
    for begin in range(0, count, _ROWS_AT_ONCE):
        yield slice(begin, min(begin + _ROWS_AT_ONCE, count))


def _bit_texts(codes: np.ndarray, bits: int) -> list[str]:
    """Each code as 0s and 1s, the first bit first."""
    data = (unpack_codes(codes, bits).astype(np.uint8) + ord("0")).tobytes().decode()
    return [data[i : i + bits] for i in range(0, len(data), bits)]


def _class_name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else str(number)


def _copy_text(text: str) -> str:
    r"""A value of COPY's text format; bytes that are no UTF-8 are shown as \xNN."""
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    for old, new in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(old, new)
    return text


def _array_literal(texts: Sequence[str]) -> str:
    quoted = ('"' + re.sub(r'(["\\])', r"\\\1", text) + '"' for text in texts)
    return "{" + ",".join(quoted) + "}"
