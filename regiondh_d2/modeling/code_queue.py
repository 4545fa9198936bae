"""Codes of earlier batches, which the images of a small batch are compared with, too."""

from typing import Any

import torch
from detectron2.utils import comm
from torch import nn

from ..utils.errors import RegionDHError
from .gradients import scale_gradient

__all__ = ["CodeQueue"]


class CodeQueue(nn.Module):
    """The activations and labels of the last images, without their gradient.

    A batch of 8 has 28 pairs of images. With a queue an objective sees the pairs of a batch as
    large as both together, of which only the present images learn. The idea is that of MoCo's queue
    of keys (He, Fan, Wu, Xie and Girshick, "Momentum Contrast for Unsupervised Visual
    Representation Learning"), here without a second, slower network.

    The queue is part of a training, not of a network: it isn't in the model's state dict, and the
    trainer puts :meth:`training_state` into checkpoints. With several processes all of them hold
    the same queue, of the images of all.
    """

    activations: torch.Tensor
    labels: torch.Tensor

    def __init__(self, size: int, bits: int, num_classes: int):
        """
        Args:
            size: how many images it holds; 0 leaves batches as they are.
            bits: K, the width of the activations.
            num_classes: C.

        Raises:
            RegionDHError: the size is below 0.
        """
        super().__init__()
        if size < 0:
            raise RegionDHError(f"MODEL.REGION_DH.CODE_QUEUE: {size} is below 0")
        self.size = size
        self.register_buffer("activations", torch.zeros(0, bits), persistent=False)
        self.register_buffer("labels", torch.zeros(0, num_classes), persistent=False)

    def forward(
        self, activations: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch and the images before it; then the batch joins the queue.

        A mean over pairs of B + Q images gives each image a gradient of 1 / (B + Q). Only B images
        learn from it here, so their gradient is multiplied by (B + Q) / B: a step is then as large
        as it is on average with a batch of B + Q.

        Args:
            activations: (B, K) in (0, 1).
            labels: (B, C) in {0, 1}.

        Returns:
            Activations (B + Q, K) and labels (B + Q, C), the batch first, then the Q images of the
            queue, the oldest first.
        """
        if not self.size:
            return activations, labels
        batch, queued = len(activations), len(self.activations)
        learning = scale_gradient(activations, (batch + queued) / max(batch, 1))
        earlier = self.activations.to(activations.dtype), self.labels.to(labels.dtype)
        self._append(activations.detach(), labels)
        return torch.cat([learning, earlier[0]]), torch.cat([labels, earlier[1]])

    @torch.no_grad()
    def _append(self, activations: torch.Tensor, labels: torch.Tensor) -> None:
        # A new tensor each time: the graph of this iteration still holds the old one.
        device = self.activations.device
        for now, rows in comm.all_gather((activations.cpu(), labels.cpu())):
            self.activations = torch.cat([self.activations, now.float().to(device)])[-self.size :]
            self.labels = torch.cat([self.labels, rows.float().to(device)])[-self.size :]

    def training_state(self) -> dict[str, Any]:
        """The images in the queue, for a checkpoint."""
        return {"activations": self.activations.cpu(), "labels": self.labels.cpu()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take the images of :meth:`training_state`, the last ones if they are too many.

        Raises:
            RegionDHError: they are codes of another length, or labels of other classes.
        """
        for name, here in (("activations", self.activations), ("labels", self.labels)):
            there = state[name]
            if there.shape[1] != here.shape[1]:
                raise RegionDHError(
                    f"the checkpoint's queue of codes has {name} of width {there.shape[1]}, and "
                    f"this network's have {here.shape[1]}: resume with the config of that training"
                )
            setattr(self, name, there[len(there) - min(self.size, len(there)) :].to(here))
