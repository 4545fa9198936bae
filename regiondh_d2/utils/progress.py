"""Progress of long work: a bar on a terminal, lines of text elsewhere."""

import sys
import time
from collections.abc import Callable
from weakref import WeakSet

from tqdm import tqdm

__all__ = ["Progress", "close_bars"]


class _Bar(tqdm):
    monitor_interval = 0  # no drawing thread, since loaders fork this process while a bar is shown


_open: WeakSet[_Bar] = WeakSet()


class Progress:
    """Shows how much of some work is done, and how long the rest will take.

    On a terminal (standard error) it shows a bar, which disappears at the end. Elsewhere it logs a
    line every ``every`` seconds and one at the end. Work that ends sooner logs nothing.
    """

    def __init__(
        self, log: Callable[[str], None] | None, what: str, total: int, every: float = 5.0
    ):
        """
        Args:
            log: takes the lines; None shows nothing, not even a bar.
            what: what is counted, such as "images encoded".
            total: how many there are.
            every: seconds between two lines.
        """
        self._log = log
        self._what = what
        self._total = total
        self._every = every
        self._done = 0
        self._start = self._last = time.monotonic()
        self._bar: _Bar | None = None
        if log is not None and sys.stderr.isatty():
            # With the delay, short work shows no bar.
            self._bar = _Bar(
                total=total,
                desc=what,
                file=sys.stderr,
                leave=False,
                dynamic_ncols=True,
                delay=0.5,
            )
            _open.add(self._bar)

    def step(self, count: int = 1) -> None:
        """Add to the number that is done."""
        self.show(self._done + count)

    def show(self, done: int, note: str = "") -> None:
        """Set the number that is done.

        Args:
            done: from 0 to the total.
            note: shown behind the numbers.
        """
        step, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step)
            if done >= self._total:
                self._bar.close()
            return
        now = time.monotonic()
        since = self._start if done == self._total else self._last
        if self._log is None or now - since < self._every:
            return
        self._last = now
        line = f"{done} of {self._total} {self._what}"
        if done:  # at 0 there is no speed to estimate the rest from
            left = (now - self._start) / done * (self._total - done)
            line += f", {left / 60:.1f} min left"
        self._log(f"{line}, {note}" if note else line)


def close_bars() -> None:
    """Remove the bars of work that stopped early, so that an error starts on a new line."""
    for bar in list(_open):
        bar.close()
