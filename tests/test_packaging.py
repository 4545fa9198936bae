"""What setup.py declares is what the packages import."""

import ast
import runpy
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import setuptools

from regiondh_cli.requirements import requirements

ROOT = Path(__file__).parents[1]
# Imported under names of packages that come with a declared one.
COMES_WITH = {"markupsafe": "jinja2"}


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
        optional = {"visualization", "commands"} & set(file.relative_to(ROOT).parts)
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
