"""Region outputs that are refused; test_roi_heads.py tests the others, with the heads."""

import pytest
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads


def test_sigmoid_classifiers_are_refused(tiny_cfg):
    tiny_cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    with pytest.raises(ValueError, match=r"MODEL\.ROI_BOX_HEAD\.USE_SIGMOID_CE"):
        build_roi_heads(tiny_cfg, {"stage4": ShapeSpec(channels=8, stride=16)})
