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

__all__ = ["depthwise_conv2d", "roi_align", "use_cpu_layers"]

# The widest kernel for which oneDNN computes the gradient of depthwise weights as depthwise.
ONEDNN_WIDTH = 3


def use_cpu_layers(network: nn.Module) -> None:
    """Give the layers of a network that are slow on a CPU another way to compute, in place.

    Their class becomes a subclass; parameters, buffers and their names stay. A second call changes
    nothing.
    """
    for layer in network.modules():
        stand_in = STAND_INS.get(type(layer))
        if stand_in is not None and (not isinstance(layer, nn.Conv2d) or _is_wide_depthwise(layer)):
            layer.__class__ = stand_in


def _on_cpu(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.jit.is_tracing()


# --- Pooling of regions ---------------------------------------------------------------------------


class CPUROIAlign(ROIAlign):
    """:class:`detectron2.layers.ROIAlign` by :func:`roi_align`."""

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """As in the base class."""
        if not _on_cpu(input) or self.sampling_ratio <= 0:
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
    least = 0.0 if aligned else 1.0
    y, y_weights = _cells(top, (bottom - top).clamp(min=least), rows, sampling_ratio, height)
    x_, x_weights = _cells(left, (right - left).clamp(min=least), columns, sampling_ratio, width)
    y = (y + image[:, None, None] * height) * width
    cells = y[:, :, None, :, None] + x_[:, None, :, None, :]
    weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
    found = F.embedding_bag(
        cells.flatten(3).flatten(0, 2),
        x.permute(0, 2, 3, 1).reshape(-1, channels),
        per_sample_weights=weights.flatten(3).flatten(0, 2),
        mode="sum",
    )
    return found.view(len(rois), rows, columns, channels).permute(0, 3, 1, 2)


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
    inside = (at >= -1.0) & (at <= size)  # beyond, a sample is 0
    at = at.clamp(min=0.0, max=size - 1.0)
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
        if not _on_cpu(x):
            return super().forward(x)
        return depthwise_conv2d(x, self.weight, self.bias, self.stride, self.padding)


class CPUDepthwiseConv2dSame(Conv2dSame):
    """A depthwise :class:`timm.layers.Conv2dSame` by :func:`depthwise_conv2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the base class."""
        if not _on_cpu(x):
            return super().forward(x)
        x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return depthwise_conv2d(x, self.weight, self.bias, self.stride, (0, 0))


def _is_wide_depthwise(layer: nn.Conv2d) -> bool:
    return (
        layer.groups == layer.in_channels == layer.out_channels
        and layer.kernel_size[1] > ONEDNN_WIDTH
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def depthwise_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> torch.Tensor:
    """A convolution of each channel by a kernel of its own, whose weights get their gradient fast.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, h, w).
        bias: (C,).
        stride, padding: rows and columns, as of :func:`torch.nn.functional.conv2d`.
    """
    found = _DepthwiseConv2d.apply(x, weight, stride, padding)
    return found if bias is None else found + bias[:, None, None]


class _DepthwiseConv2d(torch.autograd.Function):
    """For kernels wider than three columns oneDNN computes the gradient of the weights as if all
    channels of a block of eight met each other. Here it is asked for three columns at a time."""

    @staticmethod
    def forward(ctx, x, weight, stride, padding):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x, _ = _gradients(gradient, x, weight, ctx.stride, ctx.padding, (True, False))
        if ctx.needs_input_grad[1]:
            rows, columns = ctx.padding
            of_weight = []
            for part in weight.split(ONEDNN_WIDTH, dim=3):
                # The columns of x that these of the kernel meet.
                meets = (gradient.shape[3] - 1) * ctx.stride[1] + part.shape[3]
                window = F.pad(x, (columns, meets - columns - x.shape[3]))
                _, found = _gradients(gradient, window, part, ctx.stride, (rows, 0), (False, True))
                of_weight.append(found)
                columns -= part.shape[3]
            of_weight = torch.cat(of_weight, dim=3)
        return of_x, of_weight, None, None


def _gradients(gradient, x, weight, stride, padding, wanted):
    """The gradients of ``x`` and ``weight``, as far as they are wanted."""
    one, groups = (1, 1), len(weight)
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, one, False, (0, 0), groups, (*wanted, False)
    )[:2]


# --- Frozen batch norm ----------------------------------------------------------------------------


class CPUFrozenBatchNormAct2d(FrozenBatchNormAct2d):
    """timm's :class:`FrozenBatchNormAct2d` in one pass over its input instead of two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the base class."""
        if not _on_cpu(x):
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
