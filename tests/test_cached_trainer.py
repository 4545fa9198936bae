"""The trainer of heads on cached features: chosen by the config, and checkpoints of the model."""

import pytest

from regiondh_d2.engine import CachedHeadsTrainer, RegionDHTrainer, trainer_class
from regiondh_d2.modeling.cached import CachedNetwork


@pytest.fixture
def cfg(tiny_cfg):
    """The small network frozen below its heads, with a folder for features."""
    node = tiny_cfg.MODEL.REGION_DH
    node.FEATURE_CACHE = "cache"
    node.LR_FACTORS.BACKBONE = node.LR_FACTORS.PROPOSAL_GENERATOR = 0.0
    return tiny_cfg


def test_the_config_chooses(cfg):
    assert trainer_class(cfg) is CachedHeadsTrainer
    cfg.MODEL.REGION_DH.FEATURE_CACHE = ""
    assert trainer_class(cfg) is RegionDHTrainer


def test_a_trainer_that_reads_no_cache_refuses_one(cfg, make_model):
    with pytest.raises(ValueError, match="FEATURE_CACHE is set, which only CachedHeadsTrainer"):
        RegionDHTrainer.wrap_model(cfg, make_model())


def test_the_model_trains_in_a_network_and_comes_out_of_it(cfg, make_model):
    model = make_model()
    network = CachedHeadsTrainer.wrap_model(cfg, model)
    assert isinstance(network, CachedNetwork)
    assert CachedHeadsTrainer.model_of(network) is model
    assert CachedHeadsTrainer.model_of(model) is model
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert any(p.requires_grad for p in model.roi_heads.parameters())
