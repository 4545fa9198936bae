"""Recall by the size of objects, with a small network on generated scenes."""

import numpy as np
import pytest

from builders import cached_features_opts
from experiments import recall
from regiondh_d2.data import register_scenes
from regiondh_d2.data.catalog import load_dataset
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import load_trained_model
from regiondh_d2.engine.feature_cache import FeatureCache
from regiondh_d2.modeling.cached import CachedNetwork

NAME = "recall_test_regiondh_scenes_database"


@pytest.fixture
def opts(random_network, tmp_path):
    """Overrides of the config, with a folder for cached features."""
    register_scenes(random_network.scenes, "recall_test_")
    return [
        *random_network.opts,
        *cached_features_opts(tmp_path / "cache"),
        *("MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.9"),
        *("INPUT.RANDOM_FLIP", "none"),
    ]


def overlap(one, other):
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return common / (sum(areas) - common)


def test_which_objects_are_found(random_network, opts, monkeypatch):
    """A random network finds hardly any object at 0.5."""
    monkeypatch.setattr(recall, "IOU", 0.3)
    cfg = build_cfg(random_network.config, opts)
    model = load_trained_model(cfg)
    found = list(recall.found_objects(cfg, model, NAME))
    expected = []
    network = CachedNetwork(model).eval()
    loader = FeatureCache(cfg).test_loader(NAME)
    for record, inputs in zip(load_dataset(NAME), loader, strict=True):
        height, width = inputs[0]["proposals"].image_size
        scale = np.array([record["width"] / width, record["height"] / height] * 2)
        proposals = inputs[0]["proposals"].proposal_boxes.tensor.numpy() * scale
        detected = network(inputs)[0]["instances"]
        boxes = detected.pred_boxes.tensor.detach().numpy()
        of_class = detected.pred_classes.numpy()
        for o in record["annotations"]:
            if o["difficult"]:
                continue
            box = o["bbox"]
            same = boxes[of_class == o["category_id"]]
            expected.append(
                (
                    (box[2] - box[0]) * (box[3] - box[1]),
                    any(overlap(box, p) > 0.3 for p in proposals),
                    any(overlap(box, p) > 0.3 for p in same),
                )
            )
    assert [f[1:] for f in found] == [e[1:] for e in expected]
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected])
    assert 0 < sum(e[1] for e in expected) < len(expected)
    assert 0 < sum(e[2] for e in expected) < sum(e[1] for e in expected)


def test_the_table():
    found = [(1023, 1, 0), (1024, 1, 1), (9215, 0, 0), (9216, 1, 1), (1e6, 1, 0)]
    assert recall.recall_table(np.array(found)).splitlines()[2:] == [
        "| small | 1 | 1.000 | 0.000 |",
        "| medium | 2 | 0.500 | 0.500 |",
        "| large | 2 | 1.000 | 0.500 |",
        "| all | 5 | 0.800 | 0.400 |",
    ]
    assert "| small | 0 |  |  |" in recall.recall_table(np.array(found[1:]))


def test_the_command(random_network, opts, capsys):
    options = ["--config-file", random_network.config, "--dataset", NAME]
    assert recall.main([*options, *opts]) == 0
    assert "| all | " in capsys.readouterr().out
    assert recall.main([*options, *opts, "MODEL.REGION_DH.FEATURE_CACHE", ""]) == 1
    assert "FEATURE_CACHE is empty" in capsys.readouterr().err
