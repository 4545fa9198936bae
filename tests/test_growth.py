"""Folders are added below named roots alone, by two subcommands."""

import os
import sys
import time
from dataclasses import replace

import pytest

from regiondh_d2.retrieval.code_store import write_codes
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.web import growth
from regiondh_d2.web.growth import FolderAdder
from regiondh_d2.web.lanes import BusyError
from web_site import make_items


@pytest.fixture
def folder(tmp_path):
    """The index of a code file, and folders of photos to add."""
    items = make_items(tmp_path / "photos", 4)
    write_codes(tmp_path / "codes.h5", items)
    source = str(tmp_path / "codes.h5")
    write_index_folder(tmp_path / "index", items, engine="numpy", source=source)
    (tmp_path / "roots" / "a" / "b").mkdir(parents=True)
    (tmp_path / "roots" / ".hidden").mkdir()
    os.symlink(tmp_path / "photos", tmp_path / "roots" / "link")
    return read_index_folder(tmp_path / "index")


@pytest.fixture
def steps(monkeypatch):
    """The words of the subcommands, in place of running them; ``steps.code`` is run instead."""

    class Steps(list):
        code = "print('encoded 3 images')"

    steps = Steps()
    popen = growth.subprocess.Popen

    def start(command, **options):
        assert command[:3] == [sys.executable, "-m", "regiondh_cli"]
        steps.append(command[3:])
        return popen([sys.executable, "-c", steps.code], **options)

    monkeypatch.setattr(growth.subprocess, "Popen", start)
    return steps


def finish(adder):
    deadline = time.monotonic() + 10
    while adder.state()["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return adder.state()


def test_a_folder_is_encoded_and_the_index_built(folder, steps, tmp_path):
    adder = FolderAdder([tmp_path / "roots"], folder, "some/config", ["MODEL.DEVICE", "cpu"])
    assert adder.state() == {"state": "idle", "line": ""}
    names = [one["name"] for one in adder.folders()]
    assert names == ["roots", "roots/a"]  # no link, nothing hidden
    adder.start(0, "a/b")
    assert finish(adder) == {"state": "done", "line": "encoded 3 images"}
    codes, index = str(tmp_path / "codes.h5"), str(tmp_path / "index")
    encode = ["extract-codes", "--config-file", "some/config", "--resume", "--skip-bad"]
    encode += ["--output", codes, "--input", str(tmp_path / "roots" / "a" / "b")]
    build = ["build-index", codes, "--output", index, "--engine", "numpy"]
    assert steps == [[*encode, "MODEL.DEVICE", "cpu"], build]


@pytest.mark.parametrize("path", ["..", "../photos", "/etc", "link", "a/../..", "none", "a\0b"])
def test_nothing_else_can_be_added(folder, steps, tmp_path, path):
    adder = FolderAdder([tmp_path / "roots"], folder, "some/config")
    with pytest.raises(RegionDHError, match="path"):
        adder.start(0, path)
    for root in (-1, 1):
        with pytest.raises(RegionDHError, match="root"):
            adder.start(root, "")
    assert steps == []


def test_one_at_a_time_and_a_failure_is_told(folder, steps, tmp_path):
    steps.code = "import sys, time; time.sleep(0.3); sys.exit('error: no photos')"
    adder = FolderAdder([tmp_path / "roots"], folder, "some/config")
    adder.start(0, "")
    with pytest.raises(BusyError):
        adder.start(0, "a")
    assert finish(adder) == {"state": "failed", "line": "error: no photos"}
    assert len(steps) == 1  # the index stays as it was
    adder.start(0, "a")
    adder.close()
    assert finish(adder)["state"] == "failed"


def test_an_index_that_would_lose_photos_cannot_grow(folder, tmp_path):
    roots = [tmp_path / "roots"]
    assert FolderAdder([], folder, "").roots == []
    with pytest.raises(RegionDHError, match="no such folder"):
        FolderAdder([tmp_path / "none"], folder, "c")
    with pytest.raises(RegionDHError, match="--config-file"):
        FolderAdder(roots, folder, "")
    with pytest.raises(RegionDHError, match="approximate"):
        FolderAdder(roots, replace(folder, record={**folder.record, "options": {"nlist": 4}}), "c")
    write_codes(tmp_path / "codes.h5", make_items(tmp_path / "photos", 3))
    with pytest.raises(RegionDHError, match="lacks photos"):
        FolderAdder(roots, folder, "c")
    (tmp_path / "codes.h5").unlink()
    with pytest.raises(RegionDHError, match="isn't there any more"):
        FolderAdder(roots, folder, "c")
