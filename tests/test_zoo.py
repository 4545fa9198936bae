"""The networks that come with the package: complete, named, loaded whole, and safe."""

import hashlib
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager

from regiondh_d2.checkpoint import (
    WeightsError,
    convert_weights,
    model_fingerprint,
    read_weights,
    zoo,
)
from regiondh_d2.data import generate_scenes
from regiondh_d2.engine.command import load_trained_model
from regiondh_d2.engine.defaults import build_cfg
from regiondh_d2.retrieval.images import ImageLoader
from regiondh_d2.utils.marks import mark_of

CONFIG = Path(__file__).parents[1] / "configs/voc07/regiondh_effnetlite0_64.yaml"
MEGABYTE = 1_000_000


@pytest.fixture
def shipped_elsewhere(tmp_path, monkeypatch):
    """A function that ships bytes as "net" from another folder."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)

    def ship(content, digest=None):
        (tmp_path / "net.pth").write_bytes(content)
        digest = digest or hashlib.sha256(content).hexdigest()
        monkeypatch.setattr(zoo, "SHIPPED", {"net": digest})
        return tmp_path / "net.pth"

    return ship


@pytest.mark.parametrize("name", zoo.SHIPPED)
def test_a_shipped_network_is_small_and_as_recorded(name):
    path = zoo.shipped_weights(name)
    assert PathManager.get_local_path(f"regiondh://{name}") == path
    assert PathManager.isfile(f"regiondh://{name}")
    with open(path, "rb") as file:
        content = file.read()
    assert len(content) <= 20 * MEGABYTE
    weights = torch.load(path, weights_only=True)["model"]
    assert {t.dtype for t in weights.values() if t.dim() > 1} <= {torch.float16, torch.int8}
    assert all(t.isfinite().all() for t in weights.values())


def test_the_shipped_network_finds_and_codes(tmp_path):
    cfg = build_cfg(str(CONFIG))
    model = load_trained_model(cfg)
    generate_scenes(tmp_path, num_database=2, num_queries=1)
    load = ImageLoader(cfg)
    files = sorted(tmp_path.rglob("*.jpg"))
    outputs = [model.inference([load(str(file))])[0] for file in files]
    codes = torch.stack([out["image_code"] for out in outputs])
    assert codes.shape == (3, 64)
    # Trained activations are decided: untrained ones lie about 0.5.
    undecided = [(out["image_activation"] - 0.5).abs().median() for out in outputs]
    assert min(undecided) > 0.3


def test_a_damaged_file_is_named(shipped_elsewhere):
    path = shipped_elsewhere(b"damaged", digest="0" * 64)
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        zoo.shipped_weights("net")
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} is missing"):
        zoo.shipped_weights("net")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("effnetlite0_voc07_64b", "effnetlite0_voc07_64"),  # longer than one that there is
        ("effnetlite0_voc07", "effnetlite0_voc07_64"),
        ("effnetlite0_voc07_64/", "effnetlite0_voc07_64"),
        ("torchvision/vgg", "torchvision/vgg16"),
        ("Torchvision/vgg16", "torchvision/vgg16"),
        ("", None),
        ("xyz", None),
    ],
)
def test_a_name_that_is_not_known_lists_those_that_are(name, near):
    assert not PathManager.isfile(f"regiondh://{name}")
    for read in (PathManager.get_local_path, convert_weights):
        with pytest.raises(WeightsError, match="no weights are known as ") as error:
            read(f"regiondh://{name}")
        text = str(error.value)
        assert (f"did you mean regiondh://{near}? " in text) if near else "did you" not in text
        for known in ("effnetlite0_voc07_64", "torchvision/resnet50-c4", "timm/NAME-fpn"):
            assert f"regiondh://{known}" in text


def test_a_name_of_a_catalog_that_is_not_known():
    with pytest.raises(WeightsError, match="catalog://nope can't be had: model not present"):
        convert_weights("catalog://nope")


def test_what_is_shipped_needs_no_conversion():
    with pytest.raises(WeightsError, match="needs no conversion: name it as MODEL.WEIGHTS"):
        convert_weights("regiondh://effnetlite0_voc07_64")


def test_halved_matrices_and_whole_vectors(tmp_path):
    weights = {"matrix": torch.randn(3, 4), "vector": torch.tensor([1e-9, 1e9])}
    torch.save({"model": weights, "optimizer": {"state": 1}}, tmp_path / "whole.pth")
    count, digest = zoo.halve(str(tmp_path / "whole.pth"), str(tmp_path / "half.pth"))
    assert count == 2
    assert digest == hashlib.sha256((tmp_path / "half.pth").read_bytes()).hexdigest()
    half = torch.load(tmp_path / "half.pth", weights_only=True)
    assert list(half) == ["format", "model"] and mark_of(tmp_path / "half.pth") == "weights"
    assert zoo.halve(str(tmp_path / "whole.pth"), str(tmp_path / "again.pth")) == (count, digest)
    assert torch.equal(half["model"]["vector"], weights["vector"])
    torch.testing.assert_close(
        half["model"]["matrix"].float(), weights["matrix"], atol=1e-3, rtol=1e-3
    )


def test_image_encoders_are_stored_in_bytes(tmp_path):
    wide = torch.randn(5, 4, 1, 1) * torch.tensor([1e-3, 1.0, 50.0, 0.0, 1.0]).view(5, 1, 1, 1)
    depthwise = torch.randn(5, 1, 3, 3)
    weights = {"image_encoders.0.model.a": wide, "image_encoders.0.model.b": depthwise}
    torch.save({"model": {**weights, "c": wide}}, tmp_path / "whole.pth")
    zoo.halve(str(tmp_path / "whole.pth"), str(tmp_path / "half.pth"))
    stored = torch.load(tmp_path / "half.pth", weights_only=True)["model"]
    assert [t.dtype for t in stored.values()] == [torch.int8, torch.float16, torch.float16]
    read = read_weights(tmp_path / "half.pth")
    assert list(read) == ["format", "model"]
    found = read["model"]["image_encoders.0.model.a"]
    step = wide.abs().amax(dim=1, keepdim=True) / 127
    assert found.dtype == torch.float32
    assert ((found - wide).abs() <= step / 2 * 1.001).all()


def test_a_shipped_network_is_known_by_its_fingerprint():
    """A literal one: codes that were made once name the network in every later version."""
    cfg = build_cfg(str(CONFIG), ["MODEL.DEVICE", "cpu"])
    fingerprint = model_fingerprint(load_trained_model(cfg))
    assert fingerprint == "f5d5003077f28418cd4e689ad5f3e5da2a955e89c2222f58f19e0bfb66e71149"
    assert zoo.network_name(fingerprint) == "effnetlite0_voc07_64"
    assert zoo.network_name("") == zoo.network_name("ab" * 32) == ""
    assert set(zoo.FINGERPRINTS.values()) == set(zoo.SHIPPED)
