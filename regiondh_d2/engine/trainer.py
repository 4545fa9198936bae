"""The trainer: Detectron2's, with our checkpointer, learning-rate factors and evaluators."""

import torch
from detectron2.engine import DefaultTrainer
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from ..checkpoint import RegionDHCheckpointer

__all__ = ["RegionDHTrainer", "build_optimizer"]

# Parameter-name prefixes of the parts that MODEL.REGION_DH.LR_FACTORS names.
PARTS = {
    "BACKBONE": "backbone.",
    "PROPOSAL_GENERATOR": "proposal_generator.",
    "BOX_HEAD": "roi_heads.box_head.",
    "BOX_PREDICTOR": "roi_heads.box_predictor.",
    "INSTANCE_HASH": "roi_heads.instance_hash.",
    "IMAGE_HASH": "roi_heads.image_hash.",
}


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as Detectron2 builds it, with ``MODEL.REGION_DH.LR_FACTORS`` on the base learning rate.

    Parameters of a part whose factor is 0 are frozen (``requires_grad`` False), so that no gradient
    is computed for them.
    """
    factors = {prefix: cfg.MODEL.REGION_DH.LR_FACTORS[part] for part, prefix in PARTS.items()}

    def factor(name: str) -> float:
        return next((f for prefix, f in factors.items() if name.startswith(prefix)), 1.0)

    for name, parameter in model.named_parameters():
        if factor(name) == 0.0:
            parameter.requires_grad_(False)
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=factor,
    )
    optimizer = torch.optim.SGD(
        params,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


class RegionDHTrainer(DefaultTrainer):
    """:class:`DefaultTrainer` for Region-DH."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.checkpointer = RegionDHCheckpointer(
            self.checkpointer.model, cfg.OUTPUT_DIR, **self.checkpointer.checkpointables
        )

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)
