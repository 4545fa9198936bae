"""A scaled gradient, alone and in the networks that share a backbone between their branches."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from regiondh_d2.modeling.gradients import scale_gradient


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 4.0])
def test_the_value_stays_and_the_gradient_is_scaled(scale):
    x = torch.randn(3, 4, requires_grad=True)
    y = scale_gradient(x, scale)
    assert torch.equal(y, x)
    weights = torch.randn(3, 4)
    (y * weights).sum().backward()
    assert torch.equal(x.grad, weights * scale)


IMAGE = ("loss_hash_image", "loss_cls_image", "loss_similarity_image")
BELOW = ("backbone.", "proposal_generator.", "roi_heads.box_head.")


def gradients(model, inputs, losses_of):
    """The gradient of each parameter, of the losses that are picked."""
    torch.manual_seed(0)
    model.train().zero_grad()
    with EventStorage():
        losses = model(inputs)
    sum(losses_of(losses)).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def of_image(losses):
    return [losses[key] for key in IMAGE]


def of_objects(losses):
    return [v for k, v in losses.items() if k not in IMAGE]


@pytest.mark.parametrize(
    ("architecture", "heads", "whole"),
    [
        ("RegionDH", "RegionDHROIHeads", "pooled"),
        ("RegionDH", "IAHROIHeads", "feature"),
        ("ImageHash", "WholeImageHeads", "none"),
    ],
)
def test_only_the_image_branch_and_only_below_the_hash_layers(
    tiny_cfg, make_inputs, architecture, heads, whole
):
    tiny_cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", architecture, "MODEL.ROI_HEADS.NAME", heads),
            *("MODEL.REGION_DH.WHOLE_IMAGE", whole, "MODEL.REGION_DH.FUSION_NORM", "mean"),
            *("MODEL.REGION_DH.LOSS_WEIGHTS.SIMILARITY", 10.0),
        ]
    )
    if architecture == "ImageHash":
        tiny_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    inputs = make_inputs((64, 64), (64, 64))
    models = []
    for scale in (1.0, 0.25):
        tiny_cfg.MODEL.REGION_DH.IMAGE_GRADIENT_SCALE = scale
        torch.manual_seed(1)
        models.append(build_model(tiny_cfg))
    whole_branch, scaled = (gradients(m, inputs, of_image) for m in models)
    assert whole_branch.keys() == scaled.keys()
    for name, gradient in whole_branch.items():
        expected = gradient * 0.25 if name.startswith(BELOW) else gradient
        assert torch.allclose(scaled[name], expected, rtol=1e-4, atol=1e-7), name
    assert any(g.any() for n, g in whole_branch.items() if n.startswith("backbone."))
    if architecture == "RegionDH":
        before, after = (gradients(m, inputs, of_objects) for m in models)
        assert all(torch.allclose(after[n], g, rtol=1e-4, atol=1e-7) for n, g in before.items())
