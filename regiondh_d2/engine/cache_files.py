"""The npz files of caches: written whole or not at all, and read with a one-line error."""

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from ..utils.errors import RegionDHError
from ..utils.file_io import replace_when_complete
from .training_folder import training_lock

__all__ = ["array_names", "one_writer", "read_arrays", "write_arrays"]


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Keeps other trainings from writing into a cache meanwhile; enter it in all processes.

    They would delete each other's unfinished files.

    Raises:
        FileInUseError: on the main process, another training writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_main = comm.is_main_process()
    with training_lock(folder) if is_main else nullcontext():
        yield


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a file; a full disk leaves none.

    Raises:
        OSError: it can't be written.
    """
    with replace_when_complete(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def read_arrays(
    path: str | os.PathLike, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The named arrays of a file, or all of them.

    Raises:
        RegionDHError: the file is damaged, or has no such array.
    """
    with _opened(path) as file:
        return {name: file[name] for name in names or file.files}


def array_names(path: str | os.PathLike) -> list[str]:
    """The names of a file's arrays; raises as :func:`read_arrays`."""
    with _opened(path) as file:
        return file.files


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        with np.load(path) as file:
            yield file
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RegionDHError(
            f"{path} is damaged, or no feature cache ({error}); delete it"
        ) from error
