"""Files in use by another program, and locks against a second run."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import filelock

from .display import display_name
from .errors import RegionDHError

logger = logging.getLogger(__name__)

__all__ = ["FileInUseError", "hold_lock", "is_busy", "refuse_if_busy"]

_BUSY = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EBUSY, errno.ETXTBSY, errno.EDEADLK}
_WINDOWS_BUSY = {32, 33}  # sharing violation, lock violation


class FileInUseError(RegionDHError):
    """Another program is using a file or folder."""


def is_busy(error: BaseException) -> bool:
    """Whether an error only means that another program is using the file."""
    if not isinstance(error, OSError):
        return False
    return error.errno in _BUSY or getattr(error, "winerror", None) in _WINDOWS_BUSY


def refuse_if_busy(path: str | os.PathLike, error: BaseException) -> None:
    """Raise :class:`FileInUseError` if the error means that; otherwise do nothing.

    Raises:
        FileInUseError: the file is in use.
    """
    if is_busy(error):
        raise FileInUseError(
            f"{display_name(path)}: in use by another program; wait until it ends or close it"
        ) from error


@contextmanager
def hold_lock(
    path: str | os.PathLike, what: str | os.PathLike, wait: float = 0.0
) -> Iterator[None]:
    """Holds a lock while the block runs. If the process is killed, the system releases the lock.

    On a file system without locks a warning says so, and the block runs all the same.

    Args:
        path: the lock's file; it stays.
        what: the file or folder that is locked, for the message.
        wait: seconds to wait while another process, or this one elsewhere, holds the lock.

    Raises:
        FileInUseError: the lock is still held after that time.
    """
    lock = filelock.FileLock(path, is_singleton=False)
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout:
        raise FileInUseError(
            f"{display_name(what)}: in use by another program that writes it; wait until it ends"
        ) from None
    except NotImplementedError:
        logger.warning(
            f"{display_name(what)}: its file system has no locks: let no other program write there"
        )
    try:
        yield
    finally:
        lock.release()
