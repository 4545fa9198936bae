"""Boxes that know which region of their image they are, whatever is sampled and joined."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances

__all__ = ["IndexedBoxes", "join_regions", "number_regions", "rows_of"]


class IndexedBoxes(Boxes):
    """Boxes that know their rows in the list of their image's regions.

    That list is the image's proposals, its ground-truth boxes and, last, the whole image.

    Attributes:
        index: int64 (R,). -1 is the whole image.
    """

    def __init__(self, tensor: torch.Tensor, index: torch.Tensor):
        super().__init__(tensor)
        self.index = index

    def clone(self) -> IndexedBoxes:
        return IndexedBoxes(self.tensor.clone(), self.index.clone())

    def to(self, device: torch.device) -> IndexedBoxes:
        return IndexedBoxes(self.tensor.to(device), self.index.to(device))

    def __getitem__(self, item) -> IndexedBoxes:
        if isinstance(item, int):
            item = [item]
        return IndexedBoxes(self.tensor[item], self.index[item])

    @classmethod
    def cat(cls, boxes_list: Sequence[Boxes]) -> IndexedBoxes:
        rows = torch.cat([rows_of(boxes) for boxes in boxes_list])
        return cls(torch.cat([boxes.tensor for boxes in boxes_list]), rows)


def rows_of(boxes: Boxes) -> torch.Tensor:
    """The rows of boxes, int64 (R,); boxes that know none are the whole image, -1."""
    if isinstance(boxes, IndexedBoxes):
        return boxes.index
    return torch.full((len(boxes),), -1, device=boxes.device)


def number_regions(
    proposals: list[Instances], targets: list[Instances]
) -> tuple[list[Instances], list[Instances]]:
    """The same instances, whose boxes are :class:`IndexedBoxes`.

    Args:
        proposals, targets: of each image, with ``proposal_boxes`` and with ``gt_boxes``. Boxes that
            know their rows already keep them.
    """
    numbered = [
        (_indexed(p, "proposal_boxes", 0), _indexed(t, "gt_boxes", len(p)))
        for p, t in zip(proposals, targets, strict=True)
    ]
    return [p for p, _ in numbered], [t for _, t in numbered]


def _indexed(instances: Instances, name: str, first: int) -> Instances:
    boxes = instances.get(name)
    if isinstance(boxes, IndexedBoxes):
        return instances
    index = torch.arange(first, first + len(boxes), device=boxes.device)
    fields = {**instances.get_fields(), name: IndexedBoxes(boxes.tensor, index)}
    return Instances(instances.image_size, **fields)


def join_regions(
    first: list[IndexedBoxes], second: list[IndexedBoxes]
) -> tuple[list[IndexedBoxes], torch.Tensor, torch.Tensor]:
    """Two choices among the regions of each image as one, without a region twice.

    Args:
        first, second: of each of B images; neither has a region twice.

    Returns:
        ``(boxes, first_rows, second_rows)``: of each image the regions of either choice; and,
        int64, where in all of them, one image after the other, those of each choice are.
    """
    boxes, first_rows, second_rows = [], [], []
    begin = 0
    for one, other in zip(first, second, strict=True):
        rows = torch.arange(len(one), device=one.device)
        same = other.index[:, None] == one.index
        is_new = ~same.any(dim=1)
        # At most one is the same, so that the sum is its row.
        other_rows = torch.where(
            is_new, is_new.cumsum(dim=0) - 1 + len(one), (same * rows).sum(dim=1)
        )
        first_rows.append(begin + rows)
        second_rows.append(begin + other_rows)
        boxes.append(IndexedBoxes.cat([one, other[is_new]]))
        begin += len(boxes[-1])
    return boxes, torch.cat(first_rows), torch.cat(second_rows)
