"""A tensor whose gradient is another than its own: for branches that share a network unequally."""

import torch

__all__ = ["scale_gradient"]


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * ctx.scale, None


def scale_gradient(x: torch.Tensor, scale: float) -> torch.Tensor:
    """``x``, whose gradient is multiplied by ``scale`` on its way back.

    Args:
        x: float tensor of any shape.
        scale: 1 changes nothing; 0 gives zeros, so that ``x`` still has a gradient.

    Returns:
        A tensor equal to ``x``.
    """
    if scale == 1.0:
        return x
    scaled: torch.Tensor = _Scaled.apply(x, scale)
    return scaled
