"""When lines of progress come, and what they say, by a clock that the test turns."""

import pytest

from regiondh_d2.utils import progress
from regiondh_d2.utils.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """The time now, in a list."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_few_seconds_and_at_the_end(clock):
    lines = []
    counter = Progress(lines.append, "images coded", 8, every=50.0)
    for _ in range(8):
        clock[0] += 30.0
        counter.step()
    assert lines == [
        "2 of 8 images coded, 3.0 min left",
        "4 of 8 images coded, 2.0 min left",
        "6 of 8 images coded, 1.0 min left",
        "8 of 8 images coded, 0.0 min left",
    ]


def test_counts_may_jump(clock):
    lines = []
    counter = Progress(lines.append, "images coded", 40)
    clock[0] += 6.0
    counter.show(30)
    clock[0] += 1.0
    counter.show(40)
    assert lines == ["30 of 40 images coded, 0.0 min left", "40 of 40 images coded, 0.0 min left"]


def test_short_work_and_other_processes_say_nothing(clock):
    lines = []
    short = Progress(lines.append, "images coded", 2)
    silent = Progress(None, "images coded", 2)
    for seconds in (1.0, 2.0):
        clock[0] += seconds
        short.step()
    clock[0] += 9.0
    silent.show(2)
    assert lines == []


def test_nothing_done_yet(clock):
    lines = []
    counter = Progress(lines.append, "images coded", 4)
    counter.show(0)
    clock[0] += 6.0
    counter.show(0)
    clock[0] += 6.0
    counter.step(2)
    empty = Progress(lines.append, "images coded", 0)
    clock[0] += 6.0
    empty.show(0)
    assert lines == [
        "0 of 4 images coded",
        "2 of 4 images coded, 0.2 min left",
        "0 of 0 images coded",
    ]
