"""Gradient clipping as Detectron2 has it, and of the whole gradient at once."""

import itertools

import torch
from detectron2.solver.build import maybe_add_gradient_clipping

__all__ = ["FULL_MODEL", "add_gradient_clipping"]

# A value of SOLVER.CLIP_GRADIENTS.CLIP_TYPE that Detectron2's own function refuses, by the name
# that projects of Detectron2 (Mask2Former and others) have for it.
FULL_MODEL = "full_model"


def add_gradient_clipping(cfg, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Have an optimizer clip gradients before each step as ``SOLVER.CLIP_GRADIENTS`` says.

    ``value`` and ``norm`` are Detectron2's, which clip each parameter by itself: one large loss
    then gives every parameter a step of the largest size in its own direction. ``full_model``
    divides all gradients by one factor, so that the norm of all together is at most
    ``CLIP_VALUE``; their direction stays.

    Args:
        cfg: the config.
        optimizer: changed in place.

    Returns:
        The optimizer.
    """
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if not clipping.ENABLED or clipping.CLIP_TYPE != FULL_MODEL:
        return maybe_add_gradient_clipping(cfg, optimizer)
    kind: type = type(optimizer)

    def step(self, closure=None):
        parameters = itertools.chain(*(group["params"] for group in self.param_groups))
        torch.nn.utils.clip_grad_norm_(parameters, clipping.CLIP_VALUE, clipping.NORM_TYPE)
        return kind.step(self, closure)

    # As Detectron2 does: a subclass, so that hooks and schedulers see the optimizer itself.
    optimizer.__class__ = type(f"{kind.__name__}WithFullModelClipping", (kind,), {"step": step})
    return optimizer
