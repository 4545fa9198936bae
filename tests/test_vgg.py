"""VGG16 as a backbone: torchvision's network up to conv5_3, at stride 16."""

import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone

from regiondh_d2.modeling.backbone.vgg import VGG16


def test_features_are_torchvisions_before_the_last_pooling():
    torch.manual_seed(0)
    reference = torchvision.models.vgg16(weights=None, init_weights=False).features
    backbone = VGG16()
    # The names, too, are torchvision's: its weights load with a prefix alone.
    backbone.features.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        expected = reference[:-1](x)
        assert isinstance(reference[-1], torch.nn.MaxPool2d)
        torch.testing.assert_close(backbone(x)["conv5_3"], expected, rtol=0, atol=0)
    assert expected.std() > 0


@pytest.mark.parametrize("size", [(16, 16), (31, 33), (64, 96), (47, 81)])
def test_stride_16_also_of_odd_sizes(size):
    backbone = VGG16()
    with torch.no_grad():
        out = backbone(torch.zeros(1, 3, *size))
    shape = backbone.output_shape()["conv5_3"]
    assert (shape.channels, shape.stride) == (512, 16)
    assert list(out) == ["conv5_3"]
    assert out["conv5_3"].shape == (1, 512, size[0] // 16, size[1] // 16)


def test_a_cell_sees_what_lies_16_pixels_apart():
    """The declared stride is the true one: an input moved by 16 pixels moves the map by a cell."""
    torch.manual_seed(0)
    backbone = VGG16().double()
    x = torch.zeros(1, 3, 32, 640, dtype=torch.double)
    x[..., 300:340] = torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        still, moved = backbone(x)["conv5_3"], backbone(x.roll(16, dims=3))["conv5_3"]
    torch.testing.assert_close(moved[..., 1:], still[..., :-1])
    assert (still != moved).any()


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_freeze_at_counts_stages(freeze_at):
    backbone = VGG16(freeze_at=freeze_at)
    if freeze_at < 5:  # else nothing has a gradient
        backbone(torch.randn(1, 3, 32, 32))["conv5_3"].square().mean().backward()
    first = [0, 5, 10, 17, 24, 31][freeze_at]  # torchvision's number of the first trainable layer
    for key, parameter in backbone.named_parameters():
        trainable = int(key.split(".")[1]) >= first
        assert parameter.requires_grad == trainable, key
        assert (parameter.grad is not None) == trainable, key


def test_more_stages_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.FREEZE_AT: 6.*5 stages"):
        VGG16(freeze_at=6)


def test_built_from_a_config(tiny_cfg):
    tiny_cfg.merge_from_list(
        ["MODEL.BACKBONE.NAME", "build_vgg16_backbone", "MODEL.BACKBONE.FREEZE_AT", 1]
    )
    backbone = build_backbone(tiny_cfg)
    assert isinstance(backbone, VGG16)
    assert backbone.size_divisibility == 16
    frozen = [k for k, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen == [f"features.{i}.{leaf}" for i in (0, 2) for leaf in ("weight", "bias")]
