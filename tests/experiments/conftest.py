"""Rows and scenes for the tests of the study."""

import pytest

from builders import registered_scenes
from experiments.rows import read_table
from study import PREFIX, write_table


@pytest.fixture
def two_rows(tmp_path):
    """Rows a and b of two seeds, in tmp_path/table.yaml; nothing is measured yet."""
    seeds = {"title": "", "seeds": [0, 1]}
    return read_table(write_table(tmp_path, a=seeds, b=seeds))


@pytest.fixture
def scenes(tmp_path):
    """Options of a row that trains on two scenes of this test; the folder is below tmp_path."""
    (tmp_path / "start.pth").write_bytes(b"weights")
    with registered_scenes(tmp_path / "scenes", PREFIX, database=2) as test:
        yield [
            *("DATASETS.TRAIN", f"('{PREFIX}regiondh_scenes_database',)"),
            *("DATASETS.TEST", f"('{test}',)"),
            *("MODEL.WEIGHTS", str(tmp_path / "start.pth"), "MODEL.DEVICE", "cpu"),
        ]
