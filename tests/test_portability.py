"""What is not on every system is not imported with the package, and paths of Windows are read."""

import ntpath
import os
import subprocess
import sys
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

# Imports every module of both packages, in which modules that only Unix has are hidden. Those of
# other packages see them: on Windows they ask for others.
IMPORT = """
import builtins, importlib, pkgutil
import_module = builtins.__import__

def visible(name, globals=None, *args, **more):
    ours = (globals or {}).get("__name__", "").startswith("regiondh")
    if ours and name.split(".")[0] in ("fcntl", "resource", "pwd", "grp", "termios", "pty"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return import_module(name, globals, *args, **more)

builtins.__import__ = visible
import regiondh_cli, regiondh_d2
seen = []
for package in (regiondh_cli, regiondh_d2):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            seen.append(module.name)
assert "regiondh_d2.commands.benchmark" in seen and len(seen) > 90, seen
from regiondh_d2.engine.step_times import _page_faults
assert _page_faults() == 0  # so the modules are hidden
"""


def test_every_module_imports_without_what_only_unix_has():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", IMPORT]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
    assert codes._below(root, file_name) == relative_path
    assert photo_files._below(file_name, root) == relative_path


def test_a_photo_of_another_drive_is_not_below(windows):
    with pytest.raises(RegionDHError, match="is not below"):
        codes._below(r"D:\photos", r"E:\photos\a.jpg")
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
