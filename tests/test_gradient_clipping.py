"""Clipping of the whole gradient, against the definition; the other kinds are Detectron2's."""

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from regiondh_d2.engine.gradient_clipping import add_gradient_clipping


def one_step(gradients, **clipping):
    """What a step of size 1 subtracts from parameters with these gradients."""
    cfg = get_cfg()
    for key, value in clipping.items():
        cfg.SOLVER.CLIP_GRADIENTS[key] = value
    parameters = [nn.Parameter(torch.zeros(len(g))) for g in gradients]
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=1.0)
    assert add_gradient_clipping(cfg, optimizer) is optimizer
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    optimizer.step()
    return [(-p).tolist() for p in parameters]


GRADIENTS = [[3.0, 0.0], [0.0, 4.0, 12.0]]  # a norm of 13


def test_all_gradients_are_divided_by_one_factor():
    steps = one_step(GRADIENTS, ENABLED=True, CLIP_TYPE="full_model", CLIP_VALUE=1.3)
    assert steps == [pytest.approx([0.3, 0.0]), pytest.approx([0.0, 0.4, 1.2], rel=1e-5)]
    assert one_step(GRADIENTS, ENABLED=True, CLIP_TYPE="full_model", CLIP_VALUE=14.0) == GRADIENTS
    largest = one_step(
        GRADIENTS, ENABLED=True, CLIP_TYPE="full_model", CLIP_VALUE=6.0, NORM_TYPE=float("inf")
    )
    assert largest == [pytest.approx([1.5, 0.0]), pytest.approx([0.0, 2.0, 6.0], rel=1e-5)]


def test_other_kinds_and_none_are_detectron2s():
    each = one_step(GRADIENTS, ENABLED=True, CLIP_TYPE="norm", CLIP_VALUE=1.0)
    norms = [torch.tensor(step).norm().item() for step in each]
    assert norms == pytest.approx([1.0, 1.0], rel=1e-5)
    assert one_step(GRADIENTS, ENABLED=False, CLIP_TYPE="full_model", CLIP_VALUE=1.0) == GRADIENTS
