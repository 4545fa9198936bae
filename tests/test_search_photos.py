"""tools/search_photos.py: a folder of photos becomes searchable, with the shipped network."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from regiondh_d2.data import generate_scenes
from regiondh_d2.retrieval.code_store import read_codes

ROOT = Path(__file__).parents[1]


def search_photos(folder, *args):
    command = [sys.executable, str(ROOT / "tools/search_photos.py"), *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generate_scenes(folder / "mine", num_database=4, num_queries=1)
    (folder / "mine/broken.jpg").write_bytes(b"no image")
    return folder


def test_photos_are_coded_indexed_and_searched(photos):
    result = search_photos(photos, "mine")
    assert result.returncode == 0, result.stderr
    assert "unreadable" in result.stderr
    assert result.stdout.count("$ tools/") == 3
    codes = read_codes(photos / "output/photos/photos.h5")
    assert (len(codes), codes.bits) == (5, 64)
    picture = photos / "output/photos/answers.png"
    assert Image.open(picture).width > 300

    picture.unlink()
    query = codes.file_names[-1]
    again = search_photos(photos, "mine", "--query", query)
    assert again.returncode == 0, again.stderr
    assert "0 of them coded now" in again.stdout
    assert picture.is_file()


def test_a_missing_folder_is_named(tmp_path):
    result = search_photos(tmp_path, "nowhere")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: nowhere: no such folder of photos"
