"""Rows and scenes for the tests of the study."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from study import PREFIX, write_table

from experiments.rows import read_table
from regiondh_d2.data import generate_scenes
from regiondh_d2.data.datasets.scenes import register_scenes


@pytest.fixture
def two_rows(tmp_path):
    """Rows a and b of two seeds, in tmp_path/table.yaml; nothing is measured yet."""
    seeds = {"title": "", "seeds": [0, 1]}
    return read_table(write_table(tmp_path, a=seeds, b=seeds))


@pytest.fixture
def scenes(tmp_path):
    """Options of a row that trains on two scenes of this test; the folder is below tmp_path."""
    before = set(DatasetCatalog.list())
    generate_scenes(tmp_path / "scenes", num_database=2, num_queries=1)
    register_scenes(tmp_path / "scenes", PREFIX)
    (tmp_path / "start.pth").write_bytes(b"weights")
    train, test = f"{PREFIX}regiondh_scenes_database", f"{PREFIX}scenes_retrieval"
    yield [
        *("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)"),
        *("MODEL.WEIGHTS", str(tmp_path / "start.pth"), "MODEL.DEVICE", "cpu"),
    ]
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
