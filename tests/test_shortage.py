"""A machine without memory or open files: nothing is called damaged, and nothing passed over."""

import errno
import os
import resource
import shutil
from contextlib import contextmanager
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from builders import photo_code_set
from indexing import make_items
from regiondh_d2.checkpoint import read_weights
from regiondh_d2.data.image_reader import read_image
from regiondh_d2.data.photo_files import find_photos
from regiondh_d2.retrieval import code_store, image_inputs
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.retrieval.engines.shards_engine import map_array, write_array
from regiondh_d2.retrieval.exchange import export_codes, import_codes
from regiondh_d2.retrieval.image_inputs import ImageInputs
from regiondh_d2.retrieval.images import find_images
from regiondh_d2.retrieval.index_file import read_arrays, write_arrays
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.retrieval.photo_state import PhotoCheck, root_problem
from regiondh_d2.utils.shortage import ShortageError, refuse_if_short, shortage

NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4 bytes")


@contextmanager
def no_open_file_left():
    """A context in which this process can't open one more file, by the system's own limit."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError(errno.EMFILE, "Too many open files", "a.jpg"), "too many open files: raise the"),
        (OSError(errno.ENFILE, "Too many open files in system"), "too many open files in system: "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "cannot allocate memory: end other "),
        (RuntimeError("can't start new thread"), "can't start new thread: end other programs"),
        (MemoryError(), "out of memory: end other programs"),
        (NO_MEMORY, "out of memory: end other programs"),
    ],
)
def test_what_a_machine_lacks(error, what):
    assert shortage(error).startswith(what)
    with pytest.raises(ShortageError, match=f"^{what}"):
        refuse_if_short(error)
    assert shortage(ShortageError(shortage(error))) == shortage(error)


def test_what_says_something_about_the_file():
    for error in (OSError(errno.EIO, "x"), PermissionError(13, "x"), ValueError(), RuntimeError()):
        assert shortage(error) == ""
        refuse_if_short(error)
    for error in (MemoryError(), NO_MEMORY):  # a damaged file may ask for too much
        refuse_if_short(error, memory=False)


@pytest.fixture
def photos(tmp_path):
    """Two photos, the second known by its content alone."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, value in (("a.png", 0), ("b", 9)):
        Image.new("RGB", (8, 8), (value, 0, 0)).save(folder / name, "PNG")
    return folder


def codes_of(photos, path):
    write_codes(path, photo_code_set([photos / "a.png", photos / "b"], roots=[photos]))
    return path


def other_time(photos):
    items = photo_code_set([photos / "a.png"], roots=[photos])
    os.utime(photos / "a.png", ns=(0, 0))
    return items


def readers(path, photos):
    """Functions that read a file or a folder, by name."""
    codes = codes_of(photos, path / "a.h5")
    export_codes(read_codes(codes), path / "export.npz", "npz")
    write_index_folder(path / "index", make_items(9, 3), nlist=2)
    write_arrays(path / "a.npz", x=np.zeros(3))
    write_array(path / "a.npy", np.zeros(3, np.uint8))
    torch.save({}, path / "a.pth")
    by_content = other_time(photos)
    return {
        "codes": lambda: read_codes(codes),
        "export": lambda: import_codes(path / "export.npz"),
        "index": lambda: read_index_folder(path / "index"),
        "arrays": lambda: read_arrays(path / "a.npz", ["x"]),
        "shard": lambda: map_array(path / "a.npy", (None,), np.uint8, "x"),
        "weights": lambda: read_weights(path / "a.pth"),
        "photo": lambda: read_image(photos / "a.png"),
        "folder": lambda: find_photos([photos]),
        "root": lambda: root_problem(str(photos)),
        "content": lambda: PhotoCheck(by_content).state(0),
    }


def test_no_file_is_damaged_or_passed_over_where_no_more_can_be_opened(tmp_path, photos):
    for name, read in readers(tmp_path, photos).items():
        read()
        with no_open_file_left(), pytest.raises((ShortageError, OSError)) as told:
            read()
        text = str(told.value).lower()
        assert "too many open files" in text, name
        assert "damaged or" not in text, name
        assert "the index again" not in text, name


def test_a_photo_is_not_passed_over_in_a_loaders_worker(photos, monkeypatch):
    class Load:
        def with_thumbnail(self, name):
            return read_image(name), None

    def fail(name):
        raise OSError(errno.EMFILE, "Too many open files", name)

    images = find_images([photos])
    inputs = ImageInputs(images, Load())
    assert inputs[0][1].size > 0
    monkeypatch.setattr(image_inputs, "file_sha256", fail)
    loader = torch.utils.data.DataLoader(inputs, sampler=[0, 1], batch_size=None, num_workers=1)
    with pytest.raises(ShortageError) as told:
        list(loader)
    assert str(told.value).startswith("too many open files: raise the limit")
    assert "\n" not in str(told.value)


def test_sound_codes_and_weights_are_not_damaged_where_memory_is_short(
    tmp_path, photos, monkeypatch
):
    codes, weights = codes_of(photos, tmp_path / "a.h5"), tmp_path / "a.pth"
    torch.save({}, weights)
    for error in (MemoryError("Unable to allocate 4 GiB"), NO_MEMORY):
        monkeypatch.setattr(code_store._Reader, "code_set", Mock(side_effect=error))
        monkeypatch.setattr(torch, "load", Mock(side_effect=error))
        for read, path in ((read_codes, codes), (read_weights, weights)):
            with pytest.raises(ShortageError, match="^out of memory"):
                read(path)


def test_a_folder_whose_files_cannot_be_looked_at(photos, monkeypatch):
    """A folder may let its names be read and its files not; their photos aren't gone."""
    shutil.copytree(photos, photos / "closed")
    stat = os.stat

    def closed(path, *args, **options):
        if os.path.basename(os.path.dirname(path)) == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", closed)
    scan = find_photos([photos])
    assert [photo.relative_path for photo in scan.images] == ["a.png", "b"]
    assert scan.unreadable_folders == [str(photos / "closed")]
    assert not scan.could_see(str(photos / "closed" / "a.png"))
