"""Writing files whole or not at all, and never over a file that must stay.

A command checks its outputs with :func:`check_output_file` and :func:`check_output_folder` before
it works. An output never replaces a file that the command reads, not even with ``--overwrite``. An
existing file or folder is replaced if it carries this package's mark (:mod:`.marks`), or with
``--overwrite``.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .display import display_name
from .errors import InputNotFoundError, OutputExistsError, RegionDHError
from .marks import mark_folder, mark_of
from .paths import folders_above, is_there, lies_in, same_file, status_of
from .temporaries import temporary_beside

__all__ = [
    "carries_mark",
    "check_output_file",
    "check_output_folder",
    "file_sha256",
    "mark_folder",
    "refuse_inputs",
    "read_json",
    "replace_when_complete",
    "write_json",
]

# Identities of the checked outputs by their real paths, until they are written: (device, inode,
# size, time of modification), None if the file is absent. Outputs that may be replaced in any case
# are not listed.
_checked: dict[str, tuple[int, ...] | None] = {}


def carries_mark(path: str | os.PathLike) -> bool:
    """Whether this package wrote a file or folder (see :mod:`.marks`). Reads only a part of it."""
    return mark_of(path) is not None


def check_output_file(
    path: str | os.PathLike | None,
    *,
    inputs: Iterable[str | os.PathLike | None] = (),
    photos: Iterable[str | os.PathLike] = (),
    outputs: Iterable[str | os.PathLike | None] = (),
    overwrite: bool | None = False,
    kind: str | None = None,
) -> None:
    """Check that an output can be written and replaces nothing that must stay.

    Call it before any work. :func:`replace_when_complete` looks again when it replaces the file: if
    another program has written it meanwhile, both files are kept.

    Devices, pipes and the like, such as ``/dev/null`` and ``/dev/stdout``, are written to, not
    replaced, and are always allowed.

    Args:
        path: the file to write; None checks nothing.
        inputs: what the command reads, such as its query, config, weights, code files and index
            folder. A folder stands for all that is in it. None and missing files are ignored.
        photos: images that the command reads or that are indexed. An output may lie in their
            folders.
        outputs: other files that the command writes.
        overwrite: whether a file without our mark may be replaced; None if the command has no such
            option, so that the message doesn't name it.
        kind: the output's kind, as :func:`~.marks.mark_of` names it. A file marked as another kind
            counts as unmarked. None allows any kind.

    Raises:
        OutputExistsError: a file or folder is there that must stay.
        RegionDHError: another output is the same file, or the folder can't be written to.
    """
    if path is None:
        return
    name = display_name(path)
    if not os.fspath(path):
        raise RegionDHError("an output has an empty name: name a file")
    if _is_stream(path):
        return
    refuse_inputs(path, inputs, photos)
    for other in outputs:
        if other is not None and same_file(path, other) and not _is_stream(other):
            raise RegionDHError(f"{name}: two outputs have this name; give each its own")
    target = os.path.realpath(path)
    _checked.pop(target, None)
    if os.path.isdir(target) or os.path.basename(path) in ("", os.curdir):
        raise OutputExistsError(f"{name}: is a folder; name a file to write")
    if is_there(path) and not overwrite:
        _check_replaceable(path, name, kind, "" if overwrite is None else _HINT)
    _check_creatable(Path(target).parent, name)
    if not overwrite:
        _checked[target] = _identity(path)


def check_output_folder(
    path: str | os.PathLike,
    *,
    inputs: Iterable[str | os.PathLike | None] = (),
    photos: Iterable[str | os.PathLike] = (),
    overwrite: bool | None = False,
    kind: str | None = None,
) -> None:
    """As :func:`check_output_file`, for a folder that a command replaces or clears.

    A new or empty folder is always allowed, a folder that holds an input never.

    Args:
        path: the folder.
        inputs: what the command reads, files and folders.
        photos: images that the command reads or that are indexed.
        overwrite: whether a folder without our mark may be written to; None as above.
        kind: the folder's kind, as :func:`~.marks.mark_of` names it; None allows any.

    Raises:
        OutputExistsError: a file or folder is there that must stay.
        RegionDHError: the folder can't be written.
    """
    name = display_name(path)
    if not os.fspath(path):
        raise RegionDHError("an output folder has an empty name: name a folder")
    given = [path for path in inputs if path is not None]
    refuse_inputs(path, given)
    if os.path.lexists(path) and not os.path.isdir(path):
        raise OutputExistsError(f"{name}: is a file; name a folder to write")
    if os.path.isdir(path):
        _refuse_held(path, name, [*given, *map(os.path.realpath, given), *photos])
    if os.path.isdir(path) and not overwrite and not _is_empty(path):
        found = mark_of(path)
        if found is None or kind not in (None, found):
            hint = "" if overwrite is None else ", or write into it with --overwrite"
            raise OutputExistsError(
                f"{name}: holds files that this command did not write: name another folder{hint}"
            )
    _check_creatable(Path(os.path.realpath(path)), name)


def _is_empty(path: str | os.PathLike) -> bool:
    """Whether a folder holds nothing but the files that file managers and storage systems leave."""
    names = map(str.lower, os.listdir(os.fsdecode(path)))
    return all(name in _LITTER or name.startswith("._") for name in names)


_LITTER = {".ds_store", "thumbs.db", "desktop.ini", "@eadir"}


def refuse_inputs(
    path: str | os.PathLike,
    inputs: Iterable[str | os.PathLike | None] = (),
    photos: Iterable[str | os.PathLike] = (),
) -> None:
    """Check that an output isn't an input or a photo, and doesn't lie in an input folder.

    :func:`check_output_file` does the same. Call this for inputs that are known only later.

    Args:
        path: the file or folder to write.
        inputs, photos: as of :func:`check_output_file`.

    Raises:
        OutputExistsError: the output is one of them, or lies in an input folder.
    """
    status = status_of(os.path.realpath(path))  # resolved, since "a.jpg/" would replace a.jpg, too
    own = None if status is None else (status.st_dev, status.st_ino)
    is_file = status is not None and stat.S_ISREG(status.st_mode)
    # A file with several hard links may have one of its names in an input folder.
    several = own if status is not None and is_file and status.st_nlink > 1 else None
    above = {(s.st_dev, s.st_ino) for s in map(status_of, folders_above(path)) if s is not None}
    for given in inputs:
        if given is None:
            continue
        found = status_of(given)
        if found is None:
            continue
        identity = (found.st_dev, found.st_ino)
        if identity == own and (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise _input_error(path, given, "which this command reads")
        if not stat.S_ISDIR(found.st_mode):
            continue
        if identity in above or (several is not None and _holds(given, several)):
            raise OutputExistsError(
                f"{display_name(path)}: lies in {display_name(given)}, which this command reads: "
                "name an output elsewhere"
            )
    if not is_file:
        return
    for photo in photos:
        found = status_of(photo)
        if found is not None and (found.st_dev, found.st_ino) == own:
            raise _input_error(path, photo, "an image that this command reads or searches in")


def _holds(folder: str | os.PathLike, identity: tuple[int, int]) -> bool:
    """Whether a folder or one of its subfolders has the file with this device and inode."""
    for parent, _, names in os.walk(os.fsdecode(folder)):
        for name in names:
            found = status_of(os.path.join(parent, name))
            if found is not None and (found.st_dev, found.st_ino) == identity:
                return True
    return False


def _input_error(path: str | os.PathLike, given: str | os.PathLike, what: str) -> OutputExistsError:
    return OutputExistsError(
        f"{display_name(path)}: is {display_name(given)}, {what}; an output never replaces an "
        "input: name another file"
    )


def _refuse_held(path: str | os.PathLike, name: str, inputs: Iterable[str | os.PathLike]) -> None:
    """Check that a folder holds no input."""
    by_folder: dict[str, list[str]] = {}  # many photos, few folders
    for given in map(os.fsdecode, inputs):
        by_folder.setdefault(os.path.dirname(os.path.abspath(given)), []).append(given)
    for folder, found in by_folder.items():
        if not (same_file(folder, path) or lies_in(folder, path)):
            continue
        for given in filter(os.path.exists, found):
            raise OutputExistsError(
                f"{name}: holds {display_name(given)}, which this command reads: name another "
                "folder to write"
            )


_HINT = ", or replace it with --overwrite"


def _check_replaceable(path: str | os.PathLike, name: str, kind: str | None, hint: str) -> None:
    """Check that an existing file is ours."""
    status = status_of(path)
    if status is None:
        raise OutputExistsError(
            f"{name}: is a link to {display_name(os.path.realpath(path))}, which isn't there: "
            "delete the link or name another file"
        )
    found = mark_of(path)
    if found is None or kind not in (None, found):
        what = "did not write it" if found is None else f"wrote something else into it ({found})"
        raise OutputExistsError(f"{name}: exists, and this program {what}: name another file{hint}")
    if not status.st_mode & 0o222:
        raise OutputExistsError(f"{name}: is write-protected: name another file{hint}")


def _check_creatable(folder: Path, name: str) -> None:
    """Check that the folder of an output can be written to."""
    for existing in (folder, *folder.parents):
        if is_there(existing):
            break
    if not existing.is_dir():
        raise RegionDHError(f"{name}: {display_name(existing)} is no folder; name another output")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RegionDHError(
            f"{name}: no permission to write into {display_name(existing)}; name another output"
        )


def _identity(path: str | os.PathLike) -> tuple[int, ...] | None:
    status = status_of(path)
    if status is None:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_stream(path: str | os.PathLike) -> bool:
    """Whether a path is a device, a pipe, a socket or an open file of a process."""
    if _descriptor(path) is not None:
        return True
    status = status_of(path)
    return status is not None and not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))


def _descriptor(path: str | os.PathLike) -> int | None:
    """The file descriptor of this process behind ``/dev/stdout`` and the like; None for others."""
    path = os.path.abspath(os.fsdecode(path))
    own = os.path.realpath("/proc/self/fd")
    for _ in range(40):  # the system follows no more links either
        folder = os.path.realpath(os.path.dirname(path))
        path = os.path.join(folder, os.path.basename(path))
        if folder in (own, "/dev/fd") and os.path.basename(path).isdecimal():
            return int(os.path.basename(path))
        if not os.path.islink(path):
            break
        path = os.path.join(folder, os.readlink(path))
    return None


@contextmanager
def replace_when_complete(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to, renamed to ``path`` when the block succeeds.

    So ``path`` is complete or absent (or still the old file) even if the writing is interrupted.
    Missing folders are created. A link stays, and the file that it leads to is replaced. A device
    or a pipe receives the complete file. An ``OSError`` while writing, such as a full disk, names
    ``path``.

    Raises:
        OutputExistsError: another program has written ``path`` since :func:`check_output_file`.
            Both files are kept; the message names the new one.
    """
    with _errors_named(path):
        if _is_stream(path):
            with _write_to_stream(path) as temporary:
                yield temporary
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(target)
        with _errors_named(path, temporary):
            try:
                yield temporary
                _check_unchanged(target, temporary)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def _errors_named(path: str | os.PathLike, temporary: Path | None = None) -> Iterator[None]:
    """Puts the name of the output into system errors that have no name or a temporary one."""
    try:
        yield
    except OutputExistsError:
        raise
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) != str(temporary):
            raise
        if error.errno is None:  # raised by a library, with its text alone
            raise OSError(errno.EIO, str(error), str(path)) from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def _check_unchanged(target: Path, temporary: Path) -> None:
    """Check that nobody has written ``path`` since the check; if so, keep both files."""
    key = str(target)
    if key not in _checked:
        return
    before, now = _checked.pop(key), _identity(target)
    if now in (None, before) or carries_mark(target):
        return
    kept = target.with_name(f"{target.stem}.{os.getpid()}{target.suffix}")
    os.replace(temporary, kept)
    raise OutputExistsError(
        f"{display_name(target)}: was written by another program meanwhile and stays; the output "
        f"is {display_name(kept)}"
    )


@contextmanager
def _write_to_stream(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary file, whose bytes go to ``path`` when the block succeeds."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, "output")
        yield temporary
        number = _descriptor(path)
        sys.stdout.flush()
        # Write to the open descriptor if there is one: a file that is opened again by its name is
        # overwritten from its start.
        target = os.fsencode(path) if number is None else os.dup(number)
        with open(temporary, "rb") as source, open(target, "wb") as sink:
            shutil.copyfileobj(source, sink)


def read_json(path: str | os.PathLike) -> Any:
    """The content of a user's JSON file.

    Raises:
        RegionDHError: it is missing, can't be read, or isn't JSON in UTF-8.
    """
    name = display_name(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputNotFoundError(f"{name}: no such file") from None
    except OSError as error:
        raise RegionDHError(f"{name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RegionDHError(f"{name}: not JSON ({error})") from None


def file_sha256(path: str | os.PathLike) -> bytes:
    """The sha256 of a file's bytes.

    Raises:
        OSError: it can't be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def write_json(path: str | os.PathLike, values: Any, format: str | None = None) -> None:
    """Writes JSON, complete or not at all: ASCII, with everything else escaped.

    A byte of a file name that isn't UTF-8 becomes a lone surrogate, ``\\udce9`` for 0xe9, as by
    ``os.fsdecode``. So ``json.loads`` returns the file name unchanged.

    Args:
        path: the file.
        values: a dict, or with ``format`` also a list of dicts.
        format: the value of the first key ``format``, such as "regiondh-metrics", in the dict or in
            each dict of a list. :func:`carries_mark` reads it. None leaves it out.
    """
    if format is not None:
        values = (
            [{"format": format, **value} for value in values]
            if not isinstance(values, Mapping)
            else {"format": format, **values}
        )
    with replace_when_complete(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
