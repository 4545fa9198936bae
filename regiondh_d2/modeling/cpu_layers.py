"""Layers that PyTorch computes slowly on a CPU, computed another way.

Each stands in for a layer of Detectron2, timm or PyTorch: it has the same parameters under the same
names, and the same results up to rounding. On other devices, in half precision and while a network
is traced it is the layer that it stands for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from timm.layers import Conv2dSame
from timm.layers.norm_act import FrozenBatchNormAct2d
from timm.layers.padding import pad_same
from torch import nn

__all__ = ["depthwise_conv2d", "on_cpu", "roi_align", "use_cpu_layers"]

# The widest kernel for which oneDNN computes the gradient of depthwise weights as depthwise.
ONEDNN_WIDTH = 3


def use_cpu_layers(network: nn.Module) -> None:
    """Give the layers of a network that are slow on a CPU another way to compute, in place.

    Their class becomes a subclass; parameters, buffers and their names stay. A second call changes
    nothing.
    """
    for layer in network.modules():
        if type(layer) in STAND_INS and _is_slow(layer):
            layer.__class__ = STAND_INS[type(layer)]


def _is_slow(layer: nn.Module) -> bool:
    if isinstance(layer, ROIAlign):
        return layer.sampling_ratio > 0  # otherwise their number depends on the region
    return not isinstance(layer, nn.Conv2d) or _is_slow_depthwise(layer)


def on_cpu(x: torch.Tensor) -> bool:
    """Whether a layer that gets ``x`` should compute as here."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.jit.is_tracing()


# --- Pooling of regions ---------------------------------------------------------------------------


class CPUROIAlign(ROIAlign):
    """:class:`detectron2.layers.ROIAlign` by :func:`roi_align`."""

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """As in the base class."""
        if not on_cpu(input):
            return super().forward(input, rois)
        scale, ratio = self.spatial_scale, self.sampling_ratio
        return roi_align(input, rois, self.output_size, scale, ratio, self.aligned)


def roi_align(
    x: torch.Tensor,
    rois: torch.Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """ROIAlign, as a weighted sum of the map's cells.

    A bin's value is the mean of some samples, and each sample an interpolation between four cells,
    with weights that are the same in all channels. torchvision computes the weights anew in every
    channel, and walks over a map whose channels lie apart.

    Args:
        x: maps of B images, (B, C, H, W).
        rois: (R, 5), the image's number and the box, XYXY, in pixels of the image.
        output_size: bins of a region, (rows, columns).
        spatial_scale: size of the map, relative to the image.
        sampling_ratio: samples of a bin in each direction, at least 1.
        aligned: whether the centers of cells lie at halves (ROIAlignV2).

    Returns:
        (R, C, rows, columns), in memory channels last. No gradient flows to ``rois``.
    """
    _, channels, height, width = x.shape
    rows, columns = output_size
    image = rois[:, 0].long()
    left, top, right, bottom = (
        rois[:, 1:].detach().to(x.dtype) * spatial_scale - (0.5 if aligned else 0.0)
    ).unbind(1)
    tall, wide = bottom - top, right - left
    if not aligned:
        tall, wide = tall.clamp(min=1.0), wide.clamp(min=1.0)
    down, down_weights = _cells(top, tall, rows, sampling_ratio, height)
    across, across_weights = _cells(left, wide, columns, sampling_ratio, width)
    down = (down + image[:, None, None] * height) * width
    cells = down[:, :, None, :, None] + across[:, None, :, None, :]
    weights = down_weights[:, :, None, :, None] * across_weights[:, None, :, None, :]
    found = _WeightedSums.apply(
        x.permute(0, 2, 3, 1).reshape(-1, channels),
        cells.flatten(3).flatten(0, 2),
        weights.flatten(3).flatten(0, 2),
    )
    return found.view(len(rois), rows, columns, channels).permute(0, 3, 1, 2)


class _WeightedSums(torch.autograd.Function):
    """Sums of weighted rows: of rows (N, C), which of them (M, K) and by which weights (M, K)."""

    @staticmethod
    def forward(ctx, rows, index, weights):
        ctx.save_for_backward(index, weights)
        ctx.num_rows = len(rows)
        return F.embedding_bag(index, rows, per_sample_weights=weights, mode="sum")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        """Sums again: what a row has given to some sums comes back by the same weights."""
        index, weights = ctx.saved_tensors
        sums = torch.arange(len(index)).repeat_interleave(index.shape[1])
        order = index.flatten().argsort()
        counts = index.flatten().bincount(minlength=ctx.num_rows)
        of_rows = F.embedding_bag(
            sums[order],
            gradient.contiguous(),
            counts.cumsum(dim=0) - counts,
            per_sample_weights=weights.flatten()[order],
            mode="sum",
        )
        return of_rows, None, None


def _cells(
    start: torch.Tensor, extent: torch.Tensor, bins: int, samples: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which cells of an axis the bins of regions read, and by what weights.

    Args:
        start, extent: where the R regions begin and how long they are, in cells, (R,).
        bins, samples: bins of a region, and samples of a bin.
        size: number of cells.

    Returns:
        int64 and float32 (R, bins, 2 * samples).
    """
    number = bins * samples
    steps = (torch.arange(number, device=start.device, dtype=start.dtype) + 0.5) / number
    at = start[:, None] + extent[:, None] * steps
    inside = (at >= -1.0) & (at <= size)  # beyond, a sample is 0, as of a box that isn't finite
    at = torch.where(inside, at, 0.0).clamp(min=0.0, max=size - 1.0)
    first = at.floor()
    second_weight = at - first
    weights = torch.stack([1.0 - second_weight, second_weight], dim=2) * inside[:, :, None]
    cells = torch.stack([first, (first + 1.0).clamp(max=size - 1.0)], dim=2).long()
    shape = (len(start), bins, 2 * samples)
    return cells.view(shape), weights.view(shape) / samples


# --- Depthwise convolutions -----------------------------------------------------------------------


class CPUDepthwiseConv2d(nn.Conv2d):
    """A depthwise :class:`torch.nn.Conv2d` by :func:`depthwise_conv2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the base class."""
        if not on_cpu(x):
            return super().forward(x)
        assert not isinstance(self.padding, str)  # see _is_slow_depthwise
        how = self.stride, self.padding, self.dilation
        return depthwise_conv2d(x, self.weight, self.bias, *how)


class CPUDepthwiseConv2dSame(Conv2dSame):
    """A depthwise :class:`timm.layers.Conv2dSame` by :func:`depthwise_conv2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the base class."""
        if not on_cpu(x):
            return super().forward(x)
        x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return depthwise_conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation)


def _is_slow_depthwise(layer: nn.Conv2d) -> bool:
    """Whether it is a depthwise convolution whose gradient :func:`depthwise_conv2d` speeds up."""
    if (
        not layer.groups == layer.in_channels == layer.out_channels
        or layer.padding_mode != "zeros"
        or isinstance(layer.padding, str)
    ):
        return False
    if layer.dilation == (1, 1):
        return layer.kernel_size[1] > ONEDNN_WIDTH
    fits = all(p % d == 0 for p, d in zip(layer.padding, layer.dilation, strict=True))
    return layer.stride == (1, 1) and fits


def depthwise_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> torch.Tensor:
    """A convolution of each channel by a kernel of its own, with a fast gradient.

    oneDNN has a fast gradient of depthwise convolutions without dilation, and of weights for
    kernels of up to three columns. Others take it five to twenty times as long, so that here they
    are made of such ones.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, h, w).
        bias: (C,).
        stride, padding, dilation: rows and columns, as of :func:`torch.nn.functional.conv2d`. With
            a dilation the stride is 1 and the padding a multiple of it.
    """
    return _DepthwiseConv2d.apply(x, weight, bias, stride, padding, dilation)


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation):
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding, dilation
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.how
        size, is_dilated = x.shape, dilation != (1, 1)
        if is_dilated:  # the cells that meet the same kernel are those of a coarser image
            x, gradient = _coarse_images(x, dilation), _coarse_images(gradient, dilation)
            padding = tuple(p // d for p, d in zip(padding, dilation, strict=True))
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(dim=(0, 2, 3))
        if ctx.needs_input_grad[0]:
            of_x, _ = _gradients(gradient, x, weight, stride, padding, (True, False))
            if is_dilated:
                of_x = _fine_images(of_x, dilation, size)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(gradient, x, weight, stride, padding)
        return of_x, of_weight, of_bias, None, None, None


def _weight_gradient(gradient, x, weight, stride, padding) -> torch.Tensor:
    """The gradient of the weights, a few columns of the kernel after the others."""
    if weight.shape[3] <= ONEDNN_WIDTH:
        return _gradients(gradient, x, weight, stride, padding, (False, True))[1]
    rows, columns = padding
    found = []
    for part in weight.split(ONEDNN_WIDTH, dim=3):
        # The columns of x that these of the kernel meet.
        width = (gradient.shape[3] - 1) * stride[1] + part.shape[3]
        window = F.pad(x, (columns, width - columns - x.shape[3]))
        found.append(_gradients(gradient, window, part, stride, (rows, 0), (False, True))[1])
        columns -= part.shape[3]
    return torch.cat(found, dim=3)


def _gradients(gradient, x, weight, stride, padding, wanted):
    """The gradients of ``x`` and ``weight``, as far as they are wanted, without dilation."""
    one, groups = (1, 1), len(weight)
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, one, False, (0, 0), groups, (*wanted, False)
    )[:2]


def _coarse_images(x: torch.Tensor, step: tuple[int, int]) -> torch.Tensor:
    """Each image as coarser ones, of every ``step``-th row and column.

    Args:
        x: (N, C, H, W). Below and on the right it counts as padded with zeros.
        step: rows s and columns t.

    Returns:
        (s * t * N, C, ceil(H / s), ceil(W / t)), in memory channels last.
    """
    s, t = step
    x = F.pad(x, (0, -x.shape[3] % t, 0, -x.shape[2] % s))
    number, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(number, height // s, s, width // t, t, channels)
    return x.permute(2, 4, 0, 5, 1, 3).flatten(0, 2).contiguous(memory_format=torch.channels_last)


def _fine_images(x: torch.Tensor, step: tuple[int, int], size: torch.Size) -> torch.Tensor:
    """The inverse of :func:`_coarse_images`, for images of the given size (N, C, H, W)."""
    s, t = step
    number, channels, height, width = size
    x = x.permute(0, 2, 3, 1).unflatten(0, (s, t, number))  # (s, t, N, rows, columns, C)
    x = x.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)
    return x.permute(0, 3, 1, 2)[:, :, :height, :width]


# --- Frozen batch norm ----------------------------------------------------------------------------


class CPUFrozenBatchNormAct2d(FrozenBatchNormAct2d):
    """timm's :class:`FrozenBatchNormAct2d` in one pass over its input instead of two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the base class."""
        if not on_cpu(x):
            return super().forward(x)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        x = torch.addcmul(bias[:, None, None], x, scale[:, None, None])
        return self.act(self.drop(x))


STAND_INS = {
    ROIAlign: CPUROIAlign,
    nn.Conv2d: CPUDepthwiseConv2d,
    Conv2dSame: CPUDepthwiseConv2dSame,
    FrozenBatchNormAct2d: CPUFrozenBatchNormAct2d,
}
