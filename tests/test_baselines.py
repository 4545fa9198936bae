"""Whole-image methods: codes and losses, from images and cached tables, a detector's weights."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from regiondh_d2.checkpoint import RegionDHCheckpointer

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
        (alone,) = model.code_images([x])
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
    _, codes = ssdh._code(inputs)
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


@pytest.mark.parametrize("outputs", [False, True])
def test_cached_tables_give_the_same(make_hash, outputs):
    model = make_hash()
    head = model.roi_heads.box_head
    tables = [torch.rand(rows, head.pooled_dim).half() for rows in (3, 1)]
    inputs = []
    for table in tables:
        truth = Instances((64, 64), gt_classes=torch.tensor([0] * (len(table) - 1) or [2]))
        nothing = Instances((64, 64))
        inputs.append({"region_features": table, "instances": truth, "proposals": nothing})
        if outputs:
            inputs[-1]["region_outputs"] = head.fc(table.float()).detach().half()
    wanted = model.roi_heads.image_hash.eval()(
        head.fc(torch.stack([t[-1] for t in tables]).float())
    )
    for out, activation in zip(model.eval()(inputs), wanted.activations, strict=True):
        torch.testing.assert_close(out["image_activation"], activation, atol=1e-3, rtol=1e-3)
    assert all(loss.isfinite() for loss in model.train()(inputs).values())


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
