"""Turns warnings off, in any number of threads at once."""

from __future__ import annotations

import threading
import warnings

__all__ = ["without_warnings"]


class Quiet:
    """Turns warnings off while at least one thread is in it.

    ``warnings.catch_warnings`` alone may leave them off for good if two threads use it at once.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


without_warnings = Quiet()
