"""What a config may say: files, overrides and values, each mistake one line with its place."""

import pytest
import torch
from detectron2.config import get_cfg

from regiondh_d2 import add_regiondh_config
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.config_names import config_names
from regiondh_d2.engine.config_rules import RULES, check_values, default_values, legal_values
from regiondh_d2.utils.errors import RegionDHError

HASH = "MODEL.REGION_DH."
# One and more siblings of each kind: overrides as they come from a command line.
WRONG = [
    (HASH + "BITS", "0"),
    (HASH + "BITS", "-8"),
    (HASH + "BITS", "48.0"),
    (HASH + "BITS", "many"),
    (HASH + "BITS", "True"),
    (HASH + "BITS_INSTANCE", "-1"),
    (HASH + "BITS_IMAGE", "-1"),
    (HASH + "LATENT_INIT_STD", "-0.1"),
    (HASH + "FUSION_NUM_ROIS", "-1"),
    (HASH + "FUSION_NORM", "avg"),
    (HASH + "FUSION_SCALE", "0.0"),
    (HASH + "FUSION_NORM", "SUM"),
    (HASH + "FUSION_ROIS", "all"),
    (HASH + "FUSION_INPUT", "fc7"),
    (HASH + "CLASSIFIER_INPUT", "h2"),
    (HASH + "WHOLE_IMAGE", "yes"),
    (HASH + "IMAGE_LOSS", "hinge"),
    (HASH + "OBJECTIVE", "cosines"),
    (HASH + "NORMALIZE_FUSED", "1"),
    (HASH + "LOSS_WEIGHTS.GAMMA_H1", "0.05"),
    (HASH + "LOSS_WEIGHTS.GAMMA_H1", "[0.05]"),
    (HASH + "LOSS_WEIGHTS.GAMMA_H2", "[0.05, -10.0]"),
    (HASH + "LOSS_WEIGHTS.GAMMA_H2", "['a', 'b']"),
    (HASH + "LOSS_WEIGHTS.ALPHA", "[1.0, 1.0, 1.0]"),
    (HASH + "LOSS_WEIGHTS.BETA", "[1.0, 1.0, 1e999]"),
    (HASH + "LOSS_WEIGHTS.SIMILARITY", "-1.0"),
    (HASH + "LOSS_WEIGHTS.SIMILARITY", "nan"),
    (HASH + "LOSS_WEIGHTS.SIMILARITY_WARMUP", "-1"),
    (HASH + "IMAGE_GRADIENT_SCALE", "-0.1"),
    (HASH + "CODE_QUEUE", "-1"),
    (HASH + "LR_FACTORS.BACKBONE", "-0.1"),
    (HASH + "LR_FACTORS.IMAGE_HASH", "1e999"),
    ("MODEL.TIMM.NAME", ""),
    ("MODEL.TIMM.OUT_INDICES", "[]"),
    ("MODEL.TIMM.OUTPUT_STRIDE", "7"),
    ("TEST.RETRIEVAL.TOPK", "0"),
    ("TEST.RETRIEVAL.TOPK", "[1, 5]"),
    ("TEST.RETRIEVAL.INSTANCE_MIN_SCORE", "1.5"),
    ("TEST.RETRIEVAL.INSTANCE_MIN_SCORE", "-0.1"),
    ("TEST.RETRIEVAL.DATABASE_CODES", "None"),
    ("MODEL.DEVICE", "cud"),
    ("MODEL.DEVICE", "gpu"),
    ("MODEL.DEVICE", "cuda:x"),
    ("MODEL.DEVICE", ""),
    ("MODEL.DEVICE", "0"),
    ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]"),
    ("MODEL.PIXEL_MEAN", "[1.0, 2.0]"),
    ("MODEL.ROI_HEADS.NUM_CLASSES", "0"),
    ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "0"),
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "5.0"),
    ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "-0.5"),
    ("MODEL.RPN.NMS_THRESH", "7.0"),
    ("MODEL.RPN.POST_NMS_TOPK_TEST", "0"),
    ("MODEL.RPN.CONV_DIMS", "[0]"),
    ("MODEL.RPN.IOU_LABELS", "[0, 1]"),
    ("MODEL.RPN.IOU_THRESHOLDS", "[0.0, 0.5]"),
    ("MODEL.RPN.IOU_THRESHOLDS", "[0.7, 0.3]"),
    ("MODEL.RPN.IN_FEATURES", "[]"),
    ("MODEL.RPN.IN_FEATURES", "[4]"),
    ("MODEL.RPN.BOUNDARY_THRESH", "-2"),
    ("MODEL.RPN.SMOOTH_L1_BETA", "-0.1"),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", "1.0"),
    ("MODEL.ROI_HEADS.IN_FEATURES", "[['res4']]"),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.0]"),
    ("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", "-0.1"),
    ("DATASETS.PROPOSAL_FILES_TRAIN", "(1,)"),
    ("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", "0"),
    ("SOLVER.WEIGHT_DECAY_BIAS", "-0.1"),
    ("SOLVER.WEIGHT_DECAY_BIAS", "'a'"),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "0.0"),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "nan"),
    ("MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0,)"),
    ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "l2"),
    ("MODEL.ROI_HEADS.IOU_LABELS", "[0]"),
    ("MODEL.ROI_HEADS.IOU_LABELS", "[0, 2]"),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "iou"),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(0.0, 0.0, 0.0, 0.0)"),
    ("MODEL.ROI_BOX_HEAD.FC_DIM", "0"),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAline"),
    ("INPUT.FORMAT", "RBG"),
    ("INPUT.FORMAT", "rgb"),
    ("INPUT.FORMAT", "HSV"),
    (HASH + "MAX_PIXELS", "0"),
    ("INPUT.MIN_SIZE_TRAIN", "600"),
    ("INPUT.MIN_SIZE_TRAIN", "()"),
    ("INPUT.MIN_SIZE_TRAIN", "(-1,)"),
    ("INPUT.MAX_SIZE_TRAIN", "0"),
    ("INPUT.MIN_SIZE_TEST", "-1"),
    ("INPUT.MAX_SIZE_TEST", "0"),
    ("INPUT.RANDOM_FLIP", "both"),
    ("DATASETS.TRAIN", "zoo"),
    ("DATASETS.TEST", "('zoo')"),
    ("DATASETS.TEST", "(1,)"),
    ("DATASETS.TEST", "('',)"),
    ("DATALOADER.NUM_WORKERS", "-1"),
    ("DATALOADER.SAMPLER_TRAIN", "Sampler"),
    ("SOLVER.IMS_PER_BATCH", "0"),
    ("SOLVER.IMS_PER_BATCH", "-2"),
    ("SOLVER.MAX_ITER", "0"),
    ("SOLVER.BASE_LR", "0.0"),
    ("SOLVER.BASE_LR", "-0.01"),
    ("SOLVER.BASE_LR", "1"),
    ("SOLVER.BASE_LR_END", "-0.1"),
    ("SOLVER.NUM_DECAYS", "0"),
    ("SOLVER.MOMENTUM", "1.5"),
    ("SOLVER.STEPS", "('a',)"),
    ("SOLVER.STEPS", "1000"),
    ("SOLVER.WARMUP_METHOD", "slow"),
    ("SOLVER.LR_SCHEDULER_NAME", "Cosine"),
    ("SOLVER.CHECKPOINT_PERIOD", "0"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full"),
    ("TEST.EVAL_PERIOD", "-1"),
    ("TEST.DETECTIONS_PER_IMAGE", "-2"),
    ("TEST.AUG.ENABLED", "True"),
    ("OUTPUT_DIR", ""),
    ("SEED", "1.5"),
    ("SEED", "None"),
    ("SEED", "4294967296"),
]


def refused(*args, **kwargs):
    with pytest.raises(RegionDHError) as error:
        build_cfg(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_is_told_with_its_key_and_what_it_takes(key, value):
    line = refused(opts=[key, value])
    assert line.startswith(f"{key} is ")
    told = line.partition(": it takes ")[2]
    assert told.startswith(legal_values(key)) or (key.endswith("OBJECTIVE") and "dpsh" in told)
    assert len(told) > 3


def test_a_whole_number_for_one_with_a_decimal_point_gets_a_hint():
    assert refused(opts=["SOLVER.BASE_LR", "1"]).endswith("a number above 0 (write 1.0)")
    assert "write" not in refused(opts=["SOLVER.BASE_LR", "fast"])


def test_rules_are_of_keys_that_exist_and_hold_of_all_defaults_and_shipped_configs():
    assert set(RULES) <= set(default_values())
    cfg = get_cfg()
    add_regiondh_config(cfg)
    check_values(cfg)
    assert len(config_names()) > 20
    for name in config_names():
        build_cfg(name, ["MODEL.DEVICE", "cpu"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.MIN_SIZE_TEST", "0"),  # Detectron2: leaves images as they are
        ("TEST.DETECTIONS_PER_IMAGE", "-1"),
        ("SEED", "-1"),
        ("SOLVER.WEIGHT_DECAY_BIAS", "None"),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "1e999"),
        (HASH + "LOSS_WEIGHTS.GAMMA_H1", "(0, 0)"),
        (HASH + "LR_FACTORS.BACKBONE", "0.0"),
        ("DATASETS.TEST", "()"),
        ("MODEL.DEVICE", "cuda:1"),
        ("MODEL.WEIGHTS", ""),
    ],
)
def test_unusual_values_that_mean_something_are_taken(monkeypatch, key, value):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    build_cfg(opts=[key, value])


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert refused(opts=["MODEL.DEVICE", "cuda:2"]).startswith("MODEL.DEVICE is 'cuda:2': it takes")


def test_settings_that_cached_features_leave_no_room_for():
    cache = [HASH + "FEATURE_CACHE", "folder"]
    build_cfg(opts=cache)
    for key, value in (
        ("TEST.RETRIEVAL.DATABASE_CODES", "d.h5"),
        ("INPUT.CROP.ENABLED", "True"),
        ("INPUT.RANDOM_FLIP", "vertical"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    ):
        build_cfg(opts=[key, value])
        line = refused(opts=[*cache, key, value])
        assert line.startswith(f"{key} is ")
        assert HASH + "FEATURE_CACHE to ''" in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MAX_ITER", str(2**63)),
        ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "9" * 400),  # more than a float holds
        ("MODEL.TIMM.OUT_INDICES", f"[{2**64}]"),
    ],
)
def test_a_number_that_pytorch_has_no_room_for(key, value):
    assert refused(opts=[key, value]).endswith(f"it takes numbers up to {2**63 - 1}")


def test_a_learning_rate_falls_at_iterations_in_order_and_to_less():
    for steps in ("(20, 10)", "(10, 10)"):
        assert refused(opts=["SOLVER.STEPS", steps]).startswith(f"SOLVER.STEPS is {steps}")
        build_cfg(opts=["SOLVER.STEPS", steps, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"])
    opts = ["SOLVER.BASE_LR", "0.1", "SOLVER.BASE_LR_END", "0.2"]
    build_cfg(opts=opts)
    line = refused(opts=[*opts, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"])
    assert line.endswith("takes at most SOLVER.BASE_LR, 0.1")


def test_a_range_of_sizes_has_two_ends():
    opts = ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN"]
    build_cfg(opts=[*opts, "(64, 128)"])
    assert "takes two sizes" in refused(opts=[*opts, "(64,)"])


@pytest.mark.parametrize(
    ("kind", "size", "what"),
    [
        ("relative_range", "(3.0, 3.0)", "shares"),
        ("relative", "(0.5, 1.5)", "shares"),
        ("absolute", "(50.0, 50.0)", "pixels"),
        ("absolute_range", "(0.9, 0.9)", "pixels"),
    ],
)
def test_a_crop_has_a_size_of_its_kind(kind, size, what):
    opts = ["INPUT.CROP.TYPE", kind, "INPUT.CROP.SIZE", size]
    build_cfg(opts=opts)  # nothing is cropped
    assert f"it takes {what}, a list of 2" in refused(opts=[*opts, "INPUT.CROP.ENABLED", "True"])
    build_cfg(opts=["INPUT.CROP.ENABLED", "True"])


@pytest.mark.parametrize("part", ["TRAIN", "TEST"])
def test_loaded_proposals_are_of_each_dataset(part):
    opts = ["MODEL.LOAD_PROPOSALS", "True", f"DATASETS.{part}", "('zoo',)"]
    assert f"DATASETS.PROPOSAL_FILES_{part} is ()" in refused(opts=opts)
    build_cfg(opts=[*opts, f"DATASETS.PROPOSAL_FILES_{part}", "('zoo.pkl',)"])


# --- Keys ----------------------------------------------------------------------------------------


def test_keys_that_are_not_there():
    assert refused(opts=[HASH + "BITZ", "1"]) == (
        f"Non-existent config key: {HASH}BITZ; did you mean {HASH}BITS?"
    )
    assert refused(opts=["SOLVER.TOPK", "1"]).endswith("did you mean TEST.RETRIEVAL.TOPK?")
    assert refused(opts=["x", "1"]) == "Non-existent config key: x"
    assert refused(opts=["MODEL.DEVICE.TYPE", "1"]).startswith("Non-existent config key: MODEL.DEV")
    assert refused(opts=["SEED.X", "1"]).startswith("Non-existent config key: SEED.X")
    group = refused(opts=["MODEL.REGION_DH", "{'BITS': 3}"])
    assert group == "MODEL.REGION_DH is a group of keys; name one of them, such as " + HASH + "BITS"
    assert refused(opts=["SEED"]).endswith("the last one is alone: SEED")
    assert refused(opts=["_BASE_", "x.yaml"]).startswith("Non-existent config key: _BASE_")


# --- Files ---------------------------------------------------------------------------------------

FILES = {
    "a list": (b"- MODEL\n- SOLVER\n", "it holds a list instead of KEY: VALUE lines"),
    "text": (b"MODEL\n", "it holds text instead of"),
    "empty": (b"", "it holds nothing instead of"),
    "comments": (b"# MODEL:\n", "it holds nothing instead of"),
    "latin 1": (b"OUTPUT_DIR: caf\xe9\n", "not UTF-8 text"),
    "utf-16": ("SEED: 1\n".encode("utf-16"), "not UTF-8 text"),
    "a zip": (b"PK\x03\x04\x00\x00\xff\xfe", "not UTF-8 text"),
    "nulls": (b"SEED: 1\x00\n", "no valid YAML"),
    "syntax": (b"SEED: 1\nMODEL: {\n", ", line 3: no valid YAML"),
    "a tab": (b"MODEL:\n\tDEVICE: cpu\n", ", line 2: no valid YAML"),
    "no colon": (b"SEED: 1\nMODEL\n", ", line 3: no valid YAML"),
    "two documents": (b"SEED: 1\n---\nSEED: 2\n", "no valid YAML"),
    "twice": (b"SEED: 1\nSEED: 2\n", ", line 2: SEED occurs twice"),
    "twice below": (b"MODEL:\n  DEVICE: cpu\n  DEVICE: cuda\n", ", line 3: MODEL.DEVICE occurs"),
    "unknown": (b"MODEL:\n  DEVICES: cpu\n", "key: MODEL.DEVICES; did you mean MODEL.DEVICE?"),
    "a number": (b"1: 2\n", "no config"),
    "a type": (b"SOLVER:\n  MAX_ITER: ten\n", "SOLVER.MAX_ITER is ten: it takes a whole number"),
    "no list": (
        b"DATASETS:\n  TEST: zoo\n",
        'DATASETS.TEST is zoo: it takes a list of names, such as ("zoo_retrieval",)',
    ),
    "a value": (b"MODEL:\n  REGION_DH:\n    BITS: 0\n", HASH + "BITS is 0: it takes a whole"),
    "no value": (b"MODEL:\n  REGION_DH:\n    BITS:\n", HASH + "BITS is nothing: it takes a whole"),
    "not a number": (b"SOLVER:\n  BASE_LR: .nan\n", "SOLVER.BASE_LR is nan: it takes a number"),
    "a group": (b"MODEL: 3\n", "MODEL is a group of keys"),
    "no group": (b"OUTPUT_DIR:\n  A: 1\n", "OUTPUT_DIR"),
    "a date": (b"OUTPUT_DIR: 2020-01-01\n", "no config"),
    "no base": (b"_BASE_: absent.yaml\n", "absent.yaml: no such base config, which _BASE_ of "),
    "a base of a list": (b"_BASE_: [absent.yaml]\n", "absent.yaml: no such base config"),
    "an empty base": (b"_BASE_:\n", "_BASE_ takes the path"),
    "a base of a kind": (b"_BASE_: {a: 1}\n", "_BASE_ takes the path"),
    "itself": (b"_BASE_: bad.yaml\n", "_BASE_ leads in a circle"),
    "a folder": (b"_BASE_: .\n", "is a folder, which _BASE_"),
    "an old version": (b"VERSION: 9\n", "no config"),
    "a tag": (b"SEED: !nothing 3\n", "no config"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_config(tmp_path, kind):
    content, message = FILES[kind]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    line = refused(str(path))
    assert message in line
    of_values = ("a value", "no value", "not a number")  # also set elsewhere, by overrides
    assert str(tmp_path) in line or kind in of_values


def test_files_that_are_not_there(tmp_path):
    assert refused(str(tmp_path / "x.yaml")) == f"{tmp_path}/x.yaml: no such config file"
    assert refused(str(tmp_path)) == f"{tmp_path}: is a folder"
    with pytest.raises(FileNotFoundError):
        build_cfg(str(tmp_path / "x.yaml"))


def test_a_circle_of_several_files_and_a_mistake_in_a_base(tmp_path):
    for name, base in (("a", "b"), ("b", "sub/c"), ("sub/c", "../a")):
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"_BASE_: {base}.yaml\n")
    line = refused(str(tmp_path / "a.yaml"))
    assert "leads in a circle, which _BASE_ of " in line
    assert line.endswith("c.yaml names")
    (tmp_path / "sub/c.yaml").write_text("SOLVER: {MAX_ITERS: 3}\n")
    assert refused(str(tmp_path / "a.yaml")).startswith(f"{tmp_path}/sub/c.yaml: Non-existent")
    (tmp_path / "sub/c.yaml").write_text("SOLVER: {MAX_ITER: 3}\nSEED: 4\n")
    (tmp_path / "b.yaml").write_text("_BASE_: [sub/c.yaml]\nSOLVER: {MAX_ITER: 5}\n")
    cfg = build_cfg(str(tmp_path / "a.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SEED) == (5, 4)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfSEED: 7\n")
    assert build_cfg(str(tmp_path / "c.yaml")).SEED == 7
