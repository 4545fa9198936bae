"""Warnings are off in some threads, and as before afterwards."""

import threading
import warnings

from regiondh_d2.utils.quiet import without_warnings


def test_threads_leave_warnings_as_they_were():
    """Two threads that overlap, the first of which leaves first."""
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with without_warnings:
            inside.set()
            leave.wait(10)

    before = list(warnings.filters)
    second = threading.Thread(target=stay)
    with without_warnings:
        second.start()
        inside.wait(10)
    leave.set()
    second.join()
    assert list(warnings.filters) == before
