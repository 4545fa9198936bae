"""Cached region features: resumed, refused where they don't fit, complete or absent."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage

from builders import registered_scenes, train_on_cached_features
from regiondh_d2.engine import cache_files, cached_regions, feature_cache, training_folder
from regiondh_d2.engine.cached_regions import CachedRegions
from regiondh_d2.engine.feature_cache import FeatureCache
from regiondh_d2.modeling.cached import CachedNetwork
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.locks import FileInUseError

PREFIX = "feature_cache_test_"
NAME = f"{PREFIX}regiondh_scenes_database"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Four registered scenes."""
    with registered_scenes(tmp_path_factory.mktemp("scenes"), PREFIX, database=4):
        yield DatasetCatalog.get(NAME)


@pytest.fixture
def cfg(tiny_cfg, tmp_path, monkeypatch):
    """The small network frozen below its heads; three views a part."""
    monkeypatch.setattr(feature_cache, "PART", 3)
    train_on_cached_features(tiny_cfg, tmp_path / "cache", NAME)
    return tiny_cfg


@pytest.fixture
def model(make_model, cfg):
    return make_model()


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != ".lock")


def arrays_of(cache):
    with np.load(cache.folder / f"{NAME}.npz") as file:
        return {name: file[name] for name in file.files}


def interrupt_after(monkeypatch, views):
    """Stop the computation after that many views; returns the list of views computed."""
    compute, done = feature_cache._tables, []

    def tables(model, inputs):
        if 0 <= views < len(done) + len(inputs):
            raise KeyboardInterrupt
        done.extend(x["file_name"] for x in inputs)
        return compute(model, inputs)

    monkeypatch.setattr(feature_cache, "_tables", tables)
    return done


def test_an_interrupted_computation_goes_on_and_ends_with_the_same_file(
    cfg, model, scenes, tmp_path, monkeypatch
):
    cache = FeatureCache(cfg)
    cache.ensure(model, NAME, mirrored=True)
    undisturbed = arrays_of(cache)
    assert files_in(cache.folder) == [f"{NAME}.npz"]

    cfg.MODEL.REGION_DH.FEATURE_CACHE = str(tmp_path / "again")
    cache = FeatureCache(cfg)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)  # of eight: two parts are complete, the third is not
        with pytest.raises(KeyboardInterrupt):
            cache.ensure(model, NAME, mirrored=True)
    assert len(files_in(cache.folder / f"{NAME}.parts")) == 2
    assert not (cache.folder / f"{NAME}.npz").exists()

    done = interrupt_after(monkeypatch, -1)
    cache.ensure(model, NAME, mirrored=True)
    assert len(done) == 2
    assert files_in(cache.folder) == [f"{NAME}.npz"]
    resumed = arrays_of(cache)
    assert resumed.keys() == undisturbed.keys()
    for name, values in undisturbed.items():
        np.testing.assert_array_equal(resumed[name], values)
    cache.ensure(model, NAME, mirrored=False)
    assert len(done) == 2, "computed what is there already"


def test_two_trainings_do_not_write_at_once(cfg, model, scenes, monkeypatch):
    """The second is refused, or finds what the first has made meanwhile."""
    monkeypatch.setattr(training_folder, "_WAIT", 0.0)
    cache, computed = FeatureCache(cfg), interrupt_after(monkeypatch, -1)
    with (
        cache_files.one_writer(cache.folder),
        pytest.raises(FileInUseError, match="cache: in use by another program"),
    ):
        cache.ensure(model, NAME, mirrored=False)
    assert computed == []
    assert files_in(cache.folder) == []

    real = cache_files.one_writer

    def after_another(folder):
        monkeypatch.setattr(feature_cache, "one_writer", real)
        FeatureCache(cfg).ensure(model, NAME, mirrored=False)
        return real(folder)

    monkeypatch.setattr(feature_cache, "one_writer", after_another)
    cache.ensure(model, NAME, mirrored=False)
    assert len(computed) == 4
    assert files_in(cache.folder) == [f"{NAME}.npz"]


def test_parts_of_other_weights_are_not_used(cfg, make_model, scenes, monkeypatch):
    cache = FeatureCache(cfg)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            cache.ensure(make_model(seed=1), NAME, mirrored=False)
    done = interrupt_after(monkeypatch, -1)
    cache.ensure(make_model(), NAME, mirrored=False)
    assert len(done) == len(scenes)
    assert files_in(cache.folder) == [f"{NAME}.npz"]


def test_views_at_once_are_those_computed_alone(cfg, model, scenes, tmp_path, monkeypatch):
    """In their order, whatever their sizes."""
    sizes, compute = [], feature_cache._tables
    monkeypatch.setattr(feature_cache, "_tables", lambda *a: sizes.append(len(a[1])) or compute(*a))
    monkeypatch.setattr(feature_cache, "PART", 99)
    files = []
    for batch in (8, 2, 1):
        monkeypatch.setattr(feature_cache, "BATCH", batch)
        cfg.MODEL.REGION_DH.FEATURE_CACHE = str(tmp_path / str(batch))
        cache = FeatureCache(cfg)
        cache.ensure(model, NAME, mirrored=True)
        files.append(arrays_of(cache))
    assert max(sizes) > 2
    assert sizes[-2 * len(scenes) :] == [1] * 2 * len(scenes)
    *others, alone = files
    for other in others:
        assert other.keys() == alone.keys()
        for name, values in alone.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(other[name], values, rtol=2e-3, atol=2e-3)
            else:
                np.testing.assert_array_equal(other[name], values)


def test_views_of_other_files_are_copied(cfg, make_model, scenes, tmp_path, monkeypatch):
    """Of another dataset, but of the same image and objects by the same network alone."""
    moved = [{**a, "bbox": [v / 2 for v in a["bbox"]]} for a in scenes[1]["annotations"]]
    records = [scenes[2], {**scenes[1], "annotations": moved}, scenes[0]]
    DatasetCatalog.register("feature_cache_test_mixed", lambda: records)
    try:
        alone = FeatureCache(cfg)
        alone.ensure(make_model(), "feature_cache_test_mixed", mirrored=True)
        cfg.MODEL.REGION_DH.FEATURE_CACHE = str(tmp_path / "shared")
        cache = FeatureCache(cfg)
        cache.ensure(make_model(), NAME, mirrored=False)
        done = interrupt_after(monkeypatch, -1)
        cache.ensure(make_model(), "feature_cache_test_mixed", mirrored=True)
        mirrored = [record["file_name"] for record in records]
        assert sorted(done) == sorted([*mirrored, scenes[1]["file_name"]])
        expected, found = (c.dataset("feature_cache_test_mixed", True) for c in (alone, cache))
        for name, values in expected._tables.items():
            np.testing.assert_array_equal(found._tables[name], values)

        done.clear()
        (cache.folder / "feature_cache_test_mixed.npz").unlink()
        cache.ensure(make_model(seed=1), "feature_cache_test_mixed", mirrored=False)
        assert len(done) == len(records), "copied from another network"
    finally:
        DatasetCatalog.remove("feature_cache_test_mixed")


def test_views_are_the_images_in_order(cfg, model, scenes):
    cache = FeatureCache(cfg)
    cache.ensure(model, NAME, mirrored=True)
    views = cache.dataset(NAME, mirrored=True)
    assert [v["file_name"] for v in views] == [r["file_name"] for r in scenes for _ in range(2)]
    plain = cache.dataset(NAME, mirrored=False)
    for view, mirrored, record in zip(plain, list(views)[1::2], scenes, strict=True):
        assert view["file_name"] == record["file_name"]
        truth = view["instances"]
        assert truth.gt_classes.tolist() == [a["category_id"] for a in record["annotations"]]
        rows = len(view["proposals"]) + len(truth) + 1
        assert view["region_features"].shape == (rows, model.roi_heads.box_head.pooled_dim)
        width = truth.image_size[1]
        boxes, flipped = truth.gt_boxes.tensor, mirrored["instances"].gt_boxes.tensor
        torch.testing.assert_close(flipped[:, [2, 0]], width - boxes[:, [0, 2]])


def test_a_file_of_other_weights_is_refused(cfg, make_model, scenes):
    FeatureCache(cfg).ensure(make_model(), NAME, mirrored=False)
    with pytest.raises(RegionDHError, match=rf"{NAME}\.npz was made by other weights"):
        FeatureCache(cfg).ensure(make_model(seed=1), NAME, mirrored=False)


def test_a_file_of_other_settings_is_refused_and_the_key_named(cfg, model, scenes):
    """Whatever decides about features counts, and no key had to be thought of."""
    cache = FeatureCache(cfg)
    cache.ensure(model, NAME, mirrored=False)
    before = arrays_of(cache)
    for key, value in (
        ("MODEL.TIMM.OUTPUT_STRIDE", 32),
        ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 9),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["other"]),
        ("MODEL.RESNETS.STRIDE_IN_1X1", False),
        ("MODEL.RPN.NMS_THRESH", 0.5),
        ("MODEL.TIMM.SIZE_DIVISIBILITY", 64),
        ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]),
        ("INPUT.MIN_SIZE_TEST", 96),
        ("MODEL.REGION_DH.MAX_PIXELS", 10_000),
        ("INPUT.FORMAT", "BGR" if cfg.INPUT.FORMAT == "RGB" else "RGB"),
    ):
        changed = cfg.clone()
        changed.merge_from_list([key, value])
        line = rf"{NAME}\.npz was made with {re.escape(key)} .+, which is now .+: delete it"
        with pytest.raises(RegionDHError, match=line):
            FeatureCache(changed).ensure(model, NAME, mirrored=False)
    np.testing.assert_equal(arrays_of(cache), before)


def test_methods_on_the_same_features_share_a_file(cfg, model, scenes, monkeypatch):
    FeatureCache(cfg).ensure(model, NAME, mirrored=False)
    done = interrupt_after(monkeypatch, -1)
    for key, value in (
        ("MODEL.REGION_DH.BITS", 64),
        ("MODEL.REGION_DH.FUSION_NORM", "mean"),
        ("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False),
        ("MODEL.ROI_BOX_HEAD.FC_DIM", 64),
        ("SOLVER.BASE_LR", 1.0),
        ("MODEL.WEIGHTS", "moved.pth"),
        ("OUTPUT_DIR", "other"),
        ("TEST.RETRIEVAL.TOPK", 3),
    ):
        cfg.merge_from_list([key, value])
        FeatureCache(cfg).ensure(model, NAME, mirrored=False)
    assert done == []


def test_a_file_of_version_1_is_refused(cfg, model, scenes):
    cache = FeatureCache(cfg)
    cache.ensure(model, NAME, mirrored=False)
    new = ("version", "weights", "settings")
    old = {name: values for name, values in arrays_of(cache).items() if name not in new}
    np.savez(cache.folder / f"{NAME}.npz", **old, network="f" * 64)
    with pytest.raises(RegionDHError, match=r"\.npz was made by an older version, .+ delete it"):
        cache.ensure(model, NAME, mirrored=False)


def test_a_file_that_lacks_a_newer_key_was_made_by_its_default(cfg, model, scenes):
    cache = FeatureCache(cfg)
    cache.ensure(model, NAME, mirrored=False)
    arrays = arrays_of(cache)
    lines = str(arrays["settings"]).splitlines()
    left = [line for line in lines if not line.startswith("MODEL.TIMM.FREEZE_BN ")]
    assert len(left) == len(lines) - 1
    np.savez(cache.folder / f"{NAME}.npz", **{**arrays, "settings": "\n".join(left)})
    cache.ensure(model, NAME, mirrored=False)
    cfg.MODEL.TIMM.FREEZE_BN = False
    with pytest.raises(RegionDHError, match="FREEZE_BN True, which is now False"):
        cache.ensure(model, NAME, mirrored=False)


@pytest.fixture
def own_scenes(tmp_path):
    """Four scenes of this test alone, which it may change."""
    with registered_scenes(tmp_path / "own", "feature_cache_own_", database=4):
        yield "feature_cache_own_regiondh_scenes_database"


@pytest.mark.parametrize("change", ["replaced", "touched", "objects", "fewer"])
def test_only_what_changed_is_computed_again(
    cfg, model, own_scenes, tmp_path, monkeypatch, caplog, change
):
    records = DatasetCatalog.get(own_scenes)
    first, second = (record["file_name"] for record in records[:2])
    cache = FeatureCache(cfg)
    cache.ensure(model, own_scenes, mirrored=True)
    if change == "replaced":
        state = os.stat(first)
        shutil.copyfile(second, first)
        os.utime(first, ns=(state.st_atime_ns, state.st_mtime_ns))  # its size tells
        assert os.path.getsize(first) != state.st_size
    elif change == "touched":
        os.utime(first, ns=(0, 1))
    else:
        objects = [{**a, "category_id": 0, "bbox": [1, 1, 9, 9]} for a in records[0]["annotations"]]
        changed = [{**records[0], "annotations": objects}, *records[1:]]
        given = changed if change == "objects" else records[:3]
        monkeypatch.setattr(DatasetCatalog, "get", lambda name: given)
    done = interrupt_after(monkeypatch, -1)
    cache.ensure(model, own_scenes, mirrored=True)
    assert done == ([] if change == "fewer" else [first, first])  # plain and mirrored
    count = 0 if change == "fewer" else 1
    assert f"({count} of {4 - (change == 'fewer')} changed): it is made again" in caplog.text
    cfg.MODEL.REGION_DH.FEATURE_CACHE = str(tmp_path / "fresh")
    FeatureCache(cfg).ensure(model, own_scenes, mirrored=True)
    found, expected = (
        np.load(folder / f"{own_scenes}.npz") for folder in (cache.folder, tmp_path / "fresh")
    )
    for name in expected.files:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_vertical_flip_is_refused(cfg):
    cfg.INPUT.RANDOM_FLIP = "vertical"
    with pytest.raises(RegionDHError, match="INPUT.RANDOM_FLIP is 'vertical'"):
        FeatureCache(cfg)


@pytest.mark.parametrize("part", ["BACKBONE", "PROPOSAL_GENERATOR", "IMAGE_ENCODERS"])
def test_what_made_the_features_must_be_frozen(cfg, part):
    cfg.MODEL.REGION_DH.LR_FACTORS[part] = 0.1
    with pytest.raises(RegionDHError, match=rf"FEATURE_CACHE .*LR_FACTORS\.{part} to 0\.0"):
        FeatureCache(cfg)


@pytest.mark.parametrize("content", ["", "text", "truncated"])
def test_a_damaged_file_is_named(cfg, model, scenes, content):
    cache = FeatureCache(cfg)
    cache.ensure(model, NAME, mirrored=False)
    path = cache.folder / f"{NAME}.npz"
    path.write_bytes(path.read_bytes()[:-100] if content == "truncated" else content.encode())
    for read in (
        lambda: cache.ensure(model, NAME, mirrored=False),
        lambda: CachedRegions(path, scenes, mirrored=False),
    ):
        with pytest.raises(ValueError, match=rf"{NAME}\.npz is damaged"):
            read()


def test_a_refused_write_names_the_file_and_leaves_nothing(cfg, model, scenes, full_disk):
    """A limit on the size of files stands for a full disk: writing fails half-way."""
    cache = FeatureCache(cfg)
    with full_disk(4096), pytest.raises(OSError, match=rf"{NAME}\.parts/\S+\.npz") as caught:
        cache.ensure(model, NAME, mirrored=False)
    assert caught.value.errno is not None
    assert files_in(cache.folder) == [f"{NAME}.parts"]


@pytest.mark.parametrize("whole", ["none", "region", "row", "feature", "pooled"])
def test_every_parameter_that_trains_on_cached_features_gets_a_gradient(
    cfg, make_model, scenes, whole
):
    """Or training with several processes stops at the second step."""
    model = make_model("MODEL.REGION_DH.WHOLE_IMAGE", whole)
    cache = FeatureCache(cfg)
    cache.ensure(model, NAME, mirrored=False)
    cache.freeze(model)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert not any(p.requires_grad for p in model.roi_heads.box_head.conv_head.parameters())
    with EventStorage():
        sum(CachedNetwork(model)(list(cache.dataset(NAME, mirrored=False))).values()).backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, grad in trained.items() if grad is None] == []
    assert any(n.startswith("roi_heads.box_head.fc") for n in trained)


def test_a_box_head_without_pooled_features_is_refused(cfg, make_model):
    model = make_model("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead")
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    with pytest.raises(ValueError, match="FEATURE_CACHE works with box heads that pool"):
        FeatureCache(cfg).freeze(model)


def first_batch(cfg, model):
    cfg.SOLVER.IMS_PER_BATCH = 2
    return next(iter(FeatureCache(cfg).train_loader(model)))


def test_a_frozen_box_head_runs_once_and_losses_stay(cfg, model, scenes, monkeypatch):
    cfg.MODEL.REGION_DH.LR_FACTORS.BOX_HEAD = 0.0
    FeatureCache(cfg).ensure(model, NAME, mirrored=False)
    monkeypatch.setattr(cached_regions, "ROWS", 7)
    batch = first_batch(cfg, model)
    fc = model.roi_heads.box_head.fc
    losses = []
    for keys in (("region_outputs",), ()):
        inputs = [{k: v for k, v in x.items() if k != "region_outputs" or keys} for x in batch]
        calls = []
        with (
            EventStorage(),
            torch.random.fork_rng(),
            fc.register_forward_hook(lambda *_: calls.append(1)),  # noqa: B023
        ):
            torch.manual_seed(0)
            losses.append(CachedNetwork(model).train()(inputs))
        assert bool(calls) != bool(keys)
    for x in batch:
        wanted = fc(x["region_features"].float())
        torch.testing.assert_close(x["region_outputs"].float(), wanted, atol=1e-3, rtol=1e-3)
    for key, value in losses[1].items():
        torch.testing.assert_close(losses[0][key], value, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("factor", "dropout"), [(1.0, 0.0), (0.0, 0.5)])
def test_a_box_head_that_trains_or_drops_out_runs_in_every_iteration(
    cfg, model, scenes, factor, dropout
):
    cfg.MODEL.REGION_DH.LR_FACTORS.BOX_HEAD = factor
    model.roi_heads.box_head.fc.append(torch.nn.Dropout(dropout))
    FeatureCache(cfg).ensure(model, NAME, mirrored=False)
    assert "region_outputs" not in first_batch(cfg, model)[0]
