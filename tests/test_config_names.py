"""Configs of the package by short names, from any folder."""

import shutil
from pathlib import Path

import pytest

from regiondh_d2.engine import build_cfg, config_names
from regiondh_d2.engine.config_names import find_config, short_name
from regiondh_d2.engine.defaults import config_inputs
from regiondh_d2.utils.errors import InputNotFoundError

ROOT = Path(__file__).parents[1]
NAME = "voc07/regiondh_effnetlite0_64"
FILE = ROOT / f"configs/{NAME}.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name",
    [NAME, f"{NAME}.yaml", f"configs/{NAME}.yaml", f"./configs/{NAME}", NAME.replace("/", "\\")],
)
def test_a_name_in_any_form(name):
    assert find_config(name) == str(FILE)


def test_a_file_comes_before_a_name(tmp_path):
    own = tmp_path / f"{NAME}.yaml"
    own.parent.mkdir()
    own.write_text("SEED: 3\n")
    assert find_config(f"{NAME}.yaml") == f"{NAME}.yaml"
    assert build_cfg(f"{NAME}.yaml").SEED == 3
    assert find_config(NAME) == str(FILE)
    assert find_config(str(FILE)) == str(FILE)
    assert find_config("voc07") == "voc07"  # what is wrong with a folder is told later


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("voc07/regiondh_efnetlite0_64", NAME),
        ("regiondh_effnetlite0_64", NAME),
        ("voc12/regiondh_effnetlite0_64", NAME),
        ("Base-RegionDH.yml", "Base-RegionDH"),
    ],
)
def test_an_unknown_name_lists_near_ones(name, near):
    with pytest.raises(InputNotFoundError) as told:
        find_config(name)
    assert str(told.value).startswith(f"{name}: no such config file; did you mean ")
    assert near in str(told.value)
    assert "\n" not in str(told.value)


def test_a_name_like_none():
    with pytest.raises(InputNotFoundError, match=r"^x\.yaml: no such config file$"):
        find_config("x.yaml")


def test_every_config_has_a_name():
    files = [x for x in (ROOT / "configs").rglob("*.yaml") if x.parent.name != "recipes"]
    assert len(config_names.config_names()) == len(files) > 30
    assert {Path(find_config(name)) for name in config_names.config_names()} == set(files)


def test_a_config_by_name_is_the_one_by_path():
    assert build_cfg(NAME) == build_cfg(str(FILE))
    assert config_inputs(NAME) == config_inputs(str(FILE))
    assert str(FILE) in config_inputs(NAME)


def test_configs_of_an_installed_package_come_first(tmp_path, monkeypatch):
    """In a wheel the folder is in the package; base configs are found there, too."""
    package = tmp_path / "site/regiondh_d2"
    shutil.copytree(ROOT / "configs", package / "configs")
    (package / "engine").mkdir()
    monkeypatch.setattr(config_names, "__file__", str(package / "engine/config_names.py"))
    assert find_config(NAME) == str(package / f"configs/{NAME}.yaml")
    assert build_cfg(NAME) == build_cfg(str(FILE))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (r"configs\voc07\a.yaml", "voc07/a"),
        (r".\configs\voc07\a", "voc07/a"),
        (r"C:\configs\voc07\a.yaml", "C:/configs/voc07/a"),  # a path, and no short name
    ],
)
def test_names_with_backslashes(name, short):
    assert short_name(name) == short
