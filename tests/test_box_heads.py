"""The light box head."""

import pytest
import timm
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.roi_heads import build_box_head

from regiondh_d2.modeling.box_heads import LightBoxHead


@pytest.mark.parametrize("conv_dim", [0, 10])
@pytest.mark.parametrize("num_fc", [0, 2])
def test_shapes(conv_dim, num_fc):
    head = LightBoxHead(ShapeSpec(channels=6), conv_dim=conv_dim, num_fc=num_fc, fc_dim=7)
    x = torch.randn(5, 6, 4, 4)
    assert head.pool(x).shape == (5, head.pooled_dim) == (5, conv_dim or 6)
    assert head(x).shape == (5, head.output_shape.channels)
    assert head.output_shape.channels == (7 if num_fc else head.pooled_dim)
    torch.testing.assert_close(head(x), head.fc(head.pool(x)))
    assert head(x[:0]).shape == (0, head.output_shape.channels)


def test_without_convolution_or_layers_it_is_average_pooling():
    head = LightBoxHead(ShapeSpec(channels=6), conv_dim=0, num_fc=0, fc_dim=7)
    x = torch.randn(5, 6, 4, 4)
    torch.testing.assert_close(head(x), torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_no_regions_still_reach_every_parameter():
    head = LightBoxHead(ShapeSpec(channels=6), conv_dim=10, num_fc=2, fc_dim=7)
    head(torch.zeros(0, 6, 4, 4)).sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_the_convolution_is_the_head_of_the_timm_classifier():
    """With its weights, batch norm included, the pooled feature is the classifier's."""
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0").eval()
    for values in (net.bn2.weight, net.bn2.bias, net.bn2.running_mean, net.bn2.running_var):
        values.data.uniform_(0.5, 1.5)
    head = LightBoxHead(ShapeSpec(channels=320), conv_dim=1280, num_fc=0, fc_dim=0)
    state = {f"conv_head.{k}": v for k, v in net.conv_head.state_dict().items()}
    state |= {f"conv_head.norm.{k}": v for k, v in net.bn2.state_dict().items()}
    del state["conv_head.norm.num_batches_tracked"]
    head.load_state_dict(state, strict=True)
    x = 4 * torch.randn(2, 320, 3, 4)
    with torch.no_grad():
        expected = net.forward_head(net.bn2(net.conv_head(x)), pre_logits=True)
        torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-6)
    # ReLU6: both of its bends are in use.
    activated = head.conv_head(x)
    assert (activated == 0).any()
    assert (activated == 6).any()


def test_from_config(tiny_cfg):
    tiny_cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.TIMM.HEAD_CONV_DIM", 9])
    head = build_box_head(tiny_cfg, ShapeSpec(channels=6, height=4, width=4))
    assert isinstance(head, LightBoxHead)
    assert (head.pooled_dim, head.output_shape.channels) == (9, 32)
    assert isinstance(head.conv_head.norm, FrozenBatchNorm2d)
    assert sum(isinstance(m, torch.nn.Linear) for m in head.fc) == 1
