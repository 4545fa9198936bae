"""The network of a config: parts that don't fit are one line, before any work."""

import pytest
from detectron2.layers import ROIAlign
from detectron2.modeling import META_ARCH_REGISTRY
from timm.layers.norm_act import FrozenBatchNormAct2d

from regiondh_d2.engine.defaults import check_datasets
from regiondh_d2.engine.network import build_network
from regiondh_d2.engine.trainer import RegionDHTrainer
from regiondh_d2.modeling.cpu_layers import STAND_INS
from regiondh_d2.utils.errors import RegionDHError


@pytest.mark.parametrize("kind", ["GeneralizedRCNN", "RegionDH"])
def test_layers_are_those_for_cpus(tiny_cfg, kind):
    """Of detectors that warm up a network, too."""
    tiny_cfg.MODEL.META_ARCHITECTURE = kind
    tiny_cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"  # has all layers that there are
    if kind == "GeneralizedRCNN":
        tiny_cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    layers = {type(layer) for layer in build_network(tiny_cfg).modules()}
    assert set(STAND_INS.values()) <= layers
    assert not {ROIAlign, FrozenBatchNormAct2d} & layers


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "KeyError: 'p3' in retinanet.py"),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN"], "SemSegFPNHead"),
        (["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"], "in fpn.py"),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['p9']"], "KeyError: 'p9'"),
        (["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"], "class-agnostic regression"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]"], "Got sizes of length 2"),
        (["MODEL.ROI_HEADS.NAME", "StandardROIHeads"], "StandardROIHeads makes no codes"),
        (["MODEL.META_ARCHITECTURE", "ImageHash"], "ImageHash: take WholeImageHeads"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"], "proposes rotated boxes"),
        (["MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"], "proposes rotated boxes"),
    ],
)
@pytest.mark.parametrize("build", [build_network, RegionDHTrainer.build_model])
def test_parts_that_do_not_fit_are_one_line(tiny_cfg, opts, told, build):
    tiny_cfg.merge_from_list(opts)
    with pytest.raises(RegionDHError) as error:
        build(tiny_cfg)
    assert told in str(error.value)
    assert opts[1].strip("[]'") in str(error.value) or opts[0].endswith("SIZES")
    assert "\n" not in str(error.value)


def test_what_is_no_misfit_stays_what_it_is(tiny_cfg, monkeypatch):
    def no_memory(cfg):
        raise MemoryError

    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "RegionDH", no_memory)
    with pytest.raises(MemoryError):
        build_network(tiny_cfg)


def test_a_training_without_an_rpn_is_refused(make_model, make_inputs):
    model = make_model("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    with pytest.raises(RegionDHError, match="Region-DH trains its RPN: take RPN"):
        model(make_inputs((64, 96)))


def test_a_coded_database_without_use_is_refused(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 12
    tiny_cfg.TEST.RETRIEVAL.DATABASE_CODES = "d.h5"
    tiny_cfg.DATASETS.TEST = ("scenes_retrieval", "regiondh_scenes_queries")
    check_datasets(tiny_cfg)
    tiny_cfg.DATASETS.TEST = ("regiondh_scenes_queries",)
    with pytest.raises(RegionDHError, match="DATABASE_CODES is 'd.h5', and no retrieval dataset"):
        check_datasets(tiny_cfg)


@pytest.mark.parametrize("name", ["GeneralizedRCNN", "ProposalNetwork"])
def test_a_network_without_codes_is_told_before_it_is_trained(tiny_cfg, name):
    tiny_cfg.DATASETS.TEST = ("scenes_retrieval",)
    tiny_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 12
    check_datasets(tiny_cfg)
    tiny_cfg.MODEL.META_ARCHITECTURE = name
    with pytest.raises(RegionDHError, match=f"'scenes_retrieval', .* {name} makes none"):
        check_datasets(tiny_cfg)
    tiny_cfg.DATASETS.TEST = ("regiondh_scenes_queries",)
    check_datasets(tiny_cfg)
