"""Writing files so that nobody ever finds half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["replace_when_complete", "write_json"]


@contextmanager
def replace_when_complete(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to, renamed to ``path`` when the block succeeds.

    So ``path`` is complete or absent (or still the old file), whatever interrupts the writing.
    Missing folders are created. An ``OSError`` of the writing, such as of a full disk, names
    ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, str(temporary), temporary):
            raise
        if error.errno is None:  # a library's own, which has nothing but its text
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, values: Any) -> None:
    """Writes JSON, complete or not at all."""
    with replace_when_complete(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
