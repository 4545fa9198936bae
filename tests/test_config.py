"""Where our keys live, and their defaults. tests/test_configs.py has the shipped files."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from regiondh_d2 import add_regiondh_config
from regiondh_d2.config import (
    DEFAULT_MAX_PIXELS,
    changed_settings,
    code_settings,
    feature_settings,
    parse_settings,
    recorded_max_pixels,
    training_settings,
)
from regiondh_d2.engine import build_cfg

OUR_NODES = ("MODEL.REGION_DH.", "MODEL.TIMM.", "MODEL.IMAGE_HASH.", "TEST.RETRIEVAL.")


def flat(node, prefix=""):
    items = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[prefix + key] = value
    return items


def test_our_keys_live_in_our_nodes_alone():
    before = get_cfg()
    after = before.clone()
    add_regiondh_config(after)
    before, after = flat(before), flat(after)
    assert {k: after[k] for k in before} == before
    new = set(after) - set(before)
    assert new
    assert [k for k in sorted(new) if not k.startswith(OUR_NODES)] == []


def test_defaults_are_the_papers():
    cfg = get_cfg()
    add_regiondh_config(cfg)
    node = cfg.MODEL.REGION_DH
    assert (node.BITS, node.BITS_INSTANCE, node.BITS_IMAGE) == (48, 0, 0)
    assert (node.FUSION_ROIS, node.FUSION_NUM_ROIS, node.FUSION_NORM) == ("topk", 100, "sum")
    assert (node.CLASSIFIER_INPUT, node.WHOLE_IMAGE) == ("h1", "none")
    weights = node.LOSS_WEIGHTS
    assert weights.GAMMA_H1 == weights.GAMMA_H2 == [0.05, 10.0]
    assert [*weights.ALPHA, *weights.BETA] == [1.0] * 5
    assert {part for part, factor in node.LR_FACTORS.items() if factor != 1.0} == {"IMAGE_ENCODERS"}
    assert node.LR_FACTORS.IMAGE_ENCODERS == 0.0
    assert cfg.TEST.RETRIEVAL.TOPK == 1000
    assert cfg.TEST.RETRIEVAL.COUNT_DIFFICULT is True


def test_without_cuda_the_device_is_the_cpu(monkeypatch):
    for available, device in ((False, "cpu"), (True, "cuda:1")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        assert device == build_cfg(opts=["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE


# Settings

KINDS = (code_settings, feature_settings, training_settings)


def settings_of_version_0_1(cfg):
    """As that version wrote them: by the beginnings of keys."""
    taken = ("MODEL.", "INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")
    taken += ("TEST.DETECTIONS_PER_IMAGE", "TEST.RETRIEVAL.INSTANCE_MIN_SCORE")
    left = ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.REGION_DH.FEATURE_CACHE")
    left += ("MODEL.REGION_DH.LOSS_WEIGHTS.", "MODEL.REGION_DH.LR_FACTORS.")
    new = (
        "CODE_QUEUE",
        "FUSED_DROPOUT",
        "IMAGE_ENCODER_FREEZE_AT",
        "IMAGE_GRADIENT_SCALE",
    )  # and of training alone
    left += tuple(f"MODEL.REGION_DH.{key}" for key in new)
    return "\n".join(
        f"{key} {value!r}"
        for key, value in sorted(flat(cfg).items())
        if key.startswith(taken) and not key.startswith(left) and not key.endswith("_TRAIN")
    )


@pytest.mark.parametrize("config", ["", "regiondh_effnetlite0_48", "regiondh_vgg16_48"])
def test_code_settings_are_those_of_version_0_1(config):
    """So its code files resume."""
    file = f"configs/voc07/{config}.yaml" if config else ""
    cfg = build_cfg(str(Path(__file__).parents[1] / file) if file else "")
    reader, *lines = code_settings(cfg).splitlines()
    assert "\n".join(lines) == settings_of_version_0_1(cfg)
    # What is new since. Its reader of images was another one.
    assert reader.startswith("IMAGE_READER ")
    assert parse_settings("\n".join(lines))["IMAGE_READER"] == "1"


def test_keys_of_other_projects_count_unless_they_are_excepted():
    cfg = build_cfg()
    cfg.MODEL.OTHERS = CfgNode({"KEY": 1})
    cfg.OTHERS = CfgNode({"KEY": 2})
    for kind in KINDS:
        assert {"MODEL.OTHERS.KEY 1", "OTHERS.KEY 2"} <= set(kind(cfg).splitlines())


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_the_same_after_a_config_file(kind, tmp_path):
    """YAML has no tuples, and makes lists of those in a tuple."""
    cfg = build_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32], [64]]
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = build_cfg(str(tmp_path / "config.yaml"))
    assert kind(again) == kind(cfg)
    assert changed_settings(kind(cfg), kind(again), kind) == {}
    # Version 0.1 wrote such a value as it came.
    if "((10.0, 10.0" in kind(cfg):
        old = kind(cfg).replace("((10.0, 10.0, 5.0, 5.0)", "([10.0, 10.0, 5.0, 5.0]")
        assert old != kind(cfg)
        assert changed_settings(old, kind(cfg), kind) == {}
    assert parse_settings("MODEL.X ([", kind)["MODEL.X"] == "(["  # of a damaged file


def test_changed_settings_are_named_with_both_values():
    cfg = build_cfg()
    before = training_settings(cfg)
    cfg.SOLVER.BASE_LR = 0.5
    cfg.NEW = CfgNode({"KEY": "a b"})
    assert changed_settings(before, training_settings(cfg), training_settings) == {
        "NEW.KEY": ("(unknown)", "'a b'"),
        "SOLVER.BASE_LR": ("0.001", "0.5"),
    }
    assert parse_settings("", training_settings) == {}


def test_settings_are_those_that_decide_about_codes(tiny_cfg):
    before = code_settings(tiny_cfg, instances=True)
    for key, value in (
        ("MODEL.WEIGHTS", "other.pth"),
        ("MODEL.DEVICE", "cuda"),
        ("MODEL.RPN.POST_NMS_TOPK_TRAIN", 5),
        ("MODEL.REGION_DH.LOSS_WEIGHTS.ALPHA", [2.0, 1.0]),
        ("MODEL.REGION_DH.LR_FACTORS.BACKBONE", 0.0),
        ("MODEL.REGION_DH.FEATURE_CACHE", "cache"),
        ("SOLVER.MAX_ITER", 7),
    ):
        tiny_cfg.merge_from_list([key, value])
        assert code_settings(tiny_cfg, instances=True) == before, key
    for key, value in (
        ("MODEL.RPN.POST_NMS_TOPK_TEST", 5),
        ("MODEL.REGION_DH.FUSION_NUM_ROIS", 7),
        ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]),
        ("INPUT.MIN_SIZE_TEST", 64),
        ("TEST.RETRIEVAL.INSTANCE_MIN_SCORE", 0.5),
    ):
        tiny_cfg.merge_from_list([key, value])
        changed = code_settings(tiny_cfg, instances=True)
        assert f"{key} {value!r}" in changed.splitlines()
        assert changed != before
        before = changed
    assert code_settings(tiny_cfg, instances=False) != before


def test_the_recorded_pixel_limit():
    cfg = get_cfg()
    add_regiondh_config(cfg)
    cfg.MODEL.REGION_DH.MAX_PIXELS = 1234
    assert recorded_max_pixels(code_settings(cfg), 5) == 1234
    assert recorded_max_pixels("INPUT.FORMAT 'BGR'", 5) == DEFAULT_MAX_PIXELS  # older than the key
    for unusable in ("", "MODEL.REGION_DH.MAX_PIXELS x", "MODEL.REGION_DH.MAX_PIXELS 0"):
        assert recorded_max_pixels(unusable, 5) == 5
