"""The worked examples of CONTRIBUTING.md do what it says."""

import csv

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.utils.events import EventStorage
from PIL import Image

from documents import blocks, commands
from regiondh_d2.data.check import check_dataset
from regiondh_d2.modeling.losses import HASH_LOSS_REGISTRY, build_loss
from regiondh_d2.retrieval import engines

MAX_LINES = 30


@pytest.fixture
def example(load_tool):
    """A function from a heading to its Python blocks and the overrides of its commands."""

    def of(heading):
        found = [block for block in blocks("CONTRIBUTING.md") if block.heading == heading]
        python = [block.text for block in found if block.language == "python"]
        assert python
        assert all(len(text.splitlines()) <= MAX_LINES for text in python)
        overrides = []
        for block in found:
            for words in commands(block.text) if block.language == "bash" else ():
                if words[1] == "tools/train_net.py":
                    overrides += load_tool("train_net").build_parser().parse_args(words[2:]).opts
        return python, overrides

    return of


@pytest.fixture
def registries():
    """Forgets what an example registers with these registries."""
    parts = (BACKBONE_REGISTRY, HASH_LOSS_REGISTRY)
    before = [dict(part._obj_map) for part in parts]
    names = set(DatasetCatalog.list())
    yield
    for part, known in zip(parts, before, strict=True):
        part._obj_map.clear()
        part._obj_map.update(known)
    for name in set(DatasetCatalog.list()) - names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def train_and_encode(cfg, inputs):
    """The losses of a network on some inputs, after a backward pass, and its codes of them."""
    torch.manual_seed(0)
    model = build_model(cfg)
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)
    with torch.no_grad():
        return losses, model.eval()(inputs)


@pytest.mark.usefixtures("registries")
def test_add_a_backbone(example, tiny_cfg, make_inputs):
    (code,), overrides = example("Add a backbone")
    exec(code, {})
    given = dict(zip(overrides[::2], overrides[1::2], strict=True))
    for key in [key for key in given if key.startswith(("MODEL.", "INPUT."))]:
        tiny_cfg.merge_from_list([key, given[key]])
    assert tiny_cfg.MODEL.BACKBONE.NAME in BACKBONE_REGISTRY
    losses, outputs = train_and_encode(tiny_cfg, make_inputs((64, 96), (70, 50)))
    assert all(loss.isfinite() for loss in losses.values())
    assert [output["image_code"].shape for output in outputs] == [(12,), (12,)]


@pytest.mark.usefixtures("registries")
def test_add_a_loss(example, tiny_cfg, make_inputs):
    (code, test), overrides = example("Add a loss")
    exec(code, {})
    names = {}
    exec(test, names)
    tests = [function for name, function in names.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()
    tiny_cfg.merge_from_list(overrides)
    losses, _ = train_and_encode(tiny_cfg, make_inputs((64, 96), (70, 50)))
    assert losses["loss_similarity_image"] > 0
    loss = build_loss(tiny_cfg.MODEL.REGION_DH.OBJECTIVE, bits=4, num_classes=2)
    assert loss(torch.rand(1, 4), torch.ones(1, 2)) == 0


def test_add_an_index_engine(example, monkeypatch):
    monkeypatch.setattr(engines, "ENGINES", dict(engines.ENGINES))
    (code,), _ = example("Add an index engine")
    exec(code, {})
    (name,) = engines.ENGINES.keys() - {"faiss", "numpy", "milvus", "shards"}
    codes = np.random.default_rng(0).integers(0, 256, (50, 3), np.uint8)
    index, other = (engines.create_index(24, engine) for engine in (name, "numpy"))
    for some in (index, other):
        some.add(codes[:30])
        some.add(codes[30:])
        some.remove([3, 40])
    for found, expected in zip(index.search(codes, 7), other.search(codes, 7), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("registries")
def test_add_a_dataset(example, tmp_path):
    (code,), _ = example("Add a dataset")
    classes = {"database": ["lion", "zebra lion", ""], "queries": ["zebra"]}
    for split, labels in classes.items():
        with open(tmp_path / f"{split}.csv", "w", newline="") as table:
            writer = csv.DictWriter(table, ["image", "height", "width", "classes"])
            writer.writeheader()
            for number, names in enumerate(labels):
                name = f"{split}{number}.png"
                Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / name)
                writer.writerow({"image": name, "height": 4, "width": 6, "classes": names})
    exec(code.replace("/data/zoo", str(tmp_path)), {})

    records = DatasetCatalog.get("table_retrieval")
    assert [(r["role"], sorted(r["image_labels"])) for r in records] == [
        *(("database", [0]), ("database", [0, 1]), ("database", [])),
        ("query", [1]),
    ]
    report = check_dataset("table_retrieval", open_images=True)
    assert not report.problems
    assert "4 images" in report.summary()
