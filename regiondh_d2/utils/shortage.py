"""Errors that come from the machine and say nothing about the file that was being read.

A reader that takes any error for damage would tell its user to make a sound file again, or would
pass a photo over. It calls :func:`refuse_if_short` first.
"""

from __future__ import annotations

import errno
import re

from .errors import RegionDHError

__all__ = ["ShortageError", "refuse_if_short", "shortage"]

_MEMORY = "end other programs, or raise the limit of memory (`ulimit -v`)"
_FIXES = {
    errno.EMFILE: "raise the limit of open files (`ulimit -n 4096`), or use fewer workers "
    "(DATALOADER.NUM_WORKERS)",
    errno.ENFILE: "end other programs, or raise the system's limit of open files",
    errno.ENOMEM: _MEMORY,
}
# Texts of PyTorch and Python, in a plain RuntimeError.
_NO_MEMORY = re.compile(r"DefaultCPUAllocator: (can't|not enough)|CUDA out of memory")
_NO_THREAD = "can't start new thread"


class ShortageError(RegionDHError):
    """The machine has no more memory, open files or threads to give.

    Nothing is wrong with the files that were being read.
    """

    def __init__(self, message: str):
        # A loader's worker process passes an exception on by calling its class with the text of the
        # traceback, which ends with the class and the message.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


def shortage(error: BaseException) -> str:
    """What the machine lacks, and what to do, in a few words; "" if that isn't what happened."""
    text = str(error)
    if isinstance(error, ShortageError):
        return text
    if isinstance(error, OSError) and error.errno in _FIXES:
        return f"{(error.strerror or text).lower()}: {_FIXES[error.errno]}"
    if isinstance(error, RuntimeError) and _NO_THREAD in text:
        return f"{_NO_THREAD}: end other programs, or raise the limit of processes (`ulimit -u`)"
    if _lacks_memory(error):
        return f"out of memory: {_MEMORY}"
    return ""


def refuse_if_short(error: BaseException, *, memory: bool = True) -> None:
    """Raise :class:`ShortageError` if the machine lacked something; otherwise do nothing.

    Args:
        error: what a reader of a file caught.
        memory: whether a failed allocation counts. A damaged file may ask for more than there is,
            and a photo may be too large for this machine.

    Raises:
        ShortageError: it did.
    """
    what = shortage(error)
    if what and (memory or not _lacks_memory(error)):
        raise ShortageError(what) from error


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    )
