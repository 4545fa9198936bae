"""What a wheel of the package holds, and that setup.py declares what the packages import."""

import ast
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import setuptools
import yaml

from regiondh_cli.requirements import requirements

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "regiondh_d2"
# Imported under names of packages that come with a declared one.
COMES_WITH = {"markupsafe": "jinja2"}


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


@pytest.fixture(scope="module")
def declared():
    """The arguments of setup()."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", found.update)
        runpy.run_path(str(ROOT / "setup.py"))
    return found


def names(lines):
    return {requirement.name.lower() for requirement in requirements(lines)}


def imports(file):
    """The top-level names that a module imports when it is imported."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"regiondh_d2", "regiondh_cli", "detectron2"}


def test_every_import_is_required(declared):
    needs = names(declared["extras_require"]["detectron2-needs"])
    required = names(declared["install_requires"])
    extras = {name: names(lines) for name, lines in declared["extras_require"].items()}
    del extras["dev"]
    packages = packages_distributions()
    checked = set()
    for file in (ROOT / "regiondh_d2").rglob("*.py"):
        # Pictures and pages need an extra; everything else imports with what is required.
        optional = {"visualization", "commands", "web"} & set(file.relative_to(ROOT).parts)
        allowed = required.union(*extras.values()) if optional else required | needs
        for name in imports(file):
            brought_by = {x.lower() for x in packages[COMES_WITH.get(name, name)]}
            assert brought_by & allowed, f"{file.relative_to(ROOT)} imports {name}"
            checked.add(name)
    assert {"torch", "yaml", "iopath", "h5py", "tqdm"} <= checked


def test_every_folder_of_modules_is_a_package(declared):
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("regiondh_cli", "regiondh_d2")
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(declared["packages"]) == folders | {"regiondh_d2.configs"}


def test_every_config_is_package_data(declared):
    patterns = declared["package_data"]["regiondh_d2.configs"]
    folder = ROOT / declared["package_dir"]["regiondh_d2.configs"]
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    assert found == {path for path in folder.rglob("*") if path.is_file()}
