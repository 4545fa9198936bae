"""Files that aren't complete: whose they are, and that none is left for good."""

import multiprocessing
import os
import signal
import time

import pytest

from regiondh_d2.data import generate_scenes
from regiondh_d2.retrieval.engines import create_index
from regiondh_d2.utils import temporaries
from regiondh_d2.utils.file_io import replace_when_complete
from regiondh_d2.utils.temporaries import is_temporary, temporary_beside


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    """As in a process that has written nothing yet."""
    monkeypatch.setattr(temporaries, "_swept", set())


def be_killed(target, folder):
    """Write a part of a file or of a folder, and be killed."""
    path = temporary_beside(target)
    if folder:
        path.mkdir()
        (path / "part").touch()
    else:
        path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)


def leave(target, folder=False):
    process = multiprocessing.get_context("fork").Process(target=be_killed, args=(target, folder))
    process.start()
    process.join()


@pytest.mark.parametrize("name", ["out.json", "a b\n'ä" + "x" * 100])
def test_the_next_process_removes_what_a_killed_one_left(tmp_path, name):
    target = tmp_path / name
    leave(target)
    leave(tmp_path / "another")
    left = os.listdir(tmp_path)
    assert left and all(map(is_temporary, left))
    with replace_when_complete(target) as temporary:
        temporary.write_text("whole")
    assert os.listdir(tmp_path) == [name]


def test_those_of_living_processes_stay(tmp_path):
    mine = temporary_beside(tmp_path / "out")
    mine.touch()
    temporaries._swept.clear()
    with replace_when_complete(tmp_path / "out") as temporary:
        temporary.touch()
    assert mine.exists()


@pytest.mark.parametrize(("days", "stays"), [(0.5, True), (-400, True), (2, False)])
def test_those_of_other_machines_stay_for_a_day(tmp_path, days, stays):
    other = tmp_path / f".out.{'0' * 11}1-1-{'a' * 32}.tmp"
    other.touch()
    written = time.time() - days * 86400
    os.utime(other, (written, written))
    temporary_beside(tmp_path / "out")
    assert other.exists() == stays


@pytest.mark.parametrize("name", ["out.tmp", ".out.tmp", ".out.0-1-2.tmp", f".{'a' * 32}.tmp"])
def test_names_of_others_are_none(tmp_path, name):
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (0, 0))
    temporary_beside(tmp_path / "out")
    assert os.listdir(tmp_path) == [name] and not is_temporary(name)


def test_scenes_that_were_not_complete(tmp_path):
    leave(tmp_path / "scenes", folder=True)
    generate_scenes(tmp_path / "scenes", num_database=1, num_queries=1, image_size=(64, 64))
    assert os.listdir(tmp_path) == ["scenes"]


def test_shards_whose_first_writer_was_killed(tmp_path):
    (tmp_path / "index").mkdir()
    leave(tmp_path / "index/codes-1.npy")
    index = create_index(8, "shards", path=tmp_path / "index")
    assert len(index) == 0
