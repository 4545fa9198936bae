"""What is imported when: heavy packages where they are used, and nothing that only Unix has."""

import json
import os
import subprocess
import sys

import pytest

from regiondh_d2 import engine

pytestmark = pytest.mark.slow

HEAVY = {"cv2", "faiss", "h5py", "jinja2", "matplotlib", "scipy", "sklearn"}
# In a new process. Modules that only Unix has are hidden from our packages. Others see them:
# on Windows they ask for others.
STEPS = """
import builtins, importlib, json, pkgutil, sys
import_module = builtins.__import__

def visible(name, globals=None, *args, **more):
    ours = (globals or {}).get("__name__", "").startswith("regiondh")
    if ours and name.split(".")[0] in ("fcntl", "resource", "pwd", "grp", "termios", "pty"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return import_module(name, globals, *args, **more)

builtins.__import__ = visible
steps = {}
import timm
import detectron2.checkpoint, detectron2.config, detectron2.data, detectron2.engine
import detectron2.evaluation, detectron2.modeling
steps["detectron2"] = set(sys.modules)
import regiondh_d2
steps["package"] = set(sys.modules) - steps["detectron2"]
from regiondh_d2.engine import RegionDHTrainer, command
steps["training"] = set(sys.modules) - steps["detectron2"]
from regiondh_d2.engine import RegionDHSearcher
steps["search"] = set(sys.modules) - steps["detectron2"]
import regiondh_cli
steps["all"] = set()
for package in (regiondh_cli, regiondh_d2):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            steps["all"].add(module.name)
from regiondh_d2.engine.step_times import _page_faults
assert _page_faults() == 0  # so the modules are hidden
print(json.dumps({step: sorted(names) for step, names in steps.items()}))
"""


@pytest.fixture(scope="module")
def loaded():
    """What each step loads beyond Detectron2 in a new process: names of modules by step."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEPS],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return {step: set(names) for step, names in json.loads(done.stdout).items()}


def test_the_package_loads_nothing_heavy_that_detectron2_does_not(loaded):
    assert "regiondh_d2.modeling.meta_arch" in loaded["package"]
    assert loaded["package"] & HEAVY == set()
    for room in ("retrieval", "engine"):
        assert not any(name.startswith(f"regiondh_d2.{room}") for name in loaded["package"])


def test_training_does_not_load_search(loaded):
    """It writes code files when it evaluates, with h5py."""
    assert "regiondh_d2.retrieval.code_store" in loaded["training"]
    search = ("service", "answers", "candidates", "engines", "hamming_index", "index_folder")
    assert not loaded["training"] & {f"regiondh_d2.retrieval.{name}" for name in search}
    assert not loaded["training"] & {"regiondh_d2.engine.searcher", "faiss", "matplotlib"}


def test_every_module_imports_without_what_only_unix_has(loaded):
    assert "regiondh_d2.commands.benchmark" in loaded["all"]
    assert len(loaded["all"]) > 90


def test_the_searcher_is_found_in_engine(loaded):
    added = loaded["search"] - loaded["training"]
    assert {"regiondh_d2.engine.searcher", "regiondh_d2.retrieval.service"} <= added
    assert "faiss" not in loaded["search"]  # until an index of that engine is made
    with pytest.raises(AttributeError, match=r"'regiondh_d2\.engine' has no attribute 'Nothing'"):
        _ = engine.Nothing
