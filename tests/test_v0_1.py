"""Files of version 0.1, which this version must open: see data/v0_1/make.py for how they were made.

What is encoded here is encoded by the fixtures' own network, which is tiny.
"""

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from extraction import make_extractor
from regiondh_d2.checkpoint import model_fingerprint
from regiondh_d2.config import changed_settings, code_settings
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import load_trained_model
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.images import ImageEntry
from regiondh_d2.retrieval.index_folder import read_index_folder
from regiondh_d2.structures.codes import UNKNOWN
from regiondh_d2.structures.packed import unpack_codes

DATA = Path(__file__).parent / "data" / "v0_1"
PLACE = "/tmp/v0_1/photos"  # of the photos when they were encoded
NAMES = ["a.png", "b.jpg", "clear.png", "e.png", "größe.png", "deep/d.png"]
CHANGED = "clear.png"  # transparent: its pixels are read otherwise now
HOUR = 3600 * 10**9


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("extract_codes")


@pytest.fixture(scope="module")
def network():
    """Config and weights."""
    training = DATA / "training"
    opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(training / "model_final.pth")]
    return ["--config-file", str(training / "config.yaml")], opts


@pytest.fixture
def album(tmp_path):
    """The photos in a new place, older than the code file that names them there."""
    shutil.copytree(DATA / "photos", tmp_path / "photos")
    shutil.copy(DATA / "photos.h5", tmp_path / "codes.h5")
    shutil.copytree(DATA / "unfinished.h5.parts", tmp_path / "parts.h5.parts")
    for path in (tmp_path / "codes.h5", *(tmp_path / "parts.h5.parts").iterdir()):
        place_at(path, tmp_path / "photos")
    for path in (tmp_path / "photos").rglob("*.*"):
        set_age(path, tmp_path / "codes.h5", HOUR)
    return tmp_path


def place_at(path, folder):
    """As if the photos had been encoded in this folder."""
    with h5py.File(path, "r+") as file:
        for column in ("image_ids", "file_names"):
            names = [n.decode().replace(PLACE, str(folder)) for n in file[column][()]]
            del file[column]
            length = max(len(name.encode()) for name in names)
            text = np.array([n.encode() for n in names], h5py.string_dtype("utf-8", length))
            file[column] = text


def set_age(path, than, nanoseconds):
    """Makes a file so much older than another."""
    time = os.stat(than).st_mtime_ns - nanoseconds
    os.utime(path, ns=(time, time))


def extract(tool, network, *arguments):
    config, opts = network
    return tool.main([*config, *map(str, arguments), *opts])


def test_code_files_open():
    codes = read_codes(DATA / "photos.h5")
    assert codes.file_names == [f"{PLACE}/{name}" for name in NAMES]
    assert (codes.bits, codes.roots, len(codes.model_fingerprint)) == (16, [""], 64)
    assert set(codes.size) == set(codes.mtime_ns) == {UNKNOWN}
    assert codes.content_sha256 is codes.class_weights is None
    assert len(codes.instances.codes) > 0

    scenes = read_codes(DATA / "scenes.h5")
    assert (len(scenes), scenes.dataset) == (11, "scenes_retrieval")
    assert scenes.labels.shape == (11, 12) == (11, len(scenes.class_names))
    np.testing.assert_array_equal(scenes.activations > 0.5, unpack_codes(scenes.codes, 16))


@pytest.mark.parametrize("engine", ["faiss", "numpy"])
def test_index_folders_open(engine):
    if engine == "faiss":
        pytest.importorskip("faiss")
    folder = read_index_folder(DATA / f"index_{engine}")
    scenes = read_codes(DATA / "scenes.h5")
    assert folder.items.image_ids == scenes.image_ids
    for granularity, codes in (("image", scenes.codes), ("instance", scenes.instances.codes)):
        distances, rows = folder.index(granularity).search(codes[:3], 1)
        assert (distances == 0).all()
        np.testing.assert_array_equal(codes[rows[:, 0]], codes[:3])


def test_the_checkpoint_is_the_network_of_the_codes(network):
    config, opts = network
    model = load_trained_model(build_cfg(config[1], opts))
    codes = read_codes(DATA / "photos.h5")
    assert model_fingerprint(model) == codes.model_fingerprint
    assert isinstance(model, torch.nn.Module)
    settings = code_settings(
        build_cfg(config[1], opts), activations=False, features=False, instances=True
    )
    assert set(changed_settings(codes.settings, settings)) == {"IMAGE_READER"}


def test_resume(tool, network, album, capsys):
    """Rows learn what is known of their photos; only pixels that are read otherwise are encoded."""
    before = read_codes(album / "codes.h5")
    run = ("--input", album / "photos", "--output", album / "codes.h5", "--resume")
    assert extract(tool, network, *run) == 0
    assert "6 rows, 1 of them encoded now" in capsys.readouterr().out
    codes = read_codes(album / "codes.h5")
    assert (codes.roots, codes.relative_paths) == ([str(album / "photos")], NAMES)
    for row, name in enumerate(codes.file_names):
        status = os.stat(name)
        assert (codes.size[row], codes.mtime_ns[row]) == (status.st_size, status.st_mtime_ns)
    same = [row for row, name in enumerate(NAMES) if name != CHANGED]
    np.testing.assert_array_equal(codes.codes[same], before.codes[same])
    assert "IMAGE_READER 2" in codes.settings.splitlines()
    assert sorted(os.listdir(album)) == ["codes.h5", "parts.h5.parts", "photos"]

    assert extract(tool, network, *run) == 0
    assert "6 rows, 0 of them encoded now" in capsys.readouterr().out


def test_photos_newer_than_the_code_file_are_coded_again(tool, network, album, capsys):
    for name, age in (("a.png", -HOUR), ("e.png", HOUR)):
        set_age(album / "photos" / name, album / "codes.h5", age)
    run = ("--input", album / "photos", "--output", album / "codes.h5", "--resume")
    assert extract(tool, network, *run) == 0
    assert "6 rows, 2 of them encoded now" in capsys.readouterr().out


def test_an_unfinished_extraction_goes_on(tool, network, album, capsys):
    for part in (album / "parts.h5.parts").iterdir():
        os.utime(part, ns=(os.stat(album / "codes.h5").st_mtime_ns,) * 2)
    run = ("--input", album / "photos", "--output", album / "parts.h5", "--resume")
    assert extract(tool, network, *run) == 0
    assert "6 rows, 4 of them encoded now" in capsys.readouterr().out
    assert sorted(os.listdir(album)) == ["codes.h5", "parts.h5", "photos"]


def test_a_moved_folder(tool, network, album, capsys):
    (album / "photos").rename(album / "moved")
    run = ("--input", album / "moved", "--output", album / "codes.h5", "--resume")
    move = f"{album / 'photos'}={album / 'moved'}"
    assert extract(tool, network, *run, "--root", move) == 0
    assert "6 rows, 1 of them encoded now" in capsys.readouterr().out
    assert read_codes(album / "codes.h5").roots == [str(album / "moved")]


def test_a_link_to_the_folder_gives_no_doubles(tool, network, album, capsys):
    (album / "link").symlink_to(album / "photos")
    run = ("--input", album / "link", "--output", album / "codes.h5", "--resume")
    assert extract(tool, network, *run) == 0
    assert "6 rows, 1 of them encoded now" in capsys.readouterr().out


def test_rows_of_photos_that_the_run_does_not_look_at(tool, network, album):
    """They take what can be known, and whatever may have changed is encoded at the next look."""
    set_age(album / "photos" / "a.png", album / "codes.h5", -HOUR)
    (album / "photos" / "e.png").rename(album / "gone.png")
    written = os.stat(album / "codes.h5").st_mtime_ns
    run = ("--input", album / "photos" / "deep", "--output", album / "codes.h5", "--resume")
    assert extract(tool, network, *run) == 0
    codes = read_codes(album / "codes.h5")
    assert len(codes) == 6
    known = {
        Path(name).name: (codes.size[row], codes.mtime_ns[row])
        for row, name in enumerate(codes.file_names)
    }
    status = os.stat(album / "photos" / "b.jpg")
    assert known["b.jpg"] == (status.st_size, status.st_mtime_ns)
    assert known["a.png"] == (UNKNOWN, written)
    assert known[CHANGED] == (UNKNOWN, 0)
    assert set(codes.roots) == {str(album / "photos"), str(album / "photos" / "deep")}


def test_the_old_file_is_kept_until_the_new_one_is_complete(tool, network, album, capsys):
    old = (album / "codes.h5").read_bytes()
    (album / "photos" / "bad.png").write_bytes(b"no image")
    run = ("--input", album / "photos", "--output", album / "codes.h5", "--resume")
    assert extract(tool, network, *run) == 1
    assert (album / "codes.h5").read_bytes() == (album / "codes.h5.bak").read_bytes() == old
    assert extract(tool, network, *run, "--skip-bad") == 0
    assert not (album / "codes.h5.bak").exists()
    assert len(read_codes(album / "codes.h5")) == 6


def test_a_file_that_is_named_as_the_backup_stays(tool, network, album):
    (album / "codes.h5.bak").write_text("mine")
    run = ("--input", album / "photos", "--output", album / "codes.h5", "--resume")
    assert extract(tool, network, *run) == 0
    assert (album / "codes.h5.bak").read_text() == "mine"


def test_a_dataset_resumes(album):
    """By ids, whatever the place of the images."""

    shutil.copy(DATA / "scenes.h5", album / "scenes.h5")
    codes = read_codes(album / "scenes.h5")
    extractor = make_extractor(
        dataset=codes.dataset,
        class_names=codes.class_names,
        model_fingerprint=codes.model_fingerprint,
        settings=codes.settings,
        activations=True,
    )
    photo = str(album / "photos" / "a.png")
    status = os.stat(photo)
    images = [
        ImageEntry(i, photo, (1,), str(album / "photos"), "a.png", status.st_size, 5)
        for i in codes.image_ids
    ]
    result = extractor.extract(images, album / "scenes.h5", resume=True)
    assert (result.coded, result.rows) == (0, 11)
    again = read_codes(album / "scenes.h5")
    np.testing.assert_array_equal(again.codes, codes.codes)
    assert set(again.size) == {status.st_size}
