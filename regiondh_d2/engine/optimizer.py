"""The optimizer, its learning rates by part of the network, and parts that are frozen."""

import functools
from typing import Self

import torch
from detectron2.solver import get_default_optimizer_params
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..utils.errors import RegionDHError
from .gradient_clipping import add_gradient_clipping

__all__ = ["PARTS", "build_optimizer", "freeze_parts"]

# Parameter-name prefixes of the parts that MODEL.REGION_DH.LR_FACTORS names.
PARTS = {
    "BACKBONE": "backbone.",
    "PROPOSAL_GENERATOR": "proposal_generator.",
    "BOX_HEAD": "roi_heads.box_head.",
    "BOX_PREDICTOR": "roi_heads.box_predictor.",
    "INSTANCE_HASH": "roi_heads.instance_hash.",
    "IMAGE_HASH": "roi_heads.image_hash.",
    "OBJECT_HASH": "roi_heads.object_hash.",
    "IMAGE_ENCODERS": "image_encoders.",
}


def freeze_parts(cfg, model: nn.Module) -> None:
    """Freeze the parts whose ``MODEL.REGION_DH.LR_FACTORS`` is 0, in place and for good.

    No gradient is computed for their parameters, and the running statistics of their norms stay
    as they are, whatever ``train()`` is called afterwards: such a norm stays in evaluation mode.
    Dropout goes on. Names in the state dict don't change, so that checkpoints fit either way.
    """
    frozen = tuple(
        prefix for part, prefix in PARTS.items() if cfg.MODEL.REGION_DH.LR_FACTORS[part] == 0.0
    )
    for name, parameter in model.named_parameters():
        if name.startswith(frozen):
            parameter.requires_grad_(False)
    for name, module in model.named_modules():
        # A part may itself be such a layer: its name lacks the prefix's last dot.
        if f"{name}.".startswith(frozen) and _keeps_statistics(module):
            _keep_evaluating(module)


def _keeps_statistics(module: nn.Module) -> bool:
    """Whether it is a norm with running statistics, or another layer that may update buffers."""
    leaf = next(module.children(), None) is None
    return isinstance(module, _NormBase) or (leaf and next(module.buffers(), None) is not None)


def _keep_evaluating(module: nn.Module) -> None:
    """Have ``train()`` leave a module in evaluation mode from now on.

    Its class becomes a subclass, which copies of the module have, too; a function in the module
    would be the original's in a copy.
    """
    if not isinstance(module, _Evaluating):
        kind: type = type(module)
        module.__class__ = _evaluating(kind)
    module.eval()


class _Evaluating(nn.Module):
    def train(self, mode: bool = True) -> Self:
        return super().train(False)


@functools.cache
def _evaluating(kind: type) -> type:
    return type(f"Frozen{kind.__name__}", (_Evaluating, kind), {"__module__": __name__})


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """SGD as Detectron2 builds it, with ``MODEL.REGION_DH.LR_FACTORS`` on the base learning rate.

    A part whose factor is 0 is frozen, see :func:`freeze_parts`.

    Raises:
        RegionDHError: nothing is left to train.
    """
    freeze_parts(cfg, model)
    factors = {prefix: cfg.MODEL.REGION_DH.LR_FACTORS[part] for part, prefix in PARTS.items()}

    def factor(name: str) -> float:
        part = next((f for prefix, f in factors.items() if name.startswith(prefix)), 1.0)
        # Detectron2's own `bias_lr_factor` would replace the factors of the parts on biases.
        return part * (cfg.SOLVER.BIAS_LR_FACTOR if name.endswith(".bias") else 1.0)

    for name, parameter in model.named_parameters():
        if factor(name) == 0.0:  # also of biases alone
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RegionDHError(
            "nothing is left to train: MODEL.REGION_DH.LR_FACTORS (or MODEL.BACKBONE.FREEZE_AT) "
            "freezes every part; give one a factor above 0"
        )
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
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
    return add_gradient_clipping(cfg, optimizer)
