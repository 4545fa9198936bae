"""Heads on cached regions: losses, codes and detections are those of the network on images."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from regiondh_d2.modeling.cached import CachedNetwork
from regiondh_d2.modeling.indexed_boxes import IndexedBoxes

LOSSES = [
    "loss_rpn_cls",
    "loss_rpn_loc",
    "loss_cls",
    "loss_box_reg",
    "loss_hash_instance",
    "loss_hash_image",
    "loss_cls_image",
]


def tables_of(model, inputs):
    """The dicts of a cached network, made image by image from the parts of the network."""
    tables = []
    for x in inputs:
        images = model.preprocess_image([x])
        features = model.backbone(images.tensor)
        truth, size = x["instances"], images.image_sizes[0]
        whole = torch.tensor([[0.0, 0.0, size[1], size[0]]])
        if model.proposal_generator is None:
            proposals = Instances(size, proposal_boxes=Boxes(torch.zeros(0, 4)))
        else:
            (proposals,), _ = model.proposal_generator(images, features, None)
        n, boxes = len(proposals), [proposals.proposal_boxes.tensor, truth.gt_boxes.tensor, whole]
        heads = model.roi_heads
        pooled = heads.box_pooler([features["stage4"]], [Boxes(torch.cat(boxes))])
        proposals.proposal_boxes = IndexedBoxes(boxes[0], torch.arange(n))
        objects = Instances(size, **truth.get_fields())
        objects.gt_boxes = IndexedBoxes(boxes[1], torch.arange(n, n + len(truth)))
        tables.append(
            {
                "region_features": heads.box_head.pool(pooled),
                "proposals": proposals,
                "instances": objects,
                "height": x["height"],
                "width": x["width"],
            }
        )
    return tables


def with_outputs(model, tables):
    """The same with what the frozen, fully connected layers make of each row."""
    fc = model.roi_heads.box_head.fc
    return [{**x, "region_outputs": fc(x["region_features"])} for x in tables]


def assert_same_losses(cached, tables, model, inputs, frozen):
    """Losses on the tables are those on images, and train all of the heads but frozen parts."""
    model.train()
    cached.train()
    with EventStorage():
        torch.manual_seed(0)
        losses = cached(tables)
        model.eval()
        with torch.no_grad():  # proposals of the tables are those of the network at test
            features, proposals, sizes = model.propose(inputs)
        model.train()
        torch.manual_seed(0)
        wanted = model.head_losses(features, proposals, sizes, inputs)
    wanted = model.weigh(
        {**wanted, "loss_rpn_cls": torch.zeros(()), "loss_rpn_loc": torch.zeros(())}
    )
    assert list(losses) == LOSSES
    for key in LOSSES:
        torch.testing.assert_close(losses[key], wanted[key], rtol=1e-4, atol=1e-5)
    sum(losses.values()).backward()
    for name, parameter in cached.model.roi_heads.named_parameters():
        if not any(part in name.split(".") for part in frozen):
            assert parameter.grad is not None, name
    assert all(p.grad is None for p in cached.model.backbone.parameters())


@pytest.mark.parametrize("rois", ["topk", "sampled"])
@pytest.mark.parametrize("whole", ["none", "region", "row", "feature", "pooled"])
def test_losses_codes_and_detections(make_model, make_inputs, whole, rois):
    """On pooled features of the regions, and on outputs of the layers above them."""
    model = make_model("MODEL.REGION_DH.WHOLE_IMAGE", whole, "MODEL.REGION_DH.FUSION_ROIS", rois)
    # The initial scores are all but equal, and so would be what a wrong row gives.
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=1.0)
    inputs = make_inputs((96, 128), (96, 128), objects=2)
    model.eval()
    given = [Instances(x["image"].shape[1:], pred_boxes=x["instances"].gt_boxes) for x in inputs]
    with torch.no_grad():
        tables = tables_of(model, inputs)
        outputs = with_outputs(model, tables)
        expected = [model([x])[0] for x in inputs]
        coded = [
            model.inference([x], [g], do_postprocess=False)[0].pred_codes
            for x, g in zip(inputs, given, strict=True)
        ]
    start = copy.deepcopy(model.state_dict())
    cached = CachedNetwork(copy.deepcopy(model))
    for rows, frozen in ((tables, ("conv_head",)), (outputs, ("conv_head", "fc"))):
        for network in (model, cached.model):  # training has changed running statistics
            network.load_state_dict(start)
        cached.zero_grad()
        with torch.no_grad():
            found = cached.eval()(rows)
            assert all(map(torch.equal, cached.object_codes(rows), coded))
        for one, other in zip(cached.encode_images(rows), expected, strict=True):
            torch.testing.assert_close(one["image_activation"], other["image_activation"])
        for one, other in zip(found, expected, strict=True):
            assert set(one) == set(other)
            torch.testing.assert_close(one["image_activation"], other["image_activation"])
            assert torch.equal(one["image_code"], other["image_code"])
            instances, wanted = one["instances"], other["instances"]
            torch.testing.assert_close(instances.pred_boxes.tensor, wanted.pred_boxes.tensor)
            assert torch.equal(instances.pred_codes, wanted.pred_codes)
        assert_same_losses(cached, rows, model, inputs, frozen)


def test_whole_images(tiny_cfg, make_inputs):
    tiny_cfg.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "ImageHash", "MODEL.ROI_HEADS.NAME", "WholeImageHeads"]
        + ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"]
    )
    torch.manual_seed(0)
    model = build_model(tiny_cfg).eval()
    inputs = make_inputs((64, 96), (80, 64))
    with torch.no_grad():
        tables = tables_of(model, inputs)
        expected = [model([x])[0] for x in inputs]
        for rows in (tables, with_outputs(model, tables)):
            cached = CachedNetwork(copy.deepcopy(model))
            found = cached.eval()(rows)
            for one, other in zip(found, expected, strict=True):
                assert set(one) == set(other)
                for key, value in one.items():
                    torch.testing.assert_close(value, other[key])
            for one, other in zip(cached.encode_images(rows), expected, strict=True):
                torch.testing.assert_close(one["image_activation"], other["image_activation"])
            assert all(loss.isfinite() for loss in cached.train()(rows).values())


def test_weights_have_the_names_of_the_network(make_model):
    model = make_model()
    names = list(model.state_dict())
    assert list(CachedNetwork(model).model.state_dict()) == names


def test_the_model_still_takes_images_afterwards(make_model, make_inputs):
    model = make_model().eval()
    inputs = make_inputs((96, 128))
    with torch.no_grad():
        expected = model(inputs)[0]["image_activation"]
        CachedNetwork(model).eval()(tables_of(model, inputs))
        assert torch.equal(model(inputs)[0]["image_activation"], expected)
