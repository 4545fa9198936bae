"""Cached vectors of image encoders: those of the encoder, resumed, taken over, refused."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage

from builders import registered_scenes, train_on_cached_features
from regiondh_d2.data import StrictMapper
from regiondh_d2.engine import encoder_cache
from regiondh_d2.engine.encoder_cache import EncoderCache
from regiondh_d2.engine.feature_cache import FeatureCache
from regiondh_d2.modeling.cached import CachedNetwork
from regiondh_d2.modeling.image_encoders import ImageEncoder, ImageEncoders
from regiondh_d2.utils.errors import RegionDHError

PREFIX = "encoder_cache_test_"
NAME = f"{PREFIX}regiondh_scenes_database"
TINY = "test_efficientnet"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Four registered scenes."""
    with registered_scenes(tmp_path_factory.mktemp("scenes"), PREFIX, database=4):
        yield DatasetCatalog.get(NAME)


@pytest.fixture
def cfg(tiny_cfg, tmp_path, monkeypatch):
    """The small network frozen below its heads, with one encoder; three images a part."""
    monkeypatch.setattr(encoder_cache, "PART", 3)
    train_on_cached_features(tiny_cfg, tmp_path / "cache", NAME)
    node = tiny_cfg.MODEL.REGION_DH
    node.IMAGE_ENCODERS, node.IMAGE_ENCODER_SIZES = [TINY], [32]
    return tiny_cfg


def encoders_of(seed=0, sizes=(32,), **options):
    torch.manual_seed(seed)
    return ImageEncoders([ImageEncoder(TINY, size, **options) for size in sizes])


@pytest.fixture
def counted(monkeypatch):
    """The numbers of images that encoders have seen at once."""
    numbers, forward = [], ImageEncoder.forward

    def counting(self, squares):
        if len(numbers) == counting.limit:
            raise KeyboardInterrupt
        numbers.append(len(squares))
        return forward(self, squares)

    counting.limit = -1
    monkeypatch.setattr(ImageEncoder, "forward", counting)
    return numbers, counting


def test_vectors_are_those_of_the_encoders(cfg, scenes):
    node = cfg.MODEL.REGION_DH
    node.IMAGE_ENCODERS, node.IMAGE_ENCODER_SIZES = [TINY, TINY], [32, 40]
    cache, encoders = EncoderCache(cfg), encoders_of(sizes=(32, 40))
    cache.ensure(encoders, NAME, mirrored=True)
    plain, mirrored = cache.read(NAME, mirrored=True)
    (alone,) = cache.read(NAME, mirrored=False)
    np.testing.assert_array_equal(alone, plain)
    mapper = StrictMapper(cfg, is_train=False)
    inputs = [mapper(record) for record in scenes]
    np.testing.assert_allclose(plain, encoders(inputs), rtol=1e-4, atol=1e-4)
    for x in inputs:
        x["squares"] = {size: square.flip(2) for size, square in x["squares"].items()}
    np.testing.assert_allclose(mirrored, encoders(inputs), rtol=1e-4, atol=1e-4)


def test_averages_are_computed_once_for_both_views(cfg, scenes, counted):
    cfg.MODEL.REGION_DH.IMAGE_ENCODER_MIRRORED = True
    cache = EncoderCache(cfg)
    cache.ensure(encoders_of(mirrored=True), NAME, mirrored=True)
    assert sum(counted[0]) == len(scenes)
    plain, mirrored = cache.read(NAME, mirrored=True)
    np.testing.assert_array_equal(plain, mirrored)


def test_an_interrupted_computation_goes_on(cfg, scenes, counted):
    numbers, counting = counted
    counting.limit = 1
    cache, encoders = EncoderCache(cfg), encoders_of()
    with pytest.raises(KeyboardInterrupt):
        cache.ensure(encoders, NAME, mirrored=False)
    counting.limit = -1
    cache.ensure(encoders, NAME, mirrored=False)
    assert numbers == [3, 1]
    cache.ensure(encoders, NAME, mirrored=False)
    assert numbers == [3, 1], "computed what is there already"
    names = {p.name for p in cache.folder.iterdir()} - {".lock"}
    assert names == {f"{NAME}.{TINY}.32.plain.npz"}


def test_vectors_of_other_datasets_are_taken_over(cfg, scenes, counted):
    """Of the same file by the same weights, and nothing else."""
    cache, encoders = EncoderCache(cfg), encoders_of()
    cache.ensure(encoders, NAME, mirrored=False)
    (before,) = cache.read(NAME, mirrored=False)
    queries = f"{PREFIX}regiondh_scenes_queries"
    both = f"{PREFIX}both"
    DatasetCatalog.register(both, lambda: [*DatasetCatalog.get(queries), *scenes[::-1]])
    counted[0].clear()
    cache.ensure(encoders, both, mirrored=False)
    assert sum(counted[0]) == len(DatasetCatalog.get(queries))
    (after,) = cache.read(both, mirrored=False)
    np.testing.assert_array_equal(after[-len(scenes) :], before[::-1])


def test_other_weights_are_refused(cfg, scenes):
    cache = EncoderCache(cfg)
    cache.ensure(encoders_of(), NAME, mirrored=False)
    with pytest.raises(RegionDHError, match=r"\.npz was made by other weights: delete it"):
        cache.ensure(encoders_of(seed=1), NAME, mirrored=False)


def test_a_damaged_file_is_told(cfg, scenes):
    cache = EncoderCache(cfg)
    cache.folder.mkdir(parents=True)
    (cache.folder / f"{NAME}.{TINY}.32.plain.npz").write_bytes(b"no")
    with pytest.raises(RegionDHError, match="is damaged, or no feature cache"):
        cache.read(NAME, mirrored=False)


def test_heads_train_on_cached_vectors_as_on_images(cfg, make_model, scenes):
    """Losses and codes of the cached network are those of the network on images."""
    model = make_model()
    cache = FeatureCache(cfg)
    cache.ensure(model, NAME, mirrored=False)
    dataset = cache.dataset(NAME, mirrored=False)
    mapper = StrictMapper(cfg, is_train=False)
    network = CachedNetwork(model).eval()
    for i, record in enumerate(scenes):
        with torch.no_grad():
            (one,) = network([dataset[i]])
            (other,) = model([mapper(record)])
        torch.testing.assert_close(
            one["image_activation"], other["image_activation"], rtol=2e-3, atol=2e-3
        )
    network.train()
    with EventStorage():
        losses = network([dataset[i] for i in range(len(scenes))])
    sum(losses.values()).backward()
    assert model.roi_heads.image_hash.latent.linear.weight.grad.abs().sum() > 0
