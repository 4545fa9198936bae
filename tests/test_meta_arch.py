"""The whole network: losses in every case of training data, and what comes out at test."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from regiondh_d2.checkpoint import model_fingerprint
from regiondh_d2.modeling import meta_arch
from regiondh_d2.modeling.meta_arch import LossWeights, RegionDH

LOSSES = [
    "loss_rpn_cls",
    "loss_rpn_loc",
    "loss_cls",
    "loss_box_reg",
    "loss_hash_instance",
    "loss_hash_image",
    "loss_cls_image",
]
CODE_KEYS = {"image_code", "image_activation", "image_scores", "image_probabilities"}
UNWEIGHTED = {
    "loss_rpn_cls": 2.0,
    "loss_rpn_loc": 3.0,
    "loss_cls": 5.0,
    "loss_box_reg": 7.0,
    "loss_cls_image": 11.0,
    "loss_hash_instance_binary": -0.13,
    "loss_hash_instance_balance": 0.17,
    "loss_hash_image_binary": -0.19,
    "loss_hash_image_balance": 0.23,
    "loss_similarity_image": 0.29,
}


def train(model, inputs, seed=0):
    torch.manual_seed(seed)
    model.train()
    with EventStorage():
        return model(inputs)


# --- Loss weights --------------------------------------------------------------------------------


def test_loss_weights_are_equations_3_to_7():
    weights = LossWeights(
        alpha=(1.5, 2.5), beta=(0.5, 3.0, 4.0), gamma_h1=(0.05, 10.0), gamma_h2=(0.1, 20.0)
    )
    losses = weights.apply({k: torch.tensor(v) for k, v in UNWEIGHTED.items()})
    assert list(losses) == LOSSES
    expected = {
        "loss_rpn_cls": 0.5 * 2,
        "loss_rpn_loc": 1.5 * 3,
        "loss_cls": 3.0 * 5,
        "loss_box_reg": 2.5 * 7,
        "loss_hash_instance": 0.05 * -0.13 + 10.0 * 0.17,
        "loss_hash_image": 0.1 * -0.19 + 20.0 * 0.23,
        "loss_cls_image": 4.0 * 11,
    }
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("field", "index", "term", "raw"),
    [
        ("alpha", 0, "loss_rpn_loc", "loss_rpn_loc"),
        ("alpha", 1, "loss_box_reg", "loss_box_reg"),
        ("beta", 0, "loss_rpn_cls", "loss_rpn_cls"),
        ("beta", 1, "loss_cls", "loss_cls"),
        ("beta", 2, "loss_cls_image", "loss_cls_image"),
        ("gamma_h1", 0, "loss_hash_instance", "loss_hash_instance_binary"),
        ("gamma_h1", 1, "loss_hash_instance", "loss_hash_instance_balance"),
        ("gamma_h2", 0, "loss_hash_image", "loss_hash_image_binary"),
        ("gamma_h2", 1, "loss_hash_image", "loss_hash_image_balance"),
    ],
)
def test_each_weight_moves_its_own_term_linearly(field, index, term, raw):
    losses = {k: torch.tensor(v) for k, v in UNWEIGHTED.items()}
    base = LossWeights()
    before = base.apply(losses)
    for step in (-1.0, 1.0, 2.0):
        values = list(getattr(base, field))
        values[index] += step
        after = LossWeights(**{field: tuple(values)}).apply(losses)
        for key in LOSSES:
            change = step * UNWEIGHTED[raw] if key == term else 0.0
            assert (after[key] - before[key]).item() == pytest.approx(change, abs=1e-6)


def test_weights_come_from_the_config(make_model, make_inputs):
    plain = make_model()
    assert plain.loss_weights == LossWeights()
    node = "MODEL.REGION_DH.LOSS_WEIGHTS."
    weighted = make_model(
        f"{node}ALPHA", [2.0, 3.0], f"{node}BETA", [4.0, 5.0, 6.0], f"{node}GAMMA_H2", [0.0, 1.0]
    )
    inputs = make_inputs((64, 96))
    before, after = train(plain, inputs), train(weighted, inputs)
    for key, factor in zip(LOSSES[:5], (4, 2, 5, 3, 1), strict=True):
        assert after[key].item() == pytest.approx(factor * before[key].item(), rel=1e-5)
    assert after["loss_cls_image"].item() == pytest.approx(6 * before["loss_cls_image"].item())


def test_the_similarity_weight_grows_in_its_warmup(make_model):
    similarity = "MODEL.REGION_DH.LOSS_WEIGHTS.SIMILARITY"
    model = make_model(similarity, 8.0, f"{similarity}_WARMUP", 4)
    losses = {k: torch.tensor(v) for k, v in UNWEIGHTED.items()}
    found = []
    for iteration in (0, 1, 3, 4, 100):
        with EventStorage(iteration):
            weighted = model.weigh(losses)
        found.append(weighted.pop("loss_similarity_image").item() / 0.29)
        assert weighted == LossWeights().apply(losses)
    assert found == pytest.approx([2.0, 4.0, 8.0, 8.0, 8.0])


def test_the_similarity_loss_joins_where_it_has_a_weight():
    losses = {k: torch.tensor(v) for k, v in UNWEIGHTED.items()}
    plain, weighted = LossWeights().apply(losses), LossWeights(similarity=3.0).apply(losses)
    assert list(weighted) == [*LOSSES, "loss_similarity_image"]
    assert weighted["loss_similarity_image"].item() == pytest.approx(3 * 0.29)
    assert all(weighted[k] == plain[k] for k in LOSSES)


def test_the_losses_of_object_codes_join_where_there_are_some():
    losses = {k: torch.tensor(v) for k, v in UNWEIGHTED.items()}
    joined = losses | {
        "loss_cls_object": torch.tensor(2),
        "loss_similarity_object": torch.tensor(5),
    }
    weighted = LossWeights(object_code=(3.0, 4.0)).apply(joined)
    assert list(weighted) == [*LOSSES, "loss_similarity_object", "loss_cls_object"]
    assert (weighted["loss_similarity_object"], weighted["loss_cls_object"]) == (15, 8)


def test_too_few_weights_name_the_key(make_model):
    with pytest.raises(ValueError, match=r"LOSS_WEIGHTS\.BETA takes 3 weights, not 2"):
        make_model("MODEL.REGION_DH.LOSS_WEIGHTS.BETA", [1.0, 1.0])


@pytest.mark.parametrize(
    "key",
    ["RPN.LOSS_WEIGHT", "RPN.BBOX_REG_LOSS_WEIGHT", "ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT"],
)
def test_weights_in_two_places_are_refused(make_model, key):
    with pytest.raises(ValueError, match=rf"MODEL\.{key}.*MODEL\.REGION_DH\.LOSS_WEIGHTS"):
        make_model(f"MODEL.{key}", 2.0)


# --- Training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "objects"),
    [
        (((96, 96),), [2]),
        (((96, 96),), [0]),
        (((96, 128), (64, 96)), [1, 3]),
        (((96, 128), (64, 96)), [0, 2]),
        (((64, 64), (64, 64)), [0, 0]),
    ],
    ids=["one", "one-empty", "mixed-sizes", "half-empty", "all-empty"],
)
@pytest.mark.parametrize("proposals", [20, 0])
def test_training_cases(make_model, make_inputs, sizes, objects, proposals):
    """The same seven losses in every iteration, and a gradient for every trainable parameter."""
    model = make_model("MODEL.RPN.POST_NMS_TOPK_TRAIN", proposals)
    inputs = [make_inputs(s, objects=n, seed=n)[0] for s, n in zip(sizes, objects, strict=True)]
    losses = train(model, inputs)
    assert list(losses) == LOSSES
    assert all(v.ndim == 0 and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    frozen = [k for k, p in model.named_parameters() if not p.requires_grad]
    assert frozen  # FREEZE_AT 2
    assert all(k.startswith("backbone.") for k in frozen)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_one_class(make_model, make_inputs):
    model = make_model("MODEL.ROI_HEADS.NUM_CLASSES", 1)
    inputs = make_inputs((96, 96), num_classes=1)
    losses = train(model, inputs)
    assert list(losses) == LOSSES
    sum(losses.values()).backward()
    with torch.no_grad():
        assert model.eval()(inputs)[0]["image_scores"].shape == (1,)


def test_a_few_steps_lower_the_loss(make_model, make_inputs):
    model = make_model()
    inputs = make_inputs((64, 64), (64, 64))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    totals = []
    for _ in range(15):
        optimizer.zero_grad()
        total = sum(train(model, inputs).values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]


def test_training_and_test_fuse_the_same_regions(make_model, make_inputs, monkeypatch):
    model = make_model()
    seen, fuse = [], model.roi_heads._fuse
    monkeypatch.setattr(model.roi_heads, "_fuse", lambda r, *e: seen.append(r) or fuse(r, *e))
    inputs = make_inputs((96, 128), (96, 128))
    with torch.no_grad():
        train(model, inputs)
        model.eval()(inputs)
    for one, other in zip(*seen, strict=True):
        assert len(one.features) == len(other.features) == 8
        torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.activations, other.activations, rtol=1e-4, atol=1e-5)


# --- Inference -----------------------------------------------------------------------------------


@pytest.fixture
def model(make_model):
    return make_model().eval()


@torch.no_grad()
def test_what_an_image_gives(model, make_inputs):
    inputs = make_inputs((96, 128), (64, 96))
    inputs[0].update(height=192, width=256)
    results = model(inputs)
    assert len(results) == 2
    for result, size in zip(results, ((192, 256), (64, 96)), strict=True):
        assert set(result) == {"instances", *CODE_KEYS}
        found = result["instances"]
        assert set(found.get_fields()) == {
            *("pred_boxes", "scores", "pred_classes", "pred_codes", "pred_regions"),
        }
        assert found.image_size == size
        assert 0 < len(found) <= 10
        assert found.pred_codes.dtype == torch.bool
        assert found.pred_codes.shape == (len(found), 12)
        assert result["image_code"].dtype == torch.bool
        assert result["image_code"].shape == result["image_activation"].shape == (12,)
        for key in ("image_activation", "image_scores", "image_probabilities"):
            assert result[key].dtype == torch.float32
        assert result["image_scores"].shape == result["image_probabilities"].shape == (3,)
        assert torch.equal(result["image_code"], result["image_activation"] >= 0.5)
        torch.testing.assert_close(result["image_probabilities"], result["image_scores"].sigmoid())


@pytest.mark.parametrize("proposals", [20, 0])
@torch.no_grad()
def test_an_image_without_detections_has_a_code(make_model, make_inputs, proposals):
    model = make_model(
        "MODEL.RPN.POST_NMS_TOPK_TEST", proposals, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0
    ).eval()
    result = model(make_inputs((64, 96)))[0]
    assert len(result["instances"]) == 0
    assert result["instances"].pred_codes.shape == (0, 12)
    assert set(result) == {"instances", *CODE_KEYS}
    assert result["image_activation"].isfinite().all()


@torch.no_grad()
def test_proposals_can_come_with_the_inputs(make_model, make_inputs):
    model = make_model("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals").eval()
    inputs = make_inputs((64, 96))
    corner = torch.tensor([[0.0, 0.0], [20.0, 10.0]])
    proposals = Instances((64, 96), proposal_boxes=Boxes(torch.cat([corner, corner + 30], dim=1)))
    proposals.objectness_logits = torch.zeros(2)
    (result,) = model([{**inputs[0], "proposals": proposals}])
    assert set(result) == {"instances", *CODE_KEYS}


@torch.no_grad()
def test_codes_alone(model, make_inputs):
    inputs = make_inputs((96, 128), (64, 96))
    results = model(inputs)
    # Neither box decoding nor NMS is needed.
    model.roi_heads.box_predictor.inference = None
    for alone, result in zip(model.encode_images(inputs), results, strict=True):
        assert set(alone) == CODE_KEYS
        torch.testing.assert_close(alone["image_activation"], result["image_activation"])
        assert torch.equal(alone["image_code"], result["image_code"])
        torch.testing.assert_close(alone["image_scores"], result["image_scores"])


@torch.no_grad()
def test_without_postprocessing_there_are_instances_only(model, make_inputs):
    inputs = make_inputs((96, 128))
    inputs[0].update(height=192, width=256)
    raw = model.inference(inputs, do_postprocess=False)
    assert [type(r) for r in raw] == [Instances]
    assert raw[0].image_size == (96, 128)
    full = model(inputs)[0]["instances"]
    torch.testing.assert_close(2 * raw[0].pred_boxes.tensor, full.pred_boxes.tensor)
    assert torch.equal(raw[0].pred_codes, full.pred_codes)


@torch.no_grad()
def test_known_boxes_only_get_codes(model, make_inputs):
    inputs = make_inputs((96, 128))
    boxes = torch.tensor([[4.0, 4.0, 60.0, 50.0], [10.0, 20.0, 90.0, 90.0]])
    known = Instances((96, 128), pred_boxes=Boxes(boxes), pred_classes=torch.tensor([2, 0]))
    (result,) = model.inference(inputs, [known])
    assert set(result) == {"instances"}
    found = result["instances"]
    assert set(found.get_fields()) == {"pred_boxes", "pred_classes", "pred_codes"}
    assert torch.equal(found.pred_boxes.tensor, boxes)
    assert found.pred_codes.shape == (2, 12)
    # The box of a proposal has the code of that proposal.
    images = model.preprocess_image(inputs)
    proposals = Instances((96, 128), proposal_boxes=Boxes(boxes))
    model.roi_heads.box_predictor.bbox_pred.weight.zero_()
    model.roi_heads.box_predictor.test_nms_thresh = 1.0
    features = model.backbone(images.tensor)
    (detected,), _ = model.roi_heads.forward_hash(features, [proposals])
    for box, code in zip(detected.pred_boxes.tensor, detected.pred_codes, strict=True):
        row = (boxes - box).abs().sum(1).argmin()
        assert torch.equal(code, found.pred_codes[row])


@torch.no_grad()
def test_a_batch_of_one_padded_size_gives_each_images_own_code(make_model, make_inputs):
    """(96, 128) and (90, 100) pad to the same 96 x 128; boxes and codes stay each image's own."""
    model = make_model().eval()
    inputs = make_inputs((96, 128), (90, 100), (96, 97))
    together = model(inputs)
    for inp, batched in zip(inputs, together, strict=True):
        (alone,) = model([inp])
        a = alone["image_activation"]
        sure = (a - 0.5).abs() > 1e-4
        assert torch.equal(batched["image_code"][sure], alone["image_code"][sure])
        torch.testing.assert_close(batched["image_activation"], a, rtol=0, atol=1e-4)
        assert len(batched["instances"]) == len(alone["instances"])
    activations = torch.stack([r["image_activation"] for r in together])
    assert (activations[0] - activations[1]).abs().max() > 1e-3  # images do differ


@torch.no_grad()
def test_generalized_rcnn_with_our_heads_still_detects(make_model, make_inputs, model):
    plain = make_model("MODEL.META_ARCHITECTURE", "GeneralizedRCNN").eval()
    assert not isinstance(plain, RegionDH)
    inputs = make_inputs((96, 128))
    (result,), (expected,) = plain(inputs), model(inputs)
    assert set(result) == {"instances"}
    torch.testing.assert_close(
        result["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor
    )
    assert torch.equal(result["instances"].pred_codes, expected["instances"].pred_codes)


def test_generalized_rcnn_with_our_heads_trains(make_model, make_inputs):
    plain = make_model("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    losses = train(plain, make_inputs((96, 128)))
    assert {"loss_rpn_cls", "loss_cls", "loss_hash_image_binary", "loss_cls_image"} <= set(losses)
    sum(losses.values()).backward()


def test_region_dh_is_registered():
    assert META_ARCH_REGISTRY.get("RegionDH") is RegionDH


def test_layers_for_cpus_change_neither_weights_nor_results(make_model, make_inputs, monkeypatch):
    fast = make_model("MODEL.REGION_DH.WHOLE_IMAGE", "pooled")
    monkeypatch.setattr(meta_arch, "use_cpu_layers", lambda network: None)
    plain = make_model("MODEL.REGION_DH.WHOLE_IMAGE", "pooled")
    assert {type(m) for m in fast.modules()} != {type(m) for m in plain.modules()}
    assert model_fingerprint(fast) == model_fingerprint(plain)
    inputs = make_inputs((96, 160), (128, 96))
    losses, expected = train(fast, inputs), train(plain, inputs)
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-5)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for (name, one), other in zip(fast.named_parameters(), plain.parameters(), strict=True):
        if other.requires_grad:
            difference = (one.grad - other.grad).norm() / other.grad.norm().clamp(min=1e-8)
            assert difference < 1e-3, name
    with torch.no_grad():
        codes, others = fast.eval().encode_images(inputs), plain.eval().encode_images(inputs)
    for one, other in zip(codes, others, strict=True):
        activations = one["image_activation"], other["image_activation"]
        torch.testing.assert_close(*activations, rtol=1e-4, atol=1e-5)
