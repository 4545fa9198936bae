"""The box heads, all in two parts."""

import pytest
import timm
import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import Res5ROIHeads, build_box_head
from detectron2.structures import Boxes

from regiondh_d2.modeling.box_heads import LightBoxHead, PooledBoxHead, Res5BoxHead, VGGBoxHead
from regiondh_d2.modeling.cpu_layers import use_cpu_layers

HEADS = {
    "light": lambda: LightBoxHead(ShapeSpec(channels=8), conv_dim=10, num_fc=2, fc_dim=7),
    "vgg": lambda: VGGBoxHead(ShapeSpec(channels=8, height=4, width=4), fc_dim=7),
    "res5": lambda: Res5BoxHead(ShapeSpec(channels=8), width_per_group=2),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_pools_and_then_reads_the_vectors(name):
    """The protocol on which cached features and the whole-image region rely."""
    head = HEADS[name]().eval()
    assert isinstance(head, PooledBoxHead)
    x = torch.randn(5, 8, 4, 4)
    pooled = head.pool(x)
    assert pooled.shape == (5, head.pooled_dim)
    assert head(x).shape == (5, head.output_shape.channels)
    assert torch.equal(head(x), head.fc(pooled))
    assert head(x[:0]).shape == (0, head.output_shape.channels)


@pytest.mark.parametrize("name", HEADS)
def test_no_regions_still_reach_every_parameter(name):
    head = HEADS[name]()
    head(torch.zeros(0, 8, 4, 4)).sum().backward()
    assert list(head.parameters())
    assert all(p.grad is not None for p in head.parameters())


class Pooler(ROIPooler):
    """An ROIPooler that notes how many channels it pools."""

    def forward(self, x, boxes):
        self.channels = x[0].shape[1]
        return super().forward(x, boxes)


@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIPool"])
@pytest.mark.parametrize("num_regions", [0, 1, 9])
@pytest.mark.parametrize("name", HEADS)
def test_regions_of_maps_are_pooled_as_their_features(name, num_regions, kind):
    """The light head convolves the maps where that is less, and pooling is linear."""
    head = HEADS[name]().eval()
    pooler = Pooler((4, 4), [1 / 16], 2, kind)
    use_cpu_layers(pooler)
    maps = [torch.randn(2, 8, 4, 6)]
    corners = torch.rand(num_regions, 2, 2).sort(dim=1).values * 90
    boxes = [Boxes(corners.flatten(1)), Boxes(torch.tensor([[0.0, -20.0, 110.0, 64.0]]))]
    found = head.pool_regions(maps, boxes, pooler)
    first = name == "light" and num_regions == 9 and kind == "ROIAlignV2"
    assert pooler.channels == (10 if first else 8)
    torch.testing.assert_close(found, head.pool(pooler(maps, boxes)), rtol=1e-4, atol=1e-5)


# --- LightBoxHead --------------------------------------------------------------------------------


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
    tiny_cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.NUM_FC", 1])
    tiny_cfg.merge_from_list(["MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM", 9])
    head = build_box_head(tiny_cfg, ShapeSpec(channels=6, height=4, width=4))
    assert isinstance(head, LightBoxHead)
    assert (head.pooled_dim, head.output_shape.channels) == (9, 32)
    assert isinstance(head.conv_head.norm, FrozenBatchNorm2d)
    assert sum(isinstance(m, torch.nn.Linear) for m in head.fc) == 1


# --- VGGBoxHead ----------------------------------------------------------------------------------


def test_fc6_and_fc7_are_those_of_torchvisions_classifier():
    torch.manual_seed(0)
    sizes = (8 * 7 * 7, 16, 16, 5)
    fc6, fc7, fc8 = (torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
    net = torchvision.models.VGG(torch.nn.Identity(), init_weights=False)
    net.classifier[0], net.classifier[3], net.classifier[6] = fc6, fc7, fc8
    head = VGGBoxHead(ShapeSpec(channels=8, height=7, width=7), fc_dim=16)
    assert head.pooled_dim == sizes[0]
    head.fc.fc6.load_state_dict(fc6.state_dict())
    head.fc.fc7.load_state_dict(fc7.state_dict())
    x = torch.randn(4, 8, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(fc8(head.eval()(x)), net.eval()(x))


def test_dropout_is_a_matter_of_training_alone():
    torch.manual_seed(0)
    head = VGGBoxHead(ShapeSpec(channels=8, height=4, width=4), fc_dim=4000)
    x = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        kept = (head.eval()(x) > 0).float().mean()
        in_training = (head.train()(x) > 0).float().mean()
        assert torch.equal(head.eval()(x), head(x))
    assert in_training / kept == pytest.approx(0.5, abs=0.05)


def test_the_vgg_head_from_a_config(tiny_cfg):
    tiny_cfg.MODEL.ROI_BOX_HEAD.NAME = "VGGBoxHead"
    head = build_box_head(tiny_cfg, ShapeSpec(channels=6, height=4, width=3))
    assert isinstance(head, VGGBoxHead)
    assert (head.pooled_dim, head.output_shape.channels) == (72, 32)
    assert (head.fc.drop6.p, head.fc.drop7.p) == (0.5, 0.5)


# --- Res5BoxHead ---------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [(1, 64), (32, 8)], ids=["resnet", "resnext"])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_res5_is_that_of_detectron2s_own_roi_heads(tiny_cfg, groups, stride_in_1x1):
    torch.manual_seed(0)
    tiny_cfg.merge_from_list(
        [
            *("MODEL.ROI_BOX_HEAD.NAME", "Res5BoxHead", "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
            *("MODEL.RESNETS.NUM_GROUPS", groups[0], "MODEL.RESNETS.WIDTH_PER_GROUP", groups[1]),
            *("MODEL.RESNETS.STRIDE_IN_1X1", stride_in_1x1),
        ]
    )
    head = build_box_head(tiny_cfg, ShapeSpec(channels=64, height=6, width=6))
    assert isinstance(head, Res5BoxHead)
    reference, channels = Res5ROIHeads._build_res5_block(tiny_cfg)
    assert head.pooled_dim == head.output_shape.channels == channels == 128
    reference.load_state_dict(head.res5.state_dict(), strict=True)
    x = torch.randn(3, 64, 6, 6)
    with torch.no_grad():
        expected = reference(x)
        assert expected.shape[-2:] == (3, 3)
        torch.testing.assert_close(head(x), expected.mean(dim=[2, 3]))


def test_res5_of_a_network_without_bottlenecks_is_an_error(tiny_cfg):
    tiny_cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.NAME", "Res5BoxHead", "MODEL.RESNETS.DEPTH", 18])
    with pytest.raises(ValueError, match=r"MODEL\.RESNETS\.DEPTH 18.*50, 101 or 152"):
        build_box_head(tiny_cfg, ShapeSpec(channels=256, height=14, width=14))
