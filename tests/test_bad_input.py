"""What users' configs and data can get wrong before and in training: one clear line each.

Defects of VOC files are in test_voc.py, of images to encode in test_extract.py, of code files in
test_code_store.py, of weights in test_checkpoint.py.
"""

import argparse
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from builders import registered
from regiondh_d2.data import StrictMapper, UnreadableImageError, build_train_loader
from regiondh_d2.data.training import training_records
from regiondh_d2.engine import RegionDHTrainer, build_cfg, defaults, setup_cfg
from regiondh_d2.engine.command import run_command
from regiondh_d2.engine.defaults import COMPONENTS

CLASSES = ["cat", "dog"]
ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml")


@pytest.fixture
def record(tmp_path):
    """A function that writes an image of 48 x 32 pixels; its dict has an object of each class."""

    def make(name, category_ids=(0, 1)):
        path = tmp_path / f"{name}.png"
        pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        objects = [
            {"bbox": [2.0, 3.0, 40.0, 30.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": c}
            for c in category_ids
        ]
        size = {"height": 32, "width": 48}
        return {"file_name": str(path), "image_id": name, **size, "annotations": objects}

    return make


@pytest.fixture
def register():
    """A function that registers dicts as a dataset, until the test ends."""

    def add(name, dicts, classes=CLASSES):
        DatasetCatalog.register(name, lambda: dicts)
        if classes is not None:
            MetadataCatalog.get(name).thing_classes = classes
        return name

    with registered():
        yield add


@pytest.fixture(autouse=True)
def loggers(monkeypatch):
    """Loggers stay as they are, for the tests that read them."""
    monkeypatch.setattr(defaults, "setup_logger", lambda *args, **kwargs: None)


def config(*names, num_classes=2, **loader):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = names
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    for key, value in loader.items():
        cfg.DATALOADER[key] = value
    return cfg


def refused(call, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def arguments(*opts):
    return argparse.Namespace(config_file="", opts=list(opts), eval_only=False)


# --- Configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("MODEL.META_ARCHITECTURE", "RegionDH"),
        ("MODEL.BACKBONE.NAME", "build_timm_backbone"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
        ("MODEL.RPN.HEAD_NAME", "StandardRPNHead"),
        ("MODEL.ROI_HEADS.NAME", "RegionDHROIHeads"),
        ("MODEL.ROI_BOX_HEAD.NAME", "LightBoxHead"),
    ],
)
def test_a_component_that_is_not_registered(key, known):
    line = refused(build_cfg, opts=[key, "Typo"])
    assert line.startswith(f"{key} is 'Typo', which isn't registered; known: ")
    assert known in line.partition("known: ")[2].split(", ")


def test_every_component_is_looked_up_and_no_value_is_refused_by_mistake():
    for key, registry, others in COMPONENTS:
        for name in [name for name, _ in registry] + list(others):
            build_cfg(opts=[key, name])


def test_datasets_are_compared_with_the_network_before_anything_is_written(register, tmp_path):
    register("t_pets", [], classes=["cat", "dog", "cow"])
    output = ("OUTPUT_DIR", str(tmp_path / "out"))
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        line = refused(setup_cfg, arguments(key, "('t_nope',)", *output))
        assert line.startswith(f"{key} has 't_nope', which isn't registered; known: ")
        assert "voc_2007_retrieval_train_val" in line
        few = arguments(key, "('t_pets',)", "MODEL.ROI_HEADS.NUM_CLASSES", "2", *output)
        assert refused(setup_cfg, few) == (
            "dataset 't_pets' has 3 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 2: set it to 3"
        )
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "out"
    assert run_command(lambda: setup_cfg(arguments("OUTPUT_DIR", str(folder)))) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {folder}: Not a directory"


def test_a_dataset_without_an_evaluator(register):
    register("t_a", [])
    line = refused(RegionDHTrainer.build_evaluator, build_cfg(), "t_a")
    assert line.startswith("dataset 't_a' has evaluator_type None; known: regiondh_retrieval")


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("extract_codes", ["--config-file", CONFIG, "--output", "c.h5"]),
        ("visualize_data", ["--output-dir", "pictures"]),
    ],
)
def test_an_unknown_dataset_lists_the_names(
    load_tool, tmp_path, monkeypatch, capsys, tool, arguments
):
    monkeypatch.chdir(tmp_path)
    command = load_tool(tool)
    assert command.main([*arguments, "--dataset", "scenes_retrieva"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --dataset 'scenes_retrieva', which isn't registered; known: ")
    assert "voc_2007_retrieval_train_val" in line
    assert line.endswith("did you mean scenes_retrieval?")
    assert not list(tmp_path.iterdir())


def test_an_unknown_dataset_of_objects_lists_the_names(load_tool):
    with pytest.raises(ValueError, match=r"--dataset 'zoo', which isn't registered; known: .*voc_"):
        load_tool("evaluate_objects").load_records("zoo")


# --- Training sets -------------------------------------------------------------------------------


def test_test_sets_that_name_classes_otherwise_are_told(register, record):
    register("t_trained", [record("a")])
    register("t_same", [record("b")])
    register("t_more", [record("b")], classes=[*CLASSES, "emu"])
    register("t_swapped", [record("b")], classes=CLASSES[::-1])
    cfg = build_cfg("", ["DATASETS.TRAIN", "('t_trained',)"])
    for name, count in (("t_same", 0), ("t_more", 0), ("t_swapped", 1)):
        cfg.DATASETS.TEST = (name,)
        lines = defaults.differing_classes(cfg)
        assert len(lines) == count
    assert lines[0].startswith(
        "DATASETS.TEST t_swapped: class 0 is 'dog' there, and 'cat' in DATASETS.TRAIN t_trained"
    )


def test_class_ids_outside_the_classes(register, record):
    register("t_fine", [record("a")])
    for bad in (2, -1):
        name = register(f"t_bad{bad}", [record("b"), record("c", [0, bad])])
        line = refused(training_records, config("t_fine", name))
        assert "c.png has class ids " in line
        assert line.endswith("; they must count from 0 to 1")
    unnamed = register("t_unnamed", [record("d", [0, 5])], classes=None)
    assert "d.png has class ids [0, 5]" in refused(training_records, config(unnamed))
    assert len(training_records(config(unnamed, num_classes=6))) == 1


def test_classes_known_only_after_loading(record, register):
    def load():
        MetadataCatalog.get("t_lazy").thing_classes = CLASSES
        return [record("a")]

    register("t_lazy", [], classes=None)
    DatasetCatalog.remove("t_lazy")
    DatasetCatalog.register("t_lazy", load)
    line = refused(training_records, config("t_lazy", num_classes=1))
    assert line.startswith("dataset 't_lazy' has 2 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 1")


def test_training_sets_that_do_not_belong_together(register, record):
    register("t_a", [record("a")])
    register("t_b", [record("b")], classes=["dog", "cat"])
    assert "the order differs" in refused(training_records, config("t_a", "t_b"))


def test_no_training_set():
    assert refused(training_records, config()) == "DATASETS.TRAIN is empty: name a dataset"


def test_images_without_objects_are_counted_or_kept(register, record, caplog):
    """An image without objects, or with crowds alone, has no region to classify, but a code."""
    crowd = record("crowd", [0])
    crowd["annotations"][0]["iscrowd"] = 1
    name = register("t_some", [record("empty", []), record("a"), crowd])
    with caplog.at_level(logging.INFO, "regiondh_d2.data.training"):
        kept = training_records(config(name))
    assert [r["image_id"] for r in kept] == ["a"]
    assert "2 images without an object or a label are left out; 1 are left" in caplog.text

    cfg = config(name, FILTER_EMPTY_ANNOTATIONS=False)
    assert len(training_records(cfg)) == 3
    batches = itertools.islice(build_train_loader(cfg), 6)
    objects = {batch[0]["image_id"]: len(batch[0]["instances"]) for batch in batches}
    assert objects == {"empty": 0, "a": 2, "crowd": 0}


def test_labels_alone_are_learned_from_without_boxes(register, record, caplog):
    """Images with and without annotations may stand side by side; an empty list is no label."""

    def labels_of(image_id, labels):
        made = record(image_id, [])
        del made["annotations"]
        return made | {"image_labels": labels}

    name = register("t_labels", [record("a"), labels_of("b", [1]), labels_of("c", [])])
    kept = training_records(config(name), boxes=False)
    assert [r["image_id"] for r in kept] == ["a", "b"]
    everything = config(name, FILTER_EMPTY_ANNOTATIONS=False)
    assert len(training_records(everything, boxes=False)) == 3
    inputs = next(iter(build_train_loader(config(register("t_b", [labels_of("b", [1])])), False)))
    assert inputs[0]["image_labels"] == [1]
    assert "instances" not in inputs[0]

    line = refused(training_records, config(name))
    assert "has image_labels and no annotations" in line
    assert "learns from boxes" in line
    wrong = register("t_wrong", [labels_of("b", [7])])
    with pytest.raises(ValueError, match=r"class ids \[7\]; they must count from 0"):
        training_records(config(wrong), boxes=False)


def test_nothing_to_train_on(register, record):
    empty = register("t_empty", [record("empty", [])])
    line = refused(training_records, config(empty))
    assert "t_empty" in line
    assert "DATALOADER.FILTER_EMPTY_ANNOTATIONS is False" in line
    assert "'t_none' is empty" in refused(training_records, config(register("t_none", [])))


# --- Images --------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:200])


BREAK = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncate,
    "of another size": lambda path: Image.new("RGB", (48, 33)).save(path),
}


def test_a_sound_image_is_mapped_as_by_detectron2(record):
    cfg = config()
    ours, theirs = (
        mapper(cfg, is_train=False)(record("a")) for mapper in (StrictMapper, DatasetMapper)
    )
    assert ours.keys() == theirs.keys()
    assert (ours["image"] == theirs["image"]).all()


@pytest.mark.parametrize(("damage", "workers"), [*((key, 0) for key in BREAK), ("truncated", 1)])
def test_a_training_image_that_cannot_be_read(register, record, tmp_path, damage, workers):
    """Also a worker process of the loader, whose errors arrive as text, gives one line."""
    name = register("t_bad", [record("bad")])
    BREAK[damage](tmp_path / "bad.png")
    loader = build_train_loader(config(name, NUM_WORKERS=workers))
    with pytest.raises(UnreadableImageError) as error:
        next(iter(loader))
    line = str(error.value)
    assert line.startswith(f"{tmp_path / 'bad.png'}: cannot be read (")
    assert line.endswith("--images` finds all such files")
    assert "\n" not in line
    assert "Traceback" not in line
