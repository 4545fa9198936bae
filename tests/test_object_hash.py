"""The latent layer for objects: its losses against loops, its rows, and what it leaves alone."""

import itertools
import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from regiondh_d2.modeling import object_hash
from regiondh_d2.modeling.object_hash import (
    ObjectHashHead,
    class_similarity_loss,
    sample_by_class,
)
from regiondh_d2.utils.errors import RegionDHError

BACKGROUND = 3


def test_the_similarity_of_classes_by_a_loop():
    torch.manual_seed(0)
    activations, classes = torch.rand(7, 5), torch.tensor([0, 3, 1, 0, 3, 2, 1])
    squares = []
    for i, j in itertools.permutations(range(7), 2):
        if classes[i] == classes[j] == BACKGROUND:
            continue
        product = sum((2 * a - 1) * (2 * b - 1) for a, b in zip(*activations[[i, j]], strict=True))
        squares.append((product / 5 - float(classes[i] == classes[j])) ** 2)
    expected = sum(squares) / len(squares)
    assert len(squares) == 7 * 6 - 2
    torch.testing.assert_close(class_similarity_loss(activations, classes, BACKGROUND), expected)


@pytest.mark.parametrize("classes", [[], [1], [3, 3]])
def test_no_pair_costs_nothing(classes):
    activations = torch.rand(len(classes), 5, requires_grad=True)
    loss = class_similarity_loss(activations, torch.tensor(classes, dtype=torch.int64), BACKGROUND)
    assert loss == 0
    loss.backward()


def test_rare_classes_have_a_larger_share():
    """400 rows of class 0 and 100 of class 1: their shares of single draws are 2/3 and 1/3."""
    torch.manual_seed(0)
    classes = torch.tensor([0] * 400 + [1] * 100)
    drawn = torch.cat([classes[sample_by_class(classes, 1)] for _ in range(2000)])
    share = drawn.float().mean().item()
    assert abs(share - 1 / 3) < 4 * math.sqrt(2 / 9 / 2000)
    rows = sample_by_class(classes, 300)
    assert len(rows) == len(rows.unique()) == 300
    assert sample_by_class(classes, 500).tolist() == list(range(500))


@pytest.fixture
def head():
    torch.manual_seed(0)
    return ObjectHashHead(6, 4, BACKGROUND, init_std=0.5)


def test_losses_by_hand(head):
    features, classes = 3 * torch.rand(9, 6) - 1, torch.arange(9) % 4
    losses = head.losses(features, classes)
    mean, var = features.mean(0), features.var(0, unbiased=False)
    x = (features - mean) / (var + head.norm.eps).sqrt()
    a = torch.sigmoid(x @ head.latent.linear.weight.t() + head.latent.linear.bias)
    scores = a @ head.classifier.weight.t() + head.classifier.bias
    entropy = -scores.log_softmax(1)[torch.arange(9), classes].mean()
    torch.testing.assert_close(losses["loss_cls_object"], entropy)
    similarity = class_similarity_loss(a, classes, BACKGROUND)
    torch.testing.assert_close(losses["loss_similarity_object"], similarity)
    assert head.eval()(features).shape == (9, 4)


def test_at_most_so_many_rows(head, monkeypatch):
    monkeypatch.setattr(object_hash, "ROWS", 5)
    counts = []
    head.latent.register_forward_hook(lambda *args: counts.append(len(args[1][0])))
    head.losses(torch.rand(9, 6), torch.arange(9) % 4)
    assert counts == [5]


@pytest.mark.parametrize("count", [0, 1])
def test_few_rows_give_finite_losses_and_gradients(head, count):
    features = torch.rand(count, 6, requires_grad=True)
    losses = head.losses(features, torch.zeros(count, dtype=torch.int64))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert features.grad is None


@pytest.fixture
def make_heads(tiny_cfg):
    """A function from overrides KEY, VALUE of MODEL.REGION_DH to ROI heads in training."""

    def make(*opts):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(
            [f"MODEL.REGION_DH.{o}" if i % 2 == 0 else o for i, o in enumerate(opts)]
        )
        torch.manual_seed(0)
        return build_roi_heads(cfg, {"stage4": ShapeSpec(channels=8, stride=16)})

    return make


def boxes(count):
    corner = 60 * torch.rand(count, 2)
    return Boxes(torch.cat([corner, corner + 8 + 24 * torch.rand(count, 2)], 1))


@pytest.fixture
def inputs():
    """Feature maps, proposals and targets of two images."""
    torch.manual_seed(1)
    size = (96, 128)
    proposals = [Instances(size, proposal_boxes=boxes(n)) for n in (20, 5)]
    for p in proposals:
        p.objectness_logits = torch.linspace(3, -3, len(p))
    targets = [Instances(size, gt_boxes=boxes(n), gt_classes=torch.arange(n)) for n in (3, 1)]
    return {"stage4": torch.randn(2, 8, 6, 8)}, proposals, targets


def train(heads, features, proposals, targets):
    torch.manual_seed(0)
    with EventStorage():
        return heads(None, features, proposals, targets)[1]


def test_other_losses_and_gradients_are_as_without_it(make_heads, inputs):
    plain, heads = make_heads(), make_heads("OBJECT_CODE", True)
    assert not any("object_hash" in name for name in plain.state_dict())
    expected, losses = train(plain, *inputs), train(heads, *inputs)
    new = losses.keys() - expected.keys()
    assert new == {"loss_similarity_object", "loss_cls_object"}
    for name, value in expected.items():
        assert losses[name] == value, name
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in heads.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert torch.equal(gradients.pop(name), parameter.grad), name
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
    assert len(gradients) == 4


FROZEN = [
    f"LR_FACTORS.{part}"
    for part in ("BACKBONE", "PROPOSAL_GENERATOR", "BOX_HEAD", "BOX_PREDICTOR")
    + ("INSTANCE_HASH", "IMAGE_HASH")
]


def test_alone_it_has_the_same_losses_and_the_others_are_0(make_heads, inputs):
    opts = [value for key in FROZEN for value in (key, 0.0)]
    alone, beside = make_heads("OBJECT_CODE", True, *opts), make_heads("OBJECT_CODE", True)
    losses, expected = train(alone, *inputs), train(beside, *inputs)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value == (expected[name] if name.endswith("_object") else 0), name


@torch.no_grad()
def test_detections_and_boxes_have_its_codes(make_heads, inputs):
    features, proposals, targets = inputs
    heads = make_heads("OBJECT_CODE", True).eval()
    # Boxes that aren't moved, so that each detection shows which proposal is behind it.
    heads.box_predictor.bbox_pred.weight.zero_()
    torch.nn.init.normal_(heads.box_predictor.cls_score.weight)
    instances, codes = heads.forward_hash(features, proposals)
    assert len(instances[0]) > 3
    given = [Instances(i.image_size, pred_boxes=i.pred_boxes) for i in instances]
    given = heads.forward_with_given_boxes(features, given)
    for found, boxed, region in zip(instances, given, proposals, strict=True):
        x = heads.box_head(
            heads.box_pooler(
                [features["stage4"]],
                [
                    region.proposal_boxes if r is region else Boxes(torch.zeros(0, 4))
                    for r in proposals
                ],
            )
        )
        activations = heads.object_hash(x)[found.pred_regions]
        sure = (activations - 0.5).abs() > 1e-4
        assert torch.equal(found.pred_codes[sure], activations[sure] >= 0.5)
        assert torch.equal(boxed.pred_codes[sure], activations[sure] >= 0.5)
    plain = make_heads().eval()
    plain.load_state_dict(heads.state_dict(), strict=False)
    others, same = plain.forward_hash(features, proposals)
    torch.testing.assert_close(codes.activations, same.activations)
    assert not torch.equal(instances[0].pred_codes, others[0].pred_codes)


def test_iah_codes_objects_by_class(tiny_cfg):
    cfg = tiny_cfg.clone()
    cfg.MODEL.REGION_DH.OBJECT_CODE = True
    cfg.MODEL.ROI_HEADS.NAME = "IAHROIHeads"
    with pytest.raises(RegionDHError, match="^MODEL.REGION_DH.OBJECT_CODE: IAHROIHeads code "):
        build_roi_heads(cfg, {"stage4": ShapeSpec(channels=8, stride=16)})
