from .cached_trainer import CachedHeadsTrainer, trainer_class
from .defaults import build_cfg, setup_cfg
from .searcher import RegionDHSearcher
from .trainer import RegionDHTrainer, build_optimizer

__all__ = [
    "CachedHeadsTrainer",
    "RegionDHSearcher",
    "RegionDHTrainer",
    "build_cfg",
    "build_optimizer",
    "setup_cfg",
    "trainer_class",
]
