"""Names of files that are not complete yet, and the removal of those that a killed process left.

The name says which process writes: ``.NAME.MACHINE-PID-NUMBER.tmp``, beside the file that it will
become. So the next process that writes into the folder can tell a file in use from one that nobody
will complete.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

__all__ = ["is_temporary", "temporary_beside"]

_NAME = re.compile(r"\.(.+)\.([0-9a-f]{12})-([0-9]{1,10})-([0-9a-f]{32})\.tmp", re.DOTALL)
_OLD = 24 * 3600.0  # seconds after which a file of another machine is no longer in use
_NAME_LENGTH = 40  # of the file that it will become; names have a maximum length

_swept: set[tuple[int, str]] = set()  # processes and folders


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one of :func:`temporary_beside`."""
    return _NAME.fullmatch(name) is not None


def temporary_beside(target: Path) -> Path:
    """A new name for what will be renamed to ``target`` when it is complete.

    The first call for a folder in a process removes what killed processes of this machine left
    there, and what other machines left more than a day ago.

    Args:
        target: the file or folder to be; its folder exists.
    """
    _sweep(target.parent)
    number = uuid.uuid4().hex
    name = f".{target.name[:_NAME_LENGTH]}.{_machine()}-{os.getpid()}-{number}.tmp"
    return target.with_name(name)


@functools.cache
def _machine() -> str:
    """12 hex digits of this start of the system, where process ids are unique; else zeros."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        space = os.readlink("/proc/self/ns/pid").encode()  # a container has its own process ids
    except OSError:
        return "0" * 12
    return hashlib.sha256(boot + space).hexdigest()[:12]


def _sweep(folder: Path) -> None:
    key = os.getpid(), os.path.realpath(folder)
    if key in _swept:
        return
    _swept.add(key)
    with suppress(OSError):
        for name in os.listdir(folder):
            match = _NAME.fullmatch(name)
            if match is not None and _is_left(folder / name, match[2], int(match[3])):
                _remove(folder / name)


def _is_left(path: Path, machine: str, process: int) -> bool:
    if machine == _machine() != "0" * 12:
        try:
            os.kill(process, 0)  # sends nothing
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        return False
    try:
        return time.time() - os.lstat(path).st_mtime > _OLD
    except OSError:
        return False


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
