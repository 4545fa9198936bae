"""Queues with a limit: one slow kind of work doesn't keep the others waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["BusyError", "Lane"]

T = TypeVar("T")


class BusyError(Exception):
    """Too many requests wait already."""


class Lane:
    """Threads for one kind of work, and a queue with a limit.

    Args:
        name: of the threads.
        threads: how many.
        waiting: how many calls may wait for a thread.
    """

    def __init__(self, name: str, threads: int, waiting: int):
        self.name = name
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = threads + waiting
        self._lock = threading.Lock()
        self._pending = 0

    @property
    def pending(self) -> int:
        """How many calls run or wait."""
        return self._pending

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread.

        If the caller is canceled while the call still waits, it never runs.

        Raises:
            BusyError: too many calls wait.
        """
        with self._lock:
            if self._pending >= self._most:
                raise BusyError
            self._pending += 1
        future = self._pool.submit(function, *arguments)
        future.add_done_callback(self._count_down)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drop what waits; what runs may finish."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _count_down(self, _: Future) -> None:
        with self._lock:
            self._pending -= 1
