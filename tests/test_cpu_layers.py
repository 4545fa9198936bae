"""Layers for CPUs give what the layers give that they stand for, and the same gradients."""

import copy

import pytest
import timm
import torch
from detectron2.layers import ROIAlign
from timm.layers import Conv2dSame
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import nn

from regiondh_d2.modeling import cpu_layers
from regiondh_d2.modeling.cpu_layers import use_cpu_layers


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs_and_gradients(layer, x, *more):
    """What a layer makes of ``x``, and the gradients of ``x`` and the parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x, *more)
    y.backward(random(*y.shape, seed=1))
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def assert_stands_in(layer, x, *more):
    other = copy.deepcopy(layer)
    use_cpu_layers(other)
    assert type(other) is not type(layer)
    assert isinstance(other, type(layer))
    assert other.state_dict().keys() == layer.state_dict().keys()
    expected, found = outputs_and_gradients(layer, x, *more), outputs_and_gradients(other, x, *more)
    for one, another in zip(found, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-4)


# --- ROIAlign -------------------------------------------------------------------------------------

ROIS = [
    [0.0, 3.0, 5.0, 60.0, 44.0],
    [1.0, 0.0, 0.0, 96.0, 64.0],
    [1.0, -40.0, -30.0, 20.0, 10.0],  # partly and wholly outside of the map
    [0.0, -90.0, -90.0, -60.0, -50.0],
    [0.0, 80.0, 50.0, 170.0, 130.0],
    [1.0, 31.0, 17.0, 31.0, 17.0],  # a point
    [0.0, 50.0, 40.0, 45.0, 30.0],  # upside down
]


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("output_size", "ratio"), [((4, 4), 2), ((3, 5), 1), ((2, 7), 3)])
def test_roi_align(output_size, ratio, aligned, memory_format):
    layer = ROIAlign(output_size, 1 / 16, ratio, aligned)
    x = random(2, 3, 4, 6).contiguous(memory_format=memory_format)
    assert_stands_in(layer, x, torch.tensor(ROIS))


def test_roi_align_of_boxes_that_are_not_finite_is_zero():
    layer = ROIAlign((4, 4), 1 / 16, 2, True)
    use_cpu_layers(layer)
    rois = torch.tensor([[0.0, torch.nan, 5.0, 60.0, 44.0], [1.0, -torch.inf, 0.0, torch.inf, 9.0]])
    assert not layer(random(2, 3, 4, 6), rois).any()


def test_roi_align_of_no_regions_keeps_the_graph():
    layer = ROIAlign((4, 4), 1 / 16, 2, True)
    use_cpu_layers(layer)
    x = random(2, 3, 4, 6).requires_grad_()
    pooled = layer(x, torch.zeros(0, 5))
    assert pooled.shape == (0, 3, 4, 4)
    pooled.sum().backward()
    assert x.grad.shape == x.shape
    assert not x.grad.any()


def test_roi_align_without_a_fixed_number_of_samples_stays():
    layer = ROIAlign((4, 4), 1 / 16, 0, True)
    use_cpu_layers(layer)
    assert type(layer) is ROIAlign


# --- Depthwise convolutions -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 14), (11, 9)])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 5, "padding": 2},
        {"kernel_size": 5, "padding": 2, "stride": 2, "bias": False},
        {"kernel_size": 7, "padding": 3},
        {"kernel_size": (3, 4), "padding": (0, 1), "stride": (1, 3)},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": False},
        {"kernel_size": 5, "padding": 4, "dilation": 2},
        {"kernel_size": (5, 3), "padding": (0, 3), "dilation": (2, 3)},
    ],
)
def test_depthwise_convolution(options, size):
    assert_stands_in(nn.Conv2d(8, 8, groups=8, **options), random(3, 8, *size))


@pytest.mark.parametrize("size", [(12, 14), (11, 9)])
@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {}])
def test_depthwise_convolution_with_padding_of_the_same_size(options, size):
    layer = Conv2dSame(8, 8, 5, groups=8, bias=False, **options)
    x = random(2, 8, *size).contiguous(memory_format=torch.channels_last)
    assert_stands_in(layer, x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 5, groups=4),
        nn.Conv2d(8, 16, 5, groups=8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 5, groups=8, dilation=2, stride=2),
        nn.Conv2d(8, 8, 5, groups=8, dilation=2, padding=3),
        nn.Conv2d(8, 8, 5, groups=8, padding="same"),
        nn.Conv2d(8, 8, 5, groups=8, padding=2, padding_mode="reflect"),
    ],
)
def test_other_convolutions_stay(layer):
    use_cpu_layers(layer)
    assert type(layer) is nn.Conv2d


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_only_wanted_gradients_are_computed(frozen, monkeypatch):
    layer, x = nn.Conv2d(8, 8, 5, groups=8), random(2, 8, 9, 9)
    use_cpu_layers(layer)
    wanted, gradients = [], cpu_layers._gradients
    monkeypatch.setattr(cpu_layers, "_gradients", lambda *a: wanted.append(a[-1]) or gradients(*a))
    layer.weight.requires_grad_(frozen != "weight")
    layer(x.requires_grad_(frozen != "x")).sum().backward()
    assert set(wanted) == {(frozen != "x", frozen != "weight")}


# --- A whole network ------------------------------------------------------------------------------


def test_frozen_batch_norm():
    layer = FrozenBatchNormAct2d(6, act_layer=nn.ReLU6)
    for seed, buffer in enumerate(layer.buffers()):
        buffer.copy_(random(6, seed=seed).abs() + 0.1)
    assert_stands_in(layer, random(2, 6, 5, 7))


def test_a_network_keeps_its_keys_and_computes_the_same():
    torch.manual_seed(0)
    network = timm.create_model(
        "tf_efficientnet_lite0", features_only=True, out_indices=(4,), output_stride=16
    )
    network = timm.layers.freeze_batch_norm_2d(network)
    plain = copy.deepcopy(network)
    use_cpu_layers(network)
    use_cpu_layers(network)
    kinds = [type(m) for m in network.modules()]
    for kind in (cpu_layers.CPUDepthwiseConv2d, cpu_layers.CPUDepthwiseConv2dSame):
        assert kind in kinds
    assert network.state_dict().keys() == plain.state_dict().keys()
    x = random(1, 3, 64, 96)
    for one, other in ((network, plain), (copy.deepcopy(network), plain)):
        torch.testing.assert_close(one(x), other(x), rtol=1e-3, atol=1e-4)


def test_layers_are_the_plain_ones_in_other_precision_and_while_traced(monkeypatch):
    monkeypatch.setattr(cpu_layers, "depthwise_conv2d", lambda *_: pytest.fail("called it"))
    layer = nn.Conv2d(8, 8, 5, groups=8)
    use_cpu_layers(layer)
    x = random(1, 8, 9, 9)
    torch.jit.trace(layer, x, check_trace=False)
    layer.double()(x.double())
