"""Precomputed proposals: those of Detectron2's files, and a line about a file that has none."""

import pickle

import numpy as np
import pytest

from builders import registered_scenes
from regiondh_d2.data.proposals import dicts_with_proposals
from regiondh_d2.data.training import training_records
from regiondh_d2.engine import RegionDHTrainer
from regiondh_d2.utils.errors import RegionDHError

PREFIX = "proposals_test_"
NAME = f"{PREFIX}regiondh_scenes_database"
WHOLE = {
    "ids": ["database_000001", "database_000000"],
    "boxes": [np.array([[1.0, 2.0, 30.0, 40.0]]), np.array([[0.0, 0.0, 9.0, 9.0], [5, 5, 50, 50]])],
    "objectness_logits": [np.array([0.5]), np.array([-1.0, 2.0])],
}


@pytest.fixture(scope="module", autouse=True)
def scenes(tmp_path_factory):
    with registered_scenes(tmp_path_factory.mktemp("proposals") / "scenes", PREFIX, database=2):
        yield


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps(WHOLE))
    return path


@pytest.fixture
def cfg(tiny_cfg, file):
    tiny_cfg.MODEL.LOAD_PROPOSALS = True
    tiny_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 12
    for part in ("TRAIN", "TEST"):
        tiny_cfg.DATASETS[part] = (NAME,)
        tiny_cfg.DATASETS[f"PROPOSAL_FILES_{part}"] = (str(file),)
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    return tiny_cfg


def test_an_image_has_its_own_proposals_the_best_first(file):
    first, second = dicts_with_proposals(NAME, str(file))
    assert first["image_id"] == "database_000000"
    assert first["proposal_boxes"].tolist() == [[5, 5, 50, 50], [0, 0, 9, 9]]
    assert first["proposal_objectness_logits"].tolist() == [2.0, -1.0]
    assert second["proposal_boxes"].tolist() == [[1, 2, 30, 40]]


def test_training_and_evaluation_read_them(cfg):
    assert [len(record["proposal_boxes"]) for record in training_records(cfg)] == [2, 1]
    loader = RegionDHTrainer.build_test_loader(cfg, NAME)
    assert [len(inputs["proposals"]) for (inputs,) in loader] == [2, 1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "Ran out of input"),
        (pickle.dumps(WHOLE)[:-30], "truncated|Ran out"),
        (b"no pickle", ""),
        (pickle.dumps([1, 2]), ""),
        (pickle.dumps({"boxes": []}), "it has no ids"),
        (pickle.dumps(WHOLE | {"ids": ["database_000000", "x"]}), "it has no database_000001"),
        (pickle.dumps(WHOLE | {"boxes": [np.zeros((n, 3)) for n in (1, 2)]}), "no boxes"),
        (pickle.dumps(WHOLE | {"boxes": [np.full((n, 4), np.nan) for n in (1, 2)]}), "no boxes"),
    ],
)
def test_a_file_without_proposals_is_told_in_one_line(cfg, file, content, told):
    file.write_bytes(content)
    for read in (training_records, lambda cfg: RegionDHTrainer.build_test_loader(cfg, NAME)):
        with pytest.raises(RegionDHError, match=f"{file}: no proposals for .*{told}") as error:
            read(cfg)
        assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(cfg, file):
    file.unlink()
    with pytest.raises(FileNotFoundError) as error:
        training_records(cfg)
    assert error.value.filename == str(file)
