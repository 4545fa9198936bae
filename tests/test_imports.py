"""What an import costs: heavy packages are loaded where they are used."""

import json
import os
import subprocess
import sys

import pytest

from regiondh_d2 import engine

HEAVY = {"cv2", "faiss", "h5py", "jinja2", "matplotlib", "scipy", "sklearn"}
STEPS = """
import json, sys
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
print(json.dumps({step: sorted(names) for step, names in steps.items()}))
"""


@pytest.fixture(scope="module")
def loaded():
    """What each step loads beyond Detectron2 in a new process: names of modules by step."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEPS],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return {step: set(names) for step, names in json.loads(done.stdout).items()}


def test_the_package_loads_nothing_heavy_that_detectron2_does_not(loaded):
    assert "regiondh_d2.modeling.meta_arch" in loaded["package"]
    assert loaded["package"] & HEAVY == set()
    assert not any(name.startswith("regiondh_d2.retrieval") for name in loaded["package"])


def test_training_does_not_load_search(loaded):
    """It writes code files when it evaluates, with h5py."""
    assert "regiondh_d2.retrieval.code_store" in loaded["training"]
    search = ("service", "answers", "candidates", "engines", "hamming_index", "index_folder")
    assert not loaded["training"] & {f"regiondh_d2.retrieval.{name}" for name in search}
    assert not loaded["training"] & {"regiondh_d2.engine.searcher", "faiss", "matplotlib"}


def test_the_searcher_is_found_in_engine(loaded):
    added = loaded["search"] - loaded["training"]
    assert {"regiondh_d2.engine.searcher", "regiondh_d2.retrieval.service"} <= added
    assert "faiss" not in loaded["search"]  # until an index of that engine is made
    with pytest.raises(AttributeError, match=r"'regiondh_d2\.engine' has no attribute 'Nothing'"):
        _ = engine.Nothing
