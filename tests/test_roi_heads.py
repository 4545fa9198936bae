"""ROI heads on synthetic features: losses, fusion, codes of regions and images."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from regiondh_d2.modeling.cpu_layers import use_cpu_layers
from regiondh_d2.modeling.hashing import (
    FUSION_NORMS,
    ImageCodes,
    binarize,
    bit_balance_loss,
    cross_proposal_fusion,
    forcing_binary_loss,
    label_similarity_loss,
    multi_label_logistic_loss,
)
from regiondh_d2.modeling.losses import build_loss
from regiondh_d2.modeling.roi_heads import multi_hot_labels

SIZE = (96, 128)
LOSSES = {
    "loss_cls",
    "loss_box_reg",
    "loss_cls_image",
    "loss_similarity_image",
    "loss_hash_instance_binary",
    "loss_hash_instance_balance",
    "loss_hash_image_binary",
    "loss_hash_image_balance",
}


def random_boxes(num, seed=0):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(num, 2, generator=g) * 60
    return Boxes(torch.cat([corner, corner + 8 + 24 * torch.rand(num, 2, generator=g)], 1))


def make_proposals(*counts):
    proposals = []
    for seed, count in enumerate(counts):
        p = Instances(SIZE, proposal_boxes=random_boxes(count, seed))
        p.objectness_logits = torch.linspace(3, -3, count)
        proposals.append(p)
    return proposals


def make_targets(*counts, num_classes=3):
    targets = []
    for seed, count in enumerate(counts):
        t = Instances(SIZE, gt_boxes=random_boxes(count, seed))
        t.gt_classes = torch.arange(count) % num_classes
        targets.append(t)
    return targets


def make_features(num_images, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"stage4": torch.randn(num_images, 8, 6, 8, generator=g)}


@pytest.fixture
def make_heads(tiny_cfg):
    """A function that builds the heads with overrides KEY, VALUE of MODEL.REGION_DH."""

    def make(*opts, training=False):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(
            [f"MODEL.REGION_DH.{o}" if i % 2 == 0 else o for i, o in enumerate(opts)]
        )
        torch.manual_seed(0)
        heads = build_roi_heads(cfg, {"stage4": ShapeSpec(channels=8, stride=16)}).train(training)
        # The initial scores are all but equal, and so would be what a wrong fusion gives.
        torch.nn.init.normal_(heads.box_predictor.cls_score.weight, std=1.0)
        torch.nn.init.normal_(heads.image_hash.classifier.weight, std=1.0)
        return heads

    return make


def train(heads, features, proposals, targets, seed=0):
    torch.manual_seed(seed)
    with EventStorage():
        return heads(None, features, proposals, targets)


def by_hand(heads, features, boxes, image):
    """Features, activations and scores of the boxes of one image, from the modules alone."""
    pooled = heads.box_pooler([features["stage4"][image : image + 1]], [Boxes(boxes)])
    x = heads.box_head(pooled)
    a = torch.sigmoid(x @ heads.instance_hash.linear.weight.t() + heads.instance_hash.linear.bias)
    classifier = heads.box_predictor.cls_score
    read = a if heads.box_predictor.classifier_input == "h1" else x
    return x, a, read @ classifier.weight.t() + classifier.bias


def count_rows(heads):
    """A list that gets the number of regions each time the box head reads some."""
    rows = []
    heads.box_head.fc.register_forward_hook(lambda module, inputs, _: rows.append(len(inputs[0])))
    return rows


def image_code_by_hand(heads, fused):
    h2, classifier = heads.image_hash.latent.linear, heads.image_hash.classifier
    a = torch.sigmoid(fused @ h2.weight.t() + h2.bias)
    return a, a @ classifier.weight.t() + classifier.bias


# --- Inference -----------------------------------------------------------------------------------


@pytest.mark.parametrize("classifier_input", ["h1", "box_features"])
@pytest.mark.parametrize("norm", FUSION_NORMS)
@torch.no_grad()
def test_image_codes_are_the_hashed_fusion_of_the_best_proposals(
    make_heads, norm, classifier_input
):
    heads = make_heads("FUSION_NORM", norm, "CLASSIFIER_INPUT", classifier_input)
    features, proposals = make_features(2), make_proposals(20, 5)
    _, codes = heads.forward_hash(features, proposals)
    for i, p in enumerate(proposals):
        _, a, scores = by_hand(heads, features, p.proposal_boxes.tensor[:8], i)
        fused = cross_proposal_fusion(scores.softmax(1)[:, :3], a, norm)
        activations, image_scores = image_code_by_hand(heads, fused)
        torch.testing.assert_close(codes.activations[i], activations, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(codes.scores[i], image_scores, rtol=1e-4, atol=1e-4)
    assert (codes.activations[0] - codes.activations[1]).abs().max() > 0.005


@pytest.mark.parametrize("norm", ["mean", "class_mean"])
@pytest.mark.parametrize("whole", ["none", "row"])
@torch.no_grad()
def test_features_can_be_fused_instead_of_codes(make_heads, norm, whole):
    heads = make_heads("FUSION_INPUT", "box_features", "FUSION_NORM", norm, "WHOLE_IMAGE", whole)
    features, proposals = make_features(1), make_proposals(20)
    boxes = proposals[0].proposal_boxes.tensor[:8]
    _, codes = heads.forward_hash(features, proposals)
    x, _, scores = by_hand(heads, features, boxes, 0)
    fused = cross_proposal_fusion(scores.softmax(1)[:, :3], x, norm)
    if whole == "row":
        whole_box = torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]])
        fused = torch.cat([fused, by_hand(heads, features, whole_box, 0)[1][0]])
    activations, _ = image_code_by_hand(heads, fused)
    torch.testing.assert_close(codes.activations[0], activations, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_fusion_is_scaled_and_the_whole_image_is_not(make_heads):
    heads = make_heads("WHOLE_IMAGE", "row", "FUSION_SCALE", 0.25)
    features, proposals = make_features(1), make_proposals(20)
    whole_box = torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]])
    boxes = torch.cat([proposals[0].proposal_boxes.tensor[:8], whole_box])
    _, a, scores = by_hand(heads, features, boxes, 0)
    fused = 0.25 * cross_proposal_fusion(scores.softmax(1)[:-1, :3], a[:-1])
    activations, _ = image_code_by_hand(heads, torch.cat([fused, a[-1]]))
    _, codes = heads.forward_hash(features, proposals)
    torch.testing.assert_close(codes.activations[0], activations, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", ["none", "region", "row", "feature", "pooled"])
@pytest.mark.parametrize("num", [0, 5, 20])
@torch.no_grad()
def test_whole_image_options(make_heads, whole, num):
    heads = make_heads("WHOLE_IMAGE", whole)
    features, proposals = make_features(1), make_proposals(num)
    whole_box = torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]])
    boxes = torch.cat([proposals[0].proposal_boxes.tensor[:8], whole_box])
    x, a, scores = by_hand(heads, features, boxes, 0)
    p = scores.softmax(1)[:, :3]
    if whole == "region":
        fused = cross_proposal_fusion(p, a)
    else:
        maps = [features[name] for name in heads.box_in_features]
        pooled = heads.box_head.pool(heads.box_pooler(maps, [Boxes(boxes)]))
        extra = {"none": [], "row": [a[-1]], "feature": [x[-1]], "pooled": [pooled[-1]]}[whole]
        fused = torch.cat([cross_proposal_fusion(p[:-1], a[:-1]), *extra])
    expected = image_code_by_hand(heads, fused)[0]
    instances, codes = heads.forward_hash(features, proposals)
    torch.testing.assert_close(codes.activations[0], expected, rtol=1e-4, atol=1e-5)
    # The whole image is for the fusion alone and never a detection of its own.
    plain = make_heads()
    plain.load_state_dict(
        {k: v for k, v in heads.state_dict().items() if "image_hash" not in k}, strict=False
    )
    assert torch.equal(
        instances[0].pred_boxes.tensor,
        plain.forward_hash(features, proposals)[0][0].pred_boxes.tensor,
    )


@torch.no_grad()
def test_the_background_column_is_the_last_and_is_dropped(make_heads):
    """All regions are background: the image must look almost empty."""
    heads = make_heads("LATENT_INIT_STD", 0.1)
    heads.box_predictor.cls_score.weight.zero_()
    heads.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 30.0]))
    features, proposals = make_features(1), make_proposals(8)
    _, background = heads.forward_hash(features, proposals)
    _, empty = heads.forward_hash(features, make_proposals(0))
    torch.testing.assert_close(background.activations, empty.activations, rtol=1e-5, atol=1e-6)
    # And the first column is a class like the others.
    heads.box_predictor.cls_score.bias.copy_(torch.tensor([30.0, 0.0, 0.0, 0.0]))
    _, first = heads.forward_hash(features, proposals)
    assert (first.activations - empty.activations).abs().max() > 0.01
    a = by_hand(heads, features, proposals[0].proposal_boxes.tensor, 0)[1]
    fused = torch.cat([a.sum(0), torch.zeros(24)])
    torch.testing.assert_close(
        first.activations[0], image_code_by_hand(heads, fused)[0], rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_pred_codes_are_those_of_the_proposal_behind_the_detection(make_heads):
    heads = make_heads()
    # Boxes that aren't moved, so that each detection shows which proposal is behind it.
    heads.box_predictor.bbox_pred.weight.zero_()
    features, proposals = make_features(2), make_proposals(20, 7)
    instances, _ = heads.forward_hash(features, proposals)
    for i, (found, p) in enumerate(zip(instances, proposals, strict=True)):
        assert len(found) > 3
        assert found.pred_codes.dtype == torch.bool
        assert found.pred_codes.shape == (len(found), 12)
        boxes = p.proposal_boxes.tensor
        distance = (found.pred_boxes.tensor[:, None] - boxes[None]).abs().amax(2)
        assert distance.amin(1).max() < 1e-3
        assert torch.equal(found.pred_regions, distance.argmin(1))
        _, a, scores = by_hand(heads, features, boxes[distance.argmin(1)], i)
        sure = (a - 0.5).abs() > 1e-4
        assert torch.equal(found.pred_codes[sure], binarize(a)[sure])
        picked = scores.softmax(1)[torch.arange(len(found)), found.pred_classes]
        torch.testing.assert_close(found.scores, picked, rtol=1e-4, atol=1e-5)
    assert len({tuple(c) for c in instances[0].pred_codes.tolist()}) > 1


@torch.no_grad()
def test_a_proposal_that_is_not_finite_does_not_shift_the_codes(make_heads):
    heads = make_heads()
    features, proposals = make_features(2), make_proposals(20, 7)
    without = [p[torch.arange(len(p)) != bad] for p, bad in zip(proposals, (4, 0), strict=True)]
    expected, _ = heads.forward_hash(features, without)

    def overflow(module, inputs, deltas):
        deltas[[4, 20]] = torch.inf  # the first image has 20 rows

    heads.box_predictor.bbox_pred.register_forward_hook(overflow)
    instances, _ = heads.forward_hash(features, proposals)
    for found, other in zip(instances, expected, strict=True):
        assert len(found) > 3
        torch.testing.assert_close(found.pred_boxes.tensor, other.pred_boxes.tensor)
        assert torch.equal(found.pred_codes, other.pred_codes)


@torch.no_grad()
def test_boxes_are_moved_by_the_deltas_of_their_own_proposal(make_heads):
    heads = make_heads("WHOLE_IMAGE", "region")
    torch.nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.5)
    features, proposals = make_features(2), make_proposals(9, 4)
    instances, _ = heads.forward_hash(features, proposals)
    for i, (found, p) in enumerate(zip(instances, proposals, strict=True)):
        x = by_hand(heads, features, p.proposal_boxes.tensor, i)[0]
        deltas = heads.box_predictor.bbox_pred(x)
        decode = heads.box_predictor.box2box_transform.apply_deltas
        boxes = decode(deltas, p.proposal_boxes.tensor).view(len(p), 3, 4)
        boxes = boxes.clamp(min=0).minimum(torch.tensor([SIZE[1], SIZE[0]] * 2))
        for box, c in zip(found.pred_boxes.tensor, found.pred_classes, strict=True):
            assert (boxes[:, c] - box).abs().amax(1).min() < 1e-3


@pytest.mark.parametrize("whole", ["none", "region", "row", "feature", "pooled"])
@pytest.mark.parametrize("rois", ["topk", "sampled"])
@torch.no_grad()
def test_codes_alone_equal_the_codes_beside_detections(make_heads, whole, rois):
    heads = make_heads("WHOLE_IMAGE", whole, "FUSION_ROIS", rois)
    features, proposals = make_features(3), make_proposals(20, 0, 5)
    instances, codes = heads.forward_hash(features, proposals, detect=True)
    nothing, alone = heads.forward_hash(features, proposals, detect=False)
    assert nothing is None
    assert [len(p) for p in proposals] == [20, 0, 5]
    assert isinstance(alone, ImageCodes)
    torch.testing.assert_close(alone.activations, codes.activations, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone.scores, codes.scores, rtol=1e-5, atol=1e-5)
    assert codes.activations.shape == (3, 12)
    assert codes.scores.shape == (3, 3)
    assert len(instances[1]) == 0
    assert instances[1].pred_codes.shape == (0, 12)


@torch.no_grad()
def test_codes_alone_skip_the_regions_that_are_not_fused(make_heads):
    heads = make_heads("WHOLE_IMAGE", "row")
    rows = count_rows(heads)
    features, proposals = make_features(2), make_proposals(20, 3)
    heads.forward_hash(features, proposals, detect=False)
    heads.forward_hash(features, proposals, detect=True)
    assert rows == [8 + 1 + 3 + 1, 20 + 1 + 3 + 1]


@torch.no_grad()
def test_topk_reads_the_first_proposals_and_sampled_reads_all_at_test(make_heads):
    topk, sampled = make_heads(), make_heads("FUSION_ROIS", "sampled")
    features, (p,) = make_features(1), make_proposals(20)
    first = [p[:8]]
    torch.testing.assert_close(
        topk.forward_hash(features, [p])[1].activations,
        sampled.forward_hash(features, first)[1].activations,
    )
    assert not torch.allclose(
        sampled.forward_hash(features, [p])[1].activations,
        sampled.forward_hash(features, first)[1].activations,
        atol=1e-3,
    )


@torch.no_grad()
def test_an_image_code_exists_without_any_detection_or_proposal(make_heads):
    heads = make_heads("LATENT_INIT_BIAS", 0.25)
    heads.box_predictor.test_score_thresh = 1.1
    instances, codes = heads.forward_hash(make_features(2), make_proposals(20, 0))
    assert [len(i) for i in instances] == [0, 0]
    assert [i.pred_codes.dtype for i in instances] == [torch.bool] * 2
    assert codes.activations.isfinite().all()
    # Nothing to fuse: H2's bias alone.
    torch.testing.assert_close(codes.activations[1], torch.full((12,), 0.25).sigmoid())
    _, none_at_all = heads.forward_hash(make_features(2), make_proposals(0, 0), detect=False)
    torch.testing.assert_close(none_at_all.activations[0], codes.activations[1])


@torch.no_grad()
def test_given_boxes_only_get_codes(make_heads):
    heads = make_heads()
    features = make_features(2)
    given = [Instances(SIZE, pred_boxes=random_boxes(n, n), tag=torch.arange(n)) for n in (4, 0)]
    results = heads.forward_with_given_boxes(features, given)
    assert [set(r.get_fields()) for r in results] == [{"pred_boxes", "tag", "pred_codes"}] * 2
    a = by_hand(heads, features, random_boxes(4, 4).tensor, 0)[1]
    assert torch.equal(results[0].pred_codes, a >= 0.5)
    assert results[1].pred_codes.shape == (0, 12)


@torch.no_grad()
def test_code_lengths_can_differ(make_heads):
    heads = make_heads("BITS_INSTANCE", 5, "BITS_IMAGE", 7, "WHOLE_IMAGE", "row")
    instances, codes = heads.forward_hash(make_features(1), make_proposals(20))
    assert instances[0].pred_codes.shape[1] == 5
    assert codes.activations.shape == (1, 7)
    assert heads.image_hash.latent.linear.in_features == 3 * 5 + 5


# --- Training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", ["none", "feature"])
@pytest.mark.parametrize("rois", ["topk", "sampled"])
@pytest.mark.parametrize(
    ("num_proposals", "num_objects"),
    [((20, 20), (2, 1)), ((20, 20), (0, 2)), ((0, 20), (2, 0)), ((0, 0), (0, 0)), ((5,), (0,))],
)
def test_losses_are_always_the_same_and_reach_every_parameter(
    make_heads, num_proposals, num_objects, rois, whole
):
    heads = make_heads("FUSION_ROIS", rois, "WHOLE_IMAGE", whole, training=True)
    targets = make_targets(*num_objects)
    features, proposals = make_features(len(targets)), make_proposals(*num_proposals)
    sampled, losses = train(heads, features, proposals, targets)
    assert len(sampled) == len(targets)
    assert set(losses) == LOSSES
    assert all(v.ndim == 0 and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name


def test_losses_equal_those_of_the_parts(make_heads):
    heads = make_heads(training=True)
    torch.nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.5)
    features, proposals, targets = make_features(2), make_proposals(20, 6), make_targets(2, 1)
    sampled, losses = train(heads, features, proposals, targets)
    with torch.no_grad():
        parts = [
            by_hand(heads, features, s.proposal_boxes.tensor, i) for i, s in enumerate(sampled)
        ]
        scores = torch.cat([s for *_, s in parts])
        a = torch.cat([a for _, a, _ in parts])
        classes = torch.cat([s.gt_classes for s in sampled])
        images = []
        for i, p in enumerate(proposals):
            _, ai, si = by_hand(heads, features, p.proposal_boxes.tensor[:8], i)
            images.append(
                image_code_by_hand(heads, cross_proposal_fusion(si.softmax(1)[:, :3], ai))
            )
        a2, s2 = (torch.stack(x) for x in zip(*images, strict=True))
        labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        expected = {
            "loss_cls": torch.nn.functional.cross_entropy(scores, classes),
            "loss_hash_instance_binary": forcing_binary_loss(a),
            "loss_hash_instance_balance": bit_balance_loss(a),
            "loss_hash_image_binary": forcing_binary_loss(a2),
            "loss_hash_image_balance": bit_balance_loss(a2),
            "loss_cls_image": multi_label_logistic_loss(s2, labels),
            "loss_similarity_image": label_similarity_loss(a2, labels),
        }
        # Smooth L1 with beta 0, of the own class's deltas, over all sampled rows.
        box_loss = 0.0
        for (x, _, _), s in zip(parts, sampled, strict=True):
            deltas = heads.box_predictor.bbox_pred(x).view(len(s), 3, 4)
            for row, c in enumerate(s.gt_classes.tolist()):
                if c < 3:
                    goal = heads.box_predictor.box2box_transform.get_deltas(
                        s.proposal_boxes.tensor[row : row + 1], s.gt_boxes.tensor[row : row + 1]
                    )
                    box_loss += (deltas[row, c] - goal[0]).abs().sum()
        expected["loss_box_reg"] = box_loss / len(classes)
    assert expected["loss_box_reg"] > 0
    for key, value in expected.items():
        torch.testing.assert_close(losses[key].detach(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", ["none", "pooled"])
@pytest.mark.parametrize("rois", ["topk", "sampled"])
def test_a_region_that_is_sampled_and_fused_is_read_once(make_heads, rois, whole):
    heads = make_heads("FUSION_ROIS", rois, "WHOLE_IMAGE", whole, training=True)
    rows = count_rows(heads)
    proposals = make_proposals(20, 6)
    sampled, _ = train(heads, make_features(2), proposals, make_targets(2, 1))
    read = 0
    for s, p in zip(sampled, proposals, strict=True):
        regions = {tuple(box) for box in s.proposal_boxes.tensor.tolist()}
        if rois == "topk":
            regions |= {tuple(box) for box in p.proposal_boxes.tensor[:8].tolist()}
        read += len(regions) + (whole != "none")
    assert rows == [read]


def losses_region_by_region(heads, features, sampled, fused, labels):
    """The losses with every region read as often as it is chosen, and fused image by image."""

    def read(image, boxes):
        maps = [features["stage4"][image : image + 1]]
        pooled = heads.box_head.pool(heads.box_pooler(maps, [Boxes(boxes)]))
        x = heads.box_head.fc(pooled)
        a = heads.instance_hash(x)
        return pooled, x, a, heads.box_predictor.class_scores(x, a)

    parts = [read(i, s.proposal_boxes.tensor) for i, s in enumerate(sampled)]
    _, x, a, scores = (torch.cat(values) for values in zip(*parts, strict=True))
    losses = heads.box_predictor.losses((scores, heads.box_predictor.bbox_pred(x)), sampled)
    losses["loss_hash_instance_binary"] = forcing_binary_loss(a)
    losses["loss_hash_instance_balance"] = bit_balance_loss(a)
    images = []
    for i, boxes in enumerate(fused):
        whole = torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]])
        pooled, x, a, scores = read(i, torch.cat([boxes, whole]))
        p = scores[:-1].softmax(1)[:, :-1]
        joined = cross_proposal_fusion(p, a[:-1], heads.fusion_norm)
        images.append(torch.cat([joined, pooled[-1]]))
    codes = heads.image_hash(torch.stack(images))
    return losses | {
        "loss_hash_image_binary": forcing_binary_loss(codes.activations),
        "loss_hash_image_balance": bit_balance_loss(codes.activations),
        "loss_cls_image": multi_label_logistic_loss(codes.scores, labels),
        "loss_similarity_image": label_similarity_loss(codes.activations, labels),
    }


@pytest.mark.parametrize("norm", FUSION_NORMS)
@pytest.mark.parametrize("rois", ["topk", "sampled"])
def test_losses_and_gradients_are_those_of_regions_read_one_by_one(make_heads, rois, norm):
    """On layers for CPUs, regions read once and images fused at once, against neither."""
    options = ("FUSION_ROIS", rois, "FUSION_NORM", norm, "WHOLE_IMAGE", "pooled")
    plain, fast = (make_heads(*options, training=True) for _ in range(2))
    use_cpu_layers(fast)
    proposals, targets = make_proposals(20, 3, 0), make_targets(2, 0, 1)
    maps = [make_features(3)["stage4"].requires_grad_() for _ in range(2)]
    sampled, losses = train(fast, {"stage4": maps[0]}, proposals, targets)
    chosen = proposals if rois == "topk" else sampled
    fused = [p.proposal_boxes.tensor[: 8 if rois == "topk" else None] for p in chosen]
    labels = multi_hot_labels(targets, 3)
    with EventStorage():
        expected = losses_region_by_region(plain, {"stage4": maps[1]}, sampled, fused, labels)
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-6)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    torch.testing.assert_close(maps[0].grad, maps[1].grad, rtol=1e-4, atol=1e-6)
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rois", ["topk", "sampled"])
def test_which_regions_are_fused_in_training(make_heads, monkeypatch, rois):
    """topk: the proposals as at test, without ground truth; sampled: the sampled rows."""
    heads = make_heads("FUSION_ROIS", rois)
    seen, fuse = [], heads._fuse
    monkeypatch.setattr(heads, "_fuse", lambda r, *e: seen.append(r) or fuse(r, *e))
    features, proposals, targets = make_features(2), make_proposals(20, 6), make_targets(2, 0)
    heads.forward_hash(features, proposals)
    heads.train()
    sampled, _ = train(heads, features, proposals, targets)
    at_test, in_training = seen
    if rois == "topk":
        assert [len(r.features) for r in in_training] == [8, 6]
        for one, other in zip(in_training, at_test, strict=True):
            torch.testing.assert_close(one.activations, other.activations, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-5)
    else:
        for i, (r, s) in enumerate(zip(in_training, sampled, strict=True)):
            a = by_hand(heads, features, s.proposal_boxes.tensor, i)[1]
            torch.testing.assert_close(r.activations, a, rtol=1e-4, atol=1e-5)
        assert [len(r.features) for r in at_test] == [20, 6]


@pytest.mark.parametrize("flows", [True, False])
def test_fusion_gradient(make_heads, flows):
    heads = make_heads("FUSION_GRADIENT", flows, "WHOLE_IMAGE", "feature", training=True)
    _, losses = train(heads, make_features(1), make_proposals(20), make_targets(2))
    losses["loss_cls_image"].backward()
    assert heads.image_hash.latent.linear.weight.grad.any()
    below = [*heads.instance_hash.parameters(), *heads.box_predictor.cls_score.parameters()]
    below += [*heads.box_head.parameters()]
    assert all((p.grad is not None and bool(p.grad.any())) == flows for p in below)


@torch.no_grad()
def test_image_labels_are_the_classes_in_the_image():
    targets = make_targets(4, 0, 2)
    targets[2].gt_classes[:] = 2
    assert multi_hot_labels(targets, 3).tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 1]]


@torch.no_grad()
def test_image_loss_option(make_heads):
    arguments = make_features(1), make_proposals(20), make_targets(2)
    logistic = train(make_heads(training=True), *arguments)[1]
    softmax = train(make_heads("IMAGE_LOSS", "softmax", training=True), *arguments)[1]
    assert logistic["loss_cls_image"] != softmax["loss_cls_image"]
    assert logistic["loss_cls"] == softmax["loss_cls"]


@pytest.mark.parametrize(
    "name", ["cosine", "idhn", "isdh_soft", "dmssph", "dpsh", "csq", "orthohash"]
)
def test_the_objective_is_a_choice(make_heads, name):
    heads = make_heads("OBJECTIVE", name, training=True)
    losses = train(heads, make_features(2), make_proposals(20, 6), make_targets(2, 1))[1]
    expected = build_loss(name, bits=heads.image_hash.latent.bits, num_classes=3)
    assert heads.image_objective.state_dict().keys() == expected.state_dict().keys()
    assert losses["loss_similarity_image"].isfinite()


def test_training_without_ground_truth_is_refused(make_heads):
    with pytest.raises(ValueError, match="instances"):
        train(make_heads(training=True), make_features(1), make_proposals(3), None)


def test_one_class(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    heads = build_roi_heads(tiny_cfg, {"stage4": ShapeSpec(channels=8, stride=16)})
    _, losses = train(heads, make_features(1), make_proposals(9), make_targets(2, num_classes=1))
    assert set(losses) == LOSSES
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters())
    heads.eval()
    with torch.no_grad():
        instances, codes = heads.forward_hash(make_features(1), make_proposals(9))
    assert codes.scores.shape == (1, 1)
    assert len(instances[0]) > 0


def test_autocast_keeps_codes_and_hash_losses_in_float32(make_heads):
    heads = make_heads("WHOLE_IMAGE", "feature", training=True)
    arguments = make_features(1), make_proposals(9), make_targets(2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = train(heads, *arguments)[1]
        heads.eval()
        codes = heads.forward_hash(*arguments[:2])[1]
    assert all(x.dtype == torch.float32 for x in codes)
    assert all(v.dtype == torch.float32 for k, v in losses.items() if "hash" in k or "image" in k)
    sum(losses.values()).backward()


# --- Options that are refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["FUSION_ROIS", "FUSION_INPUT", "FUSION_NORM", "WHOLE_IMAGE"]
    + ["IMAGE_LOSS", "CLASSIFIER_INPUT", "OBJECTIVE"],
)
def test_unknown_values_name_the_key(make_heads, key):
    with pytest.raises(ValueError, match=rf"MODEL\.REGION_DH\.{key}: 'nonsense'"):
        make_heads(key, "nonsense")


def test_a_negative_number_of_fused_regions_is_refused(make_heads):
    with pytest.raises(ValueError, match=r"MODEL\.REGION_DH\.FUSION_NUM_ROIS: -1"):
        make_heads("FUSION_NUM_ROIS", -1)


@pytest.mark.parametrize("key", ["MASK_ON", "KEYPOINT_ON", "ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES"])
def test_other_heads_are_refused(tiny_cfg, key):
    tiny_cfg.merge_from_list([f"MODEL.{key}", True])
    with pytest.raises(ValueError, match=key.split(".")[-1]):
        build_roi_heads(tiny_cfg, {"stage4": ShapeSpec(channels=8, stride=16)})
