"""Boxes that know which region of their image they are, whatever is sampled and joined."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances

__all__ = ["IndexedBoxes", "find_new", "number_regions", "rows_of"]


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


def find_new(
    boxes: list[IndexedBoxes], known: list[IndexedBoxes]
) -> tuple[list[IndexedBoxes], torch.Tensor]:
    """Which boxes are regions that others don't show already.

    Args:
        boxes, known: of each of B images; no region stands twice among those known of an image.

    Returns:
        ``(new, rows)``: of each image the boxes whose region is not known; and int64 (R,), where in
        ``[*known, *new]``, read as one list, the region of each of the R boxes is.
    """
    new, rows = [], []
    first_known, first_new = 0, sum(map(len, known))
    for wanted, have in zip(boxes, known, strict=True):
        same = wanted.index[:, None] == have.index
        is_new = ~same.any(dim=1)
        # At most one is the same, so that the sum is its position.
        position = (same * torch.arange(len(have), device=same.device)).sum(dim=1) + first_known
        rows.append(torch.where(is_new, is_new.cumsum(dim=0) - 1 + first_new, position))
        new.append(wanted[is_new])
        first_known, first_new = first_known + len(have), first_new + len(new[-1])
    return new, torch.cat(rows)
