"""Lines of progress on long work."""

import time
from collections.abc import Callable

__all__ = ["Progress"]


class Progress:
    """A line with the time left every few seconds, and at the end of work that took as long."""

    def __init__(
        self, log: Callable[[str], None] | None, what: str, total: int, every: float = 5.0
    ):
        """
        Args:
            log: takes the lines; None for none.
            what: what is counted and becomes of it, such as "images coded".
            total: how many there are.
            every: seconds between lines.
        """
        self._log = log
        self._what = what
        self._total = total
        self._every = every
        self._done = 0
        self._start = self._last = time.monotonic()

    def step(self, count: int = 1) -> None:
        """So many more are done."""
        self.show(self._done + count)

    def show(self, done: int) -> None:
        """So many of all are done."""
        self._done = done
        now = time.monotonic()
        since = self._start if done == self._total else self._last
        if self._log is None or now - since < self._every:
            return
        self._last = now
        if done == 0:  # nothing tells yet how long the rest takes
            self._log(f"0 of {self._total} {self._what}")
            return
        left = (now - self._start) / done * (self._total - done)
        self._log(f"{done} of {self._total} {self._what}, {left / 60:.1f} min left")
