"""What a wheel of the package holds."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "regiondh_d2"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel that is built from a copy whose weights are empty."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source)
    for part in [*ROOT.glob("regiondh_*"), ROOT / "configs"]:
        for path in part.rglob("*"):
            copy = source / path.relative_to(ROOT)
            if path.is_file() and "__pycache__" not in path.parts:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(b"" if path.suffix == ".pth" else path.read_bytes())
    command = [*(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"), "."]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run(command, cwd=source, check=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        return set(file.namelist())


def test_every_module_is_in_the_wheel(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*.py")}
    assert modules - wheel == set()


def test_weights_types_and_licenses_are_in_the_wheel(wheel):
    weights = {p.relative_to(ROOT).as_posix() for p in (ROOT / PACKAGE).rglob("*.pth")}
    assert weights
    assert {*weights, f"{PACKAGE}/py.typed"} <= wheel
    licenses = {Path(name).name for name in wheel if ".dist-info/licenses/" in name}
    assert licenses == {"LICENSE", "THIRD_PARTY_NOTICES"}


def test_nothing_else_is_in_the_wheel(wheel):
    own = ("regiondh_d2/", "regiondh_cli/")
    assert [name for name in wheel if not name.startswith(own) and ".dist-info/" not in name] == []


def test_the_hooks_of_commits_are_of_the_version_that_is_tested():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (ruff,) = (repo["rev"] for repo in hooks["repos"] if "ruff" in repo["repo"])
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ruff=={ruff.removeprefix('v')}" in pins


def test_the_list_of_what_is_not_typed_yet_has_no_room_that_is_gone():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for override in config["tool"]["mypy"]["overrides"]:
        if override.get("ignore_errors"):
            for module in override["module"]:
                assert (ROOT / module.removesuffix(".*").replace(".", "/")).exists()
