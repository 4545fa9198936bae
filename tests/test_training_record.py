"""What checkpoints say about their training, and what a resumed one is told."""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from builders import registered_scenes
from regiondh_d2.config import (
    RENAMED_KEYS,
    add_regiondh_config,
    changed_settings,
    training_settings,
)
from regiondh_d2.engine import training_record
from regiondh_d2.engine.checkpoints import FiniteCheckpointer
from regiondh_d2.engine.training_record import (
    Training,
    TrainingRecorder,
    changes_on_resume,
    data_checksum,
    last_checkpoint,
    phrase,
    recorded_training,
)
from regiondh_d2.utils.errors import RegionDHError

PREFIX = "training_record_test_"
NAME = f"{PREFIX}regiondh_scenes_database"


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    """Of a training on two scenes, from a file of weights."""
    with registered_scenes(tmp_path / "scenes", PREFIX, database=2):
        (tmp_path / "start.pth").write_bytes(b"weights")
        tiny_cfg.DATASETS.TRAIN = (NAME,)
        tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "start.pth")
        tiny_cfg.OUTPUT_DIR = str(tmp_path / "run")
        yield tiny_cfg


def training(cfg, *opts):
    cfg = cfg.clone()
    cfg.merge_from_list(list(opts))
    return Training.of(cfg, data_checksum)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", 0.5),
        ("SOLVER.MAX_ITER", 7),
        ("SEED", 3),
        ("MODEL.REGION_DH.BITS", 64),
        ("MODEL.REGION_DH.LOSS_WEIGHTS.SIMILARITY", 2.0),
        ("MODEL.RPN.POST_NMS_TOPK_TRAIN", 3),
        ("INPUT.MIN_SIZE_TRAIN", (64,)),
        ("MODEL.REGION_DH.FEATURE_CACHE", "cache"),
        ("TEST.PRECISE_BN.ENABLED", True),
    ],
)
def test_another_setting_is_another_training(cfg, key, value):
    before, now = training(cfg), training(cfg, key, value)
    (change,) = before.changes(now)
    assert change.startswith(f"{key} ")
    assert ", which is now " in change
    assert before.settings_sha256 != now.settings_sha256
    assert before.sha256 != now.sha256


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OUTPUT_DIR", "elsewhere"),
        ("DATALOADER.NUM_WORKERS", 0),
        ("MODEL.DEVICE", "cuda"),
        ("SOLVER.CHECKPOINT_PERIOD", 1),
        ("TEST.RETRIEVAL.TOPK", 3),
        ("DATASETS.TEST", ("other",)),
    ],
)
def test_where_it_runs_and_what_is_measured_is_the_same_training(cfg, key, value):
    before, now = training(cfg), training(cfg, key, value)
    assert before.changes(now) == []
    assert before.sha256 == now.sha256


def test_two_caches_are_one_training(cfg):
    key = "MODEL.REGION_DH.FEATURE_CACHE"
    assert training(cfg, key, "a").changes(training(cfg, key, "b")) == []


def test_other_content_of_the_starting_weights_is_another_training(cfg, tmp_path):
    before = training(cfg)
    moved = shutil.copy(tmp_path / "start.pth", tmp_path / "moved.pth")
    assert before.changes(training(cfg, "MODEL.WEIGHTS", str(moved))) == []
    (tmp_path / "start.pth").write_bytes(b"others")
    (change,) = before.changes(training(cfg))
    assert change == f"another content of MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}"
    # Named sources, and a file that has gone, are compared by name.
    named = training(cfg, "MODEL.WEIGHTS", "regiondh://imagenet/tf_efficientnet_lite0")
    assert named.weights_sha256 == ""
    assert named.changes(named) == []
    assert "MODEL.WEIGHTS" in before.changes(named)[0]
    (tmp_path / "start.pth").unlink()
    assert before.changes(training(cfg)) == []


@pytest.mark.parametrize("change", ["image", "object"])
def test_other_images_or_objects_are_another_training(cfg, tmp_path, change):
    before = training(cfg)
    record = DatasetCatalog.get(NAME)[0]
    if change == "image":
        with open(record["file_name"], "ab") as file:
            file.write(b" ")
    else:
        path = tmp_path / "scenes/Annotations" / f"{record['image_id']}.xml"
        text = path.read_text()
        left = int(text.partition("<xmin>")[2].partition("<")[0])
        path.write_text(text.replace(f"<xmin>{left}<", f"<xmin>{left + 1}<", 1))
    assert before.changes(training(cfg)) == [f"other images or objects of {NAME}"]


def test_a_key_newer_than_a_record_leaves_it_valid(cfg):
    """What had no such key was trained as by its default."""
    now = training(cfg)
    lines = now.settings.splitlines()
    older = [line for line in lines if not line.startswith("MODEL.REGION_DH.FUSION_GRADIENT ")]
    assert len(older) == len(lines) - 1
    old = Training("\n".join(older), now.weights, now.weights_sha256, now.data_sha256)
    assert old.changes(now) == []
    assert old.settings_sha256 == now.settings_sha256
    (change,) = old.changes(training(cfg, "MODEL.REGION_DH.FUSION_GRADIENT", False))
    assert change == "MODEL.REGION_DH.FUSION_GRADIENT True, which is now False"


def test_a_value_that_was_renamed_leaves_a_record_valid(cfg):
    """The digest, too: results of the study keep that of the old name."""
    now = training(cfg, "MODEL.REGION_DH.OBJECTIVE", "idhn")
    text = now.settings.replace("'idhn'", "'isdh'")
    old = Training(text, now.weights, now.weights_sha256, now.data_sha256)
    assert old.settings != now.settings
    assert old.changes(now) == []
    assert old.settings_sha256 == now.settings_sha256
    default = get_cfg()
    add_regiondh_config(default)
    chosen = changed_settings(training_settings(default), now.settings, training_settings)
    old_names = {new: old for old, new in RENAMED_KEYS.items()}
    lines = sorted(f"{old_names.get(key, key)} {value}" for key, (_, value) in chosen.items())
    digest = hashlib.sha256("\n".join(lines).replace("'idhn'", "'isdh'").encode()).hexdigest()
    assert old.settings_sha256 == digest


def save(cfg, resumed=None, name="model_final"):
    """A checkpoint as the trainer leaves it; ``resumed`` is a file that it went on from."""
    recorder = TrainingRecorder(cfg)
    checkpointer = FiniteCheckpointer(torch.nn.Linear(1, 1), cfg.OUTPUT_DIR)
    checkpointer.add_checkpointable("training", recorder)
    if resumed:
        checkpointer.load(str(resumed))
    recorder.begin(bool(resumed))
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    checkpointer.save(name)
    return last_checkpoint(cfg.OUTPUT_DIR)


def test_a_checkpoint_says_what_it_was_trained_with(cfg):
    assert last_checkpoint(cfg.OUTPUT_DIR) is None
    found = recorded_training(save(cfg))
    assert found == training(cfg)
    resumed = recorded_training(save(cfg, last_checkpoint(cfg.OUTPUT_DIR), "again"))
    assert resumed == found  # the same settings: no other part


def test_a_training_resumed_otherwise_remembers_its_first_part(cfg, tmp_path):
    first = save(cfg, name="first")
    changed = cfg.clone()
    changed.merge_from_list(["SOLVER.BASE_LR", 0.5, "MODEL.WEIGHTS", "not read again.pth"])
    found = recorded_training(save(changed, first, "second"))
    assert found.settings == training_settings(changed)
    assert (found.weights, len(found.earlier)) == (cfg.MODEL.WEIGHTS, 1)
    assert found.earlier[0]["settings"] == training_settings(cfg)
    third = recorded_training(save(changed, last_checkpoint(cfg.OUTPUT_DIR), "third"))
    assert third == found


@pytest.mark.parametrize("name", ["", "../other/model_final.pth"])
def test_a_name_of_the_last_checkpoint_that_is_none_is_told(cfg, name):
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text(name)
    with pytest.raises(RegionDHError, match="last_checkpoint holds .* not the name of a checkp"):
        last_checkpoint(cfg.OUTPUT_DIR)


def test_a_training_resumed_from_version_0_1_says_so(cfg, tmp_path):
    old = tmp_path / "old.pth"
    torch.save({"model": torch.nn.Linear(1, 1).state_dict(), "iteration": 3}, old)
    assert recorded_training(old) is None
    assert len(recorded_training(save(cfg, old)).earlier) == 1


@pytest.mark.parametrize("version", ["0.1", "now"])
def test_a_resume_is_told_what_differs(cfg, version):
    assert changes_on_resume(cfg) == []
    checkpoint = save(cfg)
    if version == "0.1":
        torch.save({"model": {}}, checkpoint)
        assert changes_on_resume(cfg) == []
        with open(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), "w") as file:
            file.write(cfg.dump())
    assert changes_on_resume(cfg) == []
    changed = cfg.clone()
    changed.merge_from_list(["SOLVER.BASE_LR", 0.5, "SEED", 9, "OUTPUT_DIR", cfg.OUTPUT_DIR])
    seed, rate = changes_on_resume(changed)
    assert seed == f"SEED {cfg.SEED}, which is now 9"
    assert rate == f"SOLVER.BASE_LR {cfg.SOLVER.BASE_LR}, which is now 0.5"
    assert phrase([seed, rate]) == f"{seed} (1 more)"


def test_a_config_file_that_cannot_be_read_is_named(cfg):
    torch.save({"model": {}}, save(cfg))
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    for text in ("A_KEY: 1", "[]", "a: ["):
        with open(path, "w") as file:
            file.write(text)
        assert changes_on_resume(cfg) == [f"a {path} that can't be compared"]


def test_images_elsewhere_have_no_size(monkeypatch):
    given = [{"file_name": "s3://bucket/a.jpg", "annotations": [{"iscrowd": 1}]}, {}]
    monkeypatch.setattr(training_record, "load_dataset", lambda _: given)
    assert [len(part) for part in data_checksum("any").split()] == [64, 64]


@pytest.mark.parametrize("mark", ["difficult", "iscrowd"])
def test_marks_of_objects_are_compared_where_both_records_know_them(cfg, monkeypatch, mark):
    before = training(cfg)
    records = [dict(record) for record in DatasetCatalog.get(NAME)]
    first, *others = records[0]["annotations"]
    records[0]["annotations"] = [{**first, mark: 1}, *others]
    monkeypatch.setattr(training_record, "load_dataset", lambda _: records)
    now = training(cfg)
    assert before.changes(now) == [f"other images or objects of {NAME}"]
    # Earlier versions recorded the first checksum alone, and called such a training by the same
    # name.
    old = replace(before, data_sha256={NAME: before.data_sha256[NAME].split()[0]})
    assert old.changes(now) == []
    assert old.sha256 == before.sha256
