"""What the objectives for image codes share: float32, and means that may be empty."""

from collections.abc import Callable
from functools import wraps

import torch

__all__ = ["in_float32", "mean"]


def in_float32(loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Hand a loss its tensors in float32, and switch autocast off inside."""

    @wraps(loss)
    def widened(activations: torch.Tensor, *tensors: torch.Tensor, **options) -> torch.Tensor:
        with torch.autocast(activations.device.type, enabled=False):
            return loss(activations.float(), *(x.float() for x in tensors), **options)

    return widened


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean, or 0 with its graph where there is no value."""
    return values.sum() / max(values.numel(), 1)
