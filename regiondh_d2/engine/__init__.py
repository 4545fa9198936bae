from .defaults import build_cfg, setup_cfg
from .searcher import RegionDHSearcher
from .trainer import RegionDHTrainer, build_optimizer

__all__ = ["RegionDHSearcher", "RegionDHTrainer", "build_cfg", "build_optimizer", "setup_cfg"]
