"""Where our keys live, and their defaults. tests/test_configs.py has the shipped files."""

import torch
from detectron2.config import CfgNode, get_cfg

from regiondh_d2 import add_regiondh_config
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
    assert set(node.LR_FACTORS.values()) == {1.0}
    assert cfg.TEST.RETRIEVAL.TOPK == 1000
    assert cfg.TEST.RETRIEVAL.COUNT_DIFFICULT is True


def test_without_cuda_the_device_is_the_cpu(monkeypatch):
    for available, device in ((False, "cpu"), (True, "cuda:1")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        assert device == build_cfg(opts=["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE
