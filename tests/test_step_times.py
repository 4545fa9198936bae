"""Networks that are timed have the weights that they should, and the fastest turn counts."""

import pytest
import torch

from builders import registered_scenes
from regiondh_d2.data.catalog import load_dataset
from regiondh_d2.engine import build_cfg, step_times
from regiondh_d2.utils.errors import RegionDHError


@pytest.fixture
def cfg(random_network):
    return build_cfg(random_network.config, random_network.opts)


def test_images_have_the_size_that_is_asked_for():
    batch = step_times.make_images(torch.Generator().manual_seed(0), 3, 5, (64, 96))
    assert [x["image"].shape for x in batch] == [(3, 64, 96)] * 3
    for x in batch:
        boxes = x["instances"].gt_boxes
        assert bool(boxes.inside_box((64, 96)).all())
        assert bool(boxes.nonempty().all())
        assert int(x["instances"].gt_classes.max()) < 5


def test_images_of_a_dataset_are_its_wide_ones_at_one_size(cfg, random_network):
    with registered_scenes(random_network.scenes, "times_"):
        check_images_of("times_regiondh_scenes_database", cfg)


def check_images_of(name, cfg):
    records = load_dataset(name)
    wide = [record["file_name"] for record in records if record["width"] > record["height"]]
    assert 2 <= len(wide) < len(records)
    batch = step_times._batch(cfg, 2, name)
    assert [x["file_name"] for x in batch] == wide[:2]
    assert {x["image"].shape for x in batch} == {(3, *step_times.FIXED_SIZE)}
    assert all(x["instances"].image_size == step_times.FIXED_SIZE for x in batch)
    with pytest.raises(RegionDHError, match=f"{name} has {len(wide)} wide images, but 99"):
        step_times._batch(cfg, 99, name)


def test_all_three_networks_have_the_trained_weights(cfg, monkeypatch):
    models = {}
    monkeypatch.setattr(
        step_times, "_training", lambda model, batch: models.setdefault(len(models), model) or model
    )
    monkeypatch.setattr(step_times, "_in_turns", lambda runs, repeat: runs)
    found = step_times.compare_fusions(cfg, images=1, repeat=1)
    assert list(found) == ["plain", "sampled", "topk"]
    trained = torch.load(cfg.MODEL.WEIGHTS)["model"]
    assert [found[k].roi_heads.fusion_rois for k in ("sampled", "topk")] == ["sampled", "topk"]
    for model in found.values():
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, trained[name]), name
    assert type(found["plain"]).__name__ == "GeneralizedRCNN"


def test_the_fastest_turn_counts_and_the_first_does_not(monkeypatch):
    now, seconds = 0, {"a": iter([1, 5, 3, 4]), "b": iter([9, 2, 8, 7])}

    def run(name):
        nonlocal now
        now += next(seconds[name])

    monkeypatch.setattr(step_times.time, "process_time", lambda: now)
    runs = {name: lambda name=name: run(name) for name in seconds}
    assert step_times._in_turns(runs, 3) == {"a": 3, "b": 2}
