"""When lines of progress come, and what they say, by a clock that the test turns."""

import io
from types import SimpleNamespace

import pytest

from regiondh_d2.utils import progress
from regiondh_d2.utils.progress import Progress, close_bars


@pytest.fixture
def clock(monkeypatch):
    """The time now, in a list."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_few_seconds_and_at_the_end(clock):
    lines = []
    counter = Progress(lines.append, "images encoded", 8, every=50.0)
    for _ in range(8):
        clock[0] += 30.0
        counter.step()
    assert lines == [
        "2 of 8 images encoded, 3.0 min left",
        "4 of 8 images encoded, 2.0 min left",
        "6 of 8 images encoded, 1.0 min left",
        "8 of 8 images encoded, 0.0 min left",
    ]


def test_counts_may_jump(clock):
    lines = []
    counter = Progress(lines.append, "images encoded", 40)
    clock[0] += 6.0
    counter.show(30)
    clock[0] += 1.0
    counter.show(40)
    assert lines == [f"{done} of 40 images encoded, 0.0 min left" for done in (30, 40)]


def test_short_work_and_other_processes_say_nothing(clock):
    lines = []
    short = Progress(lines.append, "images encoded", 2)
    silent = Progress(None, "images encoded", 2)
    for seconds in (1.0, 2.0):
        clock[0] += seconds
        short.step()
    clock[0] += 9.0
    silent.show(2)
    assert lines == []


def test_a_note_is_shown_behind_the_numbers(clock):
    lines = []
    counter = Progress(lines.append, "iterations", 10)
    for done in (0, 5, 10):
        clock[0] += 30.0
        counter.show(done, f"loss {10 - done}")
    assert lines == [
        "0 of 10 iterations, loss 10",
        "5 of 10 iterations, 1.0 min left, loss 5",
        "10 of 10 iterations, 0.0 min left, loss 0",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Standard error as a terminal; bars come at once, and change with every step."""
    stream = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    bar = progress._Bar
    monkeypatch.setattr(
        progress, "_Bar", lambda **given: bar(**given | {"delay": 0, "mininterval": 0})
    )
    return stream


def shown(stream):
    """What a terminal shows: what was written behind the last return."""
    return stream.getvalue().rpartition("\r")[2]


def test_a_bar_on_a_terminal(terminal):
    lines = []
    counter = Progress(lines.append, "images encoded", 8, every=0.0)
    counter.step(2)
    assert shown(terminal).startswith("images encoded:  25%|")
    assert "2/8 [" in shown(terminal)
    counter.show(6, "loss 1.5")
    assert "6/8 [" in shown(terminal)
    assert "loss 1.5" in shown(terminal)
    counter.show(8)
    assert shown(terminal).strip() == ""
    assert lines == []


def test_no_bar_for_other_processes(terminal):
    silent = Progress(None, "images encoded", 2)
    silent.step(2)
    assert terminal.getvalue() == ""


def test_bars_of_stopped_work_go_away(terminal):
    counter = Progress(print, "images encoded", 8)
    counter.step(2)
    close_bars()
    assert shown(terminal).strip() == ""
    close_bars()


def test_nothing_to_do(terminal):
    Progress(print, "images encoded", 0).show(0)
    assert shown(terminal).strip() == ""


def test_nothing_done_yet(clock):
    lines = []
    counter = Progress(lines.append, "images encoded", 4)
    counter.show(0)
    clock[0] += 6.0
    counter.show(0)
    clock[0] += 6.0
    counter.step(2)
    empty = Progress(lines.append, "images encoded", 0)
    clock[0] += 6.0
    empty.show(0)
    assert lines == [
        "0 of 4 images encoded",
        "2 of 4 images encoded, 0.2 min left",
        "0 of 0 images encoded",
    ]
