"""Whole-image methods: codes and losses, from images and cached tables, a detector's weights;
and IAH: its two kinds of codes against their definitions."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from regiondh_d2.checkpoint import RegionDHCheckpointer
from regiondh_d2.modeling.hashing import ImageCodes

BITS, CLASSES = 12, 3
LOSSES = ["loss_hash_image", "loss_cls_image"]


@pytest.fixture
def make_hash(tiny_cfg):
    """A function that builds a small ImageHash with overrides KEY, VALUE, and fixed weights."""

    def make(*opts, num_fc=2):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(
            ["MODEL.META_ARCHITECTURE", "ImageHash", "MODEL.ROI_HEADS.NAME", "WholeImageHeads"]
            + ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"]
            + ["MODEL.ROI_BOX_HEAD.NUM_FC", num_fc, *opts]
        )
        torch.manual_seed(0)
        return build_model(cfg)

    return make


def activations_by_hand(model, image):
    """Sigmoid of a linear map of the box head's reading of the whole, unpadded image."""
    heads = model.roi_heads
    features = model.backbone(model.preprocess_image([{"image": image}]).tensor)["stage4"]
    height, width = image.shape[1:]
    boxes = [torch.tensor([[0.0, 0.0, width, height]])]
    pooled = heads.box_pooler.level_poolers[0](features, torch.nn.functional.pad(boxes[0], (1, 0)))
    x = heads.box_head.conv_head(pooled).mean(dim=(2, 3))
    for layer in heads.box_head.fc:
        x = layer(x)
    latent = heads.image_hash.latent.linear
    return x, torch.sigmoid(x @ latent.weight.T + latent.bias)


@pytest.mark.parametrize("num_fc", [0, 2])
@torch.no_grad()
def test_codes_are_those_of_the_whole_image(make_hash, make_inputs, num_fc):
    model = make_hash(num_fc=num_fc).eval()
    inputs = make_inputs((64, 96), (80, 64))
    outputs = model(inputs)
    for x in inputs:
        (alone,) = model.encode_images([x])
        feature, wanted = activations_by_hand(model, x["image"])
        torch.testing.assert_close(alone["image_activation"], wanted[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone["image_feature"], feature[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(alone["image_code"], alone["image_activation"] >= 0.5)
    for out in outputs:
        assert "instances" not in out
        assert out["image_scores"].shape == (CLASSES,)
        assert torch.equal(out["image_probabilities"], out["image_scores"].sigmoid())


def test_losses_are_those_of_each_method(make_hash, make_inputs):
    inputs = make_inputs((64, 96), (80, 64))
    node = "MODEL.REGION_DH.LOSS_WEIGHTS"
    ssdh = make_hash(f"{node}.GAMMA_H2", [0.05, 10.0], f"{node}.SIMILARITY", 2.0).train()
    heads = ssdh.roi_heads
    losses = ssdh(inputs)
    assert list(losses) == [*LOSSES, "loss_similarity_image"]
    features, _, sizes = ssdh.propose(inputs)
    _, codes = ssdh.roi_heads(features, sizes)
    a = codes.activations
    e1, e2 = -((a - 0.5) ** 2).mean(), ((a.mean(dim=1) - 0.5) ** 2).mean()
    labels = torch.zeros(2, CLASSES)
    for row, x in zip(labels, inputs, strict=True):
        row[x["instances"].gt_classes] = 1.0
    logistic = torch.nn.functional.binary_cross_entropy_with_logits
    wanted = {
        "loss_hash_image": 0.05 * e1 + 10.0 * e2,
        "loss_cls_image": logistic(codes.scores, labels, reduction="sum") / 2,
        "loss_similarity_image": 2.0 * heads.image_objective(a, labels),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value, atol=1e-6, rtol=1e-5)

    dlbhc = make_hash(f"{node}.GAMMA_H2", [0.0, 0.0]).train()
    losses = dlbhc(inputs)
    assert list(losses) == LOSSES
    assert losses["loss_hash_image"] == 0.0


def test_a_step_trains_every_layer(make_hash, make_inputs):
    model = make_hash("MODEL.BACKBONE.FREEZE_AT", 0).train()
    sum(model(make_inputs((64, 96), (80, 64))).values()).backward()
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []


def test_weights_of_a_detector_fit(make_hash, make_model, tmp_path):
    theirs = make_model(
        "MODEL.META_ARCHITECTURE",
        "GeneralizedRCNN",
        "MODEL.ROI_HEADS.NAME",
        "StandardROIHeads",
        seed=1,
    ).state_dict()
    path = tmp_path / "detector.pth"
    torch.save({"model": theirs}, path)
    model = make_hash()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    RegionDHCheckpointer(model).load(str(path))
    for name, tensor in model.state_dict().items():
        if name.startswith("roi_heads.image_hash"):
            assert torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, theirs[name]), name


def test_what_it_has_not_is_refused(make_hash, make_inputs):
    model = make_hash().eval()
    with pytest.raises(ValueError, match="no codes of objects"):
        model.inference(make_inputs((64, 64)), do_postprocess=False)
    with pytest.raises(ValueError, match="IMAGE_LOSS: 'hinge' isn't one of"):
        make_hash("MODEL.REGION_DH.IMAGE_LOSS", "hinge")
    with pytest.raises(ValueError, match="FastRCNNConvFCHead"):
        make_hash("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead")


IAH = (
    ["MODEL.ROI_HEADS.NAME", "IAHROIHeads", "MODEL.REGION_DH.CLASSIFIER_INPUT", "box_features"]
    + ["MODEL.REGION_DH.FUSION_INPUT", "box_features", "MODEL.REGION_DH.FUSION_NORM", "mean"]
    + ["MODEL.REGION_DH.OBJECTIVE", "triplet", "MODEL.REGION_DH.LOSS_WEIGHTS.SIMILARITY", 1.0]
)


def regions_by_hand(model, inputs):
    """The class probabilities and features of the fused proposals, image by image."""
    heads, k = model.roi_heads, model.roi_heads.fusion_num_rois
    features, proposals, _ = model.propose(inputs)
    found = []
    for i, p in enumerate(proposals):
        maps = [features[name][i : i + 1] for name in heads.box_in_features]
        x = heads.box_head(heads.box_pooler(maps, [p.proposal_boxes[:k]])).flatten(1)
        found.append((heads.box_predictor.cls_score(x).softmax(dim=1)[:, :CLASSES], x))
    return found


@torch.no_grad()
def test_image_codes_of_iah_are_of_the_mean_outer_product(make_model, make_inputs):
    model = make_model(*IAH).eval()
    inputs = make_inputs((64, 96), (80, 64))
    _, codes = model.roi_heads.forward_hash(*model.propose(inputs)[:2])
    for (p, x), activations in zip(regions_by_hand(model, inputs), codes.activations, strict=True):
        outer = sum(torch.outer(p_i, x_i) for p_i, x_i in zip(p, x, strict=True)) / len(p)
        wanted = model.roi_heads.image_hash(outer.flatten()[None]).activations[0]
        torch.testing.assert_close(activations, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_detection_of_iah_carries_the_code_of_its_class(make_model, make_inputs):
    opts = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.TIMM.NAME", "tf_efficientnet_lite0"]
    model = make_model(*IAH, *opts).eval()
    inputs = make_inputs((64, 96), (80, 64))
    model.roi_heads.box_predictor.cls_score.weight *= 100.0  # so that regions differ in class
    instances, _ = model.roi_heads.forward_hash(*model.propose(inputs)[:2])
    latent = model.roi_heads.instance_hash.linear
    for found, (p, x) in zip(instances, regions_by_hand(model, inputs), strict=True):
        means = [(p[:, [c]] * x).sum(dim=0) / p[:, c].sum() for c in range(CLASSES)]
        codes = torch.stack([latent(m) for m in means]) >= 0
        assert len(set(found.pred_classes.tolist())) > 1
        assert torch.equal(found.pred_codes, codes[found.pred_classes])


def test_iah_ranks_category_codes_beside_image_codes(make_model, monkeypatch):
    heads = make_model(*IAH).roi_heads
    labels = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    groups = torch.rand(2, CLASSES, BITS)
    monkeypatch.setattr(heads, "_category_activations", lambda index: groups[index])
    codes = ImageCodes(torch.rand(2, BITS), torch.zeros(2, CLASSES))
    monkeypatch.setattr(heads, "_fuse", lambda fused, encoded: codes)
    loss = heads._image_losses([0, 1], labels, [])["loss_similarity_image"]
    # Two images make no triplet. Of the four category codes those of class 0 are alike.
    rows = [groups[0, 0], groups[0, 2], groups[1, 0], groups[1, 1]]

    def term(i, j, k):
        to_j, to_k = ((rows[i] - rows[other]).square().mean() for other in (j, k))
        return max(0.0, 0.25 + (to_j - to_k).item())

    wanted = (term(0, 2, 1) + term(0, 2, 3) + term(2, 0, 1) + term(2, 0, 3)) / 4
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_a_step_of_iah_trains_every_layer(make_model, make_inputs):
    model = make_model(*IAH, "MODEL.BACKBONE.FREEZE_AT", 0).train()
    inputs = make_inputs((64, 96), (80, 64), (64, 64), num_classes=2)
    with EventStorage():
        losses = model(inputs)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
