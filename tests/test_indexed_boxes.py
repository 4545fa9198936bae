"""Boxes keep their rows through everything that Detectron2 does with boxes."""

import torch
from detectron2.structures import Boxes, Instances

from regiondh_d2.modeling.indexed_boxes import IndexedBoxes, join_regions, number_regions


def boxes_of(*rows):
    """Cached boxes whose left border is their row."""
    corners = torch.tensor([[float(row), 0.0, 99.0, 9.0] for row in rows])
    return IndexedBoxes(corners.reshape(-1, 4), torch.tensor(rows, dtype=torch.int64))


class TestIndexedBoxes:
    def test_rows_stay_with_their_boxes(self):
        boxes = boxes_of(4, 2, 7)
        for found, rows in (
            (boxes[1:], [2, 7]),
            (boxes[torch.tensor([True, False, True])], [4, 7]),
            (boxes[torch.tensor([2, 2])], [7, 7]),
            (boxes[[]], []),
            (boxes[0], [4]),
            (boxes[-1], [7]),
            (boxes.clone(), [4, 2, 7]),
            (boxes.to(torch.device("cpu")), [4, 2, 7]),
        ):
            assert isinstance(found, IndexedBoxes)
            assert found.index.tolist() == rows
            assert found.tensor[:, 0].tolist() == rows

    def test_boxes_that_know_no_row_are_the_whole_image(self):
        joined = IndexedBoxes.cat([boxes_of(3), Boxes(torch.zeros(1, 4)), boxes_of(), boxes_of(5)])
        assert joined.index.tolist() == [3, -1, 5]
        assert joined.tensor.shape == (3, 4)

    def test_instances_carry_them(self):
        one, other = (Instances((9, 9), proposal_boxes=boxes_of(*rows)) for rows in ([1, 2], [8]))
        joined = Instances.cat([one, other])
        assert joined[torch.tensor([2, 0])].proposal_boxes.index.tolist() == [8, 1]


def test_regions_are_numbered_proposals_first():
    proposals = [Instances((9, 9), proposal_boxes=Boxes(torch.rand(n, 4))) for n in (3, 0)]
    targets = [Instances((9, 9), gt_boxes=Boxes(torch.rand(n, 4))) for n in (2, 1)]
    targets[0].gt_classes = torch.tensor([5, 6])
    numbered, objects = number_regions(proposals, targets)
    assert [p.proposal_boxes.index.tolist() for p in numbered] == [[0, 1, 2], []]
    assert [t.gt_boxes.index.tolist() for t in objects] == [[3, 4], [0]]
    assert objects[0].gt_classes is targets[0].gt_classes
    for one, other in zip(proposals + targets, numbered + objects, strict=True):
        (name,) = set(one.get_fields()) - {"gt_classes"}
        assert torch.equal(one.get(name).tensor, other.get(name).tensor)
        assert type(one.get(name)) is Boxes


def test_boxes_with_numbers_keep_them():
    proposals = [Instances((9, 9), proposal_boxes=boxes_of(7, 4))]
    targets = [Instances((9, 9), gt_boxes=boxes_of(8))]
    numbered, objects = number_regions(proposals, targets)
    assert numbered[0].proposal_boxes.index.tolist() == [7, 4]
    assert objects[0].gt_boxes.index.tolist() == [8]


def test_joined_regions_stand_once():
    first = [boxes_of(4, 2, 7), boxes_of(), boxes_of(1), boxes_of()]
    second = [boxes_of(2, 9, 4, -1), boxes_of(3, -1), boxes_of(), boxes_of()]
    boxes, first_rows, second_rows = join_regions(first, second)
    assert [b.index.tolist() for b in boxes] == [[4, 2, 7, 9, -1], [3, -1], [1], []]
    assert first_rows.tolist() == [0, 1, 2, 7]
    assert second_rows.tolist() == [1, 3, 0, 4, 5, 6]
    joined = torch.cat([b.tensor for b in boxes])
    for choice, rows in ((first, first_rows), (second, second_rows)):
        assert torch.equal(joined[rows], torch.cat([b.tensor for b in choice]))
