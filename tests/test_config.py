"""Every shipped config, and where our keys live."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    build_model,
)
from detectron2.utils.file_io import PathManager

from regiondh_d2 import add_regiondh_config

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml"))
OUR_NODES = ("MODEL.REGION_DH.", "MODEL.TIMM.", "MODEL.IMAGE_HASH.", "TEST.RETRIEVAL.")


def load(name):
    cfg = get_cfg()
    add_regiondh_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


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


def test_there_are_configs():
    assert any(name.startswith("voc07/") for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_config_merges_and_names_what_exists(name):
    cfg = load(name)
    for registry, component in (
        (META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE),
        (BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME),
        (PROPOSAL_GENERATOR_REGISTRY, cfg.MODEL.PROPOSAL_GENERATOR.NAME),
        (ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME),
        (ROI_BOX_HEAD_REGISTRY, cfg.MODEL.ROI_BOX_HEAD.NAME),
    ):
        assert component in registry
    if cfg.MODEL.WEIGHTS.startswith("regiondh://"):
        assert PathManager.isfile(cfg.MODEL.WEIGHTS)
    if not Path(name).name.startswith("Base-"):
        for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            # Generated scenes are registered by the command that makes them.
            assert "scenes" in dataset or dataset in DatasetCatalog


@pytest.mark.parametrize("name", FILES)
def test_config_builds_a_network(name):
    cfg = load(name)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    if "EfficientNetLite0" in name or "effnetlite0" in name:
        assert sum(p.numel() for p in model.parameters()) <= 9_000_000
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE


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
    assert set(node.LR_FACTORS.values()) == {1.0}
    assert cfg.TEST.RETRIEVAL.TOPK == 1000
    assert cfg.TEST.RETRIEVAL.COUNT_DIFFICULT is True
