from .defaults import build_cfg, setup_cfg
from .trainer import RegionDHTrainer, build_optimizer

__all__ = ["RegionDHTrainer", "build_cfg", "build_optimizer", "setup_cfg"]
