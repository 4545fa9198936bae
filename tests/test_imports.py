"""What an import costs: heavy packages are loaded where they are used."""

import os
import subprocess
import sys

import pytest

from regiondh_d2 import engine

HEAVY = ("cv2", "faiss", "h5py", "jinja2", "matplotlib", "scipy", "sklearn")
# Of Detectron2, what the package itself imports.
DETECTRON2 = (
    "import detectron2.checkpoint, detectron2.config, detectron2.data, detectron2.engine, "
    "detectron2.evaluation, detectron2.modeling, timm"
)


def modules_after(statement):
    """Names of all modules that a new process has loaded after a statement."""
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return set(done.stdout.split())


def test_the_package_loads_nothing_heavy_that_detectron2_does_not():
    theirs, ours = modules_after(DETECTRON2), modules_after("import regiondh_d2")
    assert "regiondh_d2.modeling.meta_arch" in ours
    assert [name for name in HEAVY if name in ours - theirs] == []
    assert not {name for name in ours if name.startswith("regiondh_d2.retrieval")}


def test_training_does_not_load_search():
    """Code files are of training, too: it evaluates."""
    loaded = modules_after("from regiondh_d2.engine import RegionDHTrainer, command")
    search = ("service", "answers", "candidates", "engines", "hamming_index", "index_folder")
    assert not {name for name in search if f"regiondh_d2.retrieval.{name}" in loaded}
    assert "regiondh_d2.engine.searcher" not in loaded
    assert "faiss" not in loaded


def test_search_by_codes_needs_no_network():
    """The service, with what lies below it."""
    loaded = modules_after("import regiondh_d2.retrieval.service")
    assert not {name for name in loaded if name.startswith("regiondh_d2.engine")}


def test_the_searcher_is_found_in_engine():
    loaded = modules_after("from regiondh_d2.engine import RegionDHSearcher, QueryEncoder")
    assert "regiondh_d2.engine.searcher" in loaded
    with pytest.raises(AttributeError, match="'regiondh_d2.engine' has no attribute 'Nothing'"):
        _ = engine.Nothing
