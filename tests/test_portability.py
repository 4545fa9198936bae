"""Paths of Windows are read. ``test_imports`` hides the modules that only Unix has."""

import ntpath
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from regiondh_d2.data import photo_files
from regiondh_d2.engine import user_code
from regiondh_d2.retrieval import moved_folders
from regiondh_d2.structures import codes
from regiondh_d2.utils import paths
from regiondh_d2.utils.display import display_name
from regiondh_d2.utils.errors import RegionDHError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def windows(monkeypatch):
    """Paths as on Windows, in the modules that split and join them."""
    there = SimpleNamespace(path=ntpath, sep="\\", altsep="/", pathsep=";", environ=os.environ)
    for module in (codes, photo_files, user_code, moved_folders, paths):
        monkeypatch.setattr(module, "os", there)


@pytest.mark.parametrize(
    ("root", "relative_path", "file_name"),
    [
        (r"D:\photos", "2019/a b.jpg", r"D:\photos\2019\a b.jpg"),
        ("D:\\", "a.jpg", r"D:\a.jpg"),
        (r"\\server\share", "x/y/a.jpg", r"\\server\share\x\y\a.jpg"),
    ],
)
def test_code_files_hold_slashes_and_give_backslashes(windows, root, relative_path, file_name):
    assert codes.join_path(root, relative_path) == file_name
    assert codes.path_below(root, file_name) == relative_path
    assert photo_files._below(file_name, root) == relative_path


def test_a_photo_of_another_drive_is_not_below(windows):
    with pytest.raises(RegionDHError, match="is not below"):
        codes.path_below(r"D:\photos", r"E:\photos\a.jpg")
    assert not photo_files.is_below(r"E:\photos\a.jpg", r"D:\photos")
    assert not photo_files.is_below(r"D:\photos of mine\a.jpg", r"D:\photos")
    assert photo_files.is_below(r"D:\photos\a.jpg", r"D:\photos")
    assert photo_files.is_below(r"D:\photos\a.jpg", "D:\\")
    assert photo_files.lies_in_any(r"D:\photos\2019\a.jpg", {r"D:\photos"})
    assert not photo_files.lies_in_any(r"D:\photos\2019\a.jpg", {r"E:\photos"})


@pytest.mark.parametrize("name", [r"D:\code\zoo.py", r"code\zoo", "code/zoo", "zoo.py"])
def test_a_file_to_import_may_have_a_drive(windows, name):
    assert user_code._is_file_name(name)


def test_a_module_to_import_is_no_file(windows):
    assert not user_code._is_file_name("package.zoo")


def test_a_root_may_have_a_drive(windows):
    items = SimpleNamespace(file_names=[r"D:\old\a.jpg"])
    assert moved_folders._split_move(r"D:\old=E:\new", items) == (r"D:\old", r"E:\new")


def test_a_path_of_windows_is_shown_as_it_is():
    assert display_name(r"D:\new photos\täglich.jpg") == r"D:\new photos\täglich.jpg"
