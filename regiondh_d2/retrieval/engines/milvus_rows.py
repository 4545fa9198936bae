"""What a row of a Milvus collection holds, as the server takes and gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["FIELDS", "TEXT_BYTES", "code_bytes", "columns_of"]

TEXT_BYTES = 2048
"""The longest text of a field."""

FIELDS: dict[str, tuple[str, Any]] = {
    "image": ("INT64", -1),
    "image_id": ("VARCHAR", ""),
    "class_id": ("INT64", -1),
    "class_name": ("VARCHAR", ""),
    "score": ("FLOAT", 0.0),
    **dict.fromkeys(("x1", "y1", "x2", "y2"), ("FLOAT", 0.0)),
}
"""What a row may tell beside its code: Milvus's type, and the value where it is not given."""


def columns_of(
    rows: np.ndarray, codes: np.ndarray, fields: Mapping[str, Sequence[Any]]
) -> list[list[Any]]:
    """The columns of an insertion, in the order of the schema: rows, codes and :data:`FIELDS`.

    Args:
        rows: int64 (N,).
        codes: uint8 (N, width).
        fields: N values each, of those that are given; ``image`` is the row if it isn't.
    """
    columns: list[list[Any]] = [rows.tolist(), [code.tobytes() for code in codes]]
    for name, (kind, default) in FIELDS.items():
        values = fields.get(name)
        if values is None:
            columns.append(rows.tolist() if name == "image" else [default] * len(rows))
        elif kind == "VARCHAR":
            columns.append([_short_text(value) for value in values])
        else:
            columns.append([float(v) if kind == "FLOAT" else int(v) for v in values])
    return columns


def code_bytes(entity: Mapping[str, Any]) -> bytes:
    """The code of an entity that was fetched."""
    code = entity["code"]
    return bytes(code[0] if isinstance(code, list) else code)


def _short_text(value: Any) -> str:
    """Text that a server takes: UTF-8, up to the length of the field."""
    encoded = str(value).encode("utf-8", "backslashreplace")[:TEXT_BYTES]
    return encoded.decode("utf-8", "ignore")
