"""Image encoders: what they compute, what of them learns, and what H2 makes of them."""

import copy

import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from builders import with_squares
from regiondh_d2 import add_regiondh_config
from regiondh_d2.checkpoint import RegionDHCheckpointer, model_fingerprint
from regiondh_d2.checkpoint import checkpointer as checkpointer_module
from regiondh_d2.engine.optimizer import PARTS, build_optimizer
from regiondh_d2.modeling.image_encoders import ImageEncoder, ImageEncoders, encoder_width
from regiondh_d2.utils.errors import RegionDHError

TINY = "test_efficientnet"  # of timm, for tests
HASH = "MODEL.REGION_DH."
ENCODERS = (HASH + "IMAGE_ENCODERS", [TINY, TINY], HASH + "IMAGE_ENCODER_SIZES", [32, 48])


@pytest.fixture
def inputs(make_inputs):
    return with_squares(make_inputs((64, 96), (64, 96)), 32, 48)


def test_an_encoder_is_timms_classifier_before_its_last_layer():
    torch.manual_seed(0)
    encoder = ImageEncoder(TINY, 32)
    plain = timm.create_model(TINY, num_classes=7).eval()
    state = plain.state_dict()
    for key in state:  # other statistics than those of a new network
        if key.endswith("running_var"):
            state[key].uniform_(0.5, 2.0)
    names = set(encoder.model.state_dict())
    encoder.model.load_state_dict({k: v for k, v in state.items() if k in names})
    squares = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(plain.default_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        x = (squares / 255.0 - mean) / std
        expected = plain.forward_head(plain.forward_features(x), pre_logits=True)
        turned = plain.forward_head(plain.forward_features(x.flip(3)), pre_logits=True)
    assert encoder.width == expected.shape[1] == encoder_width(TINY)
    torch.testing.assert_close(encoder(squares), expected, rtol=1e-4, atol=1e-4)
    averaged = ImageEncoder(TINY, 32, mirrored=True, bgr=True)
    averaged.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(
        averaged(squares.flip(1)), (expected + turned) / 2, rtol=1e-4, atol=1e-4
    )


def test_training_leaves_encoders_as_they_are(make_model, inputs):
    model = make_model(*ENCODERS)
    before = {k: v.clone() for k, v in model.image_encoders.state_dict().items()}
    assert not any(p.requires_grad for p in model.image_encoders.parameters())
    model.train()
    assert not any(m.training for e in model.image_encoders for m in e.modules())
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    assert model.roi_heads.image_hash.latent.linear.weight.grad.abs().sum() > 0
    for key, value in model.image_encoders.state_dict().items():
        assert torch.equal(value, before[key])


LEARN = (HASH + "LR_FACTORS.IMAGE_ENCODERS", 1.0)
# H2 reads the encoders alone, and nothing else learns.
ALONE = (
    *(*ENCODERS, *LEARN, HASH + "FUSION_NUM_ROIS", 0),
    *(v for part in PARTS if part[:5] != "IMAGE" for v in (f"{HASH}LR_FACTORS.{part}", 0.0)),
)


@pytest.mark.parametrize("fusion", [True, False])
def test_an_encoder_learns_above_its_frozen_groups(make_model, inputs, fusion):
    opts = (HASH + "IMAGE_ENCODER_FREEZE_AT", 3, HASH + "FUSION_GRADIENT", fusion)
    model = make_model(*ENCODERS, *LEARN, *opts).train()
    before = {k: v.clone() for k, v in model.image_encoders.state_dict().items()}
    assert not any(m.training for e in model.image_encoders for m in e.modules())
    with EventStorage():
        sum(model(inputs).values()).backward()
    frozen = ("model.conv_stem.", "model.blocks.0.", "model.blocks.1.")  # the first three groups
    for encoder in model.image_encoders:
        for name, parameter in encoder.named_parameters():
            learned = parameter.grad is not None and parameter.grad.abs().sum() > 0
            assert learned is not name.startswith(frozen), name
    # Norms, their statistics among them, are not parameters.
    assert all(torch.equal(v, before[k]) for k, v in model.image_encoders.state_dict().items())


def test_encoders_learn_without_the_detector(make_model, inputs, monkeypatch):
    """Where H2 reads nothing else, losses and codes are those of the whole network."""
    whole = make_model(*ENCODERS, *LEARN, HASH + "FUSION_NUM_ROIS", 0)
    model = make_model(*ALONE)
    cfg = get_cfg()
    add_regiondh_config(cfg)
    cfg.merge_from_list([*ALONE, "SOLVER.BASE_LR", 0.1])
    optimizer = build_optimizer(cfg, model)
    state = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(model.backbone, "forward", None)
    losses = []
    for network in (whole, model):
        with EventStorage():
            losses.append(network.train()(inputs))
    expected, found = losses
    assert list(found) == list(expected)
    for name in found:
        if "image" in name:
            torch.testing.assert_close(found[name], expected[name])
        else:
            assert found[name] == 0.0
    sum(found.values()).backward()
    optimizer.step()
    moved = {k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, state[k])}
    assert moved == {"image_encoders", "roi_heads"}
    model.load_state_dict(whole.state_dict())
    with torch.no_grad():
        codes = [network.eval().encode_images(inputs) for network in (whole, model)]
        described = whole(inputs)
    for one, other, third in zip(*codes, described, strict=True):
        for key in ("image_code", "image_activation", "image_scores"):
            assert torch.equal(one[key], other[key])
            torch.testing.assert_close(one[key], third[key])


def test_h2_reads_the_vectors_behind_the_fused_regions(make_model, inputs):
    """With the weights of a network without encoders, and 0 for the vectors, codes are its own."""
    plain, model = make_model().eval(), make_model(*ENCODERS).eval()
    state = plain.state_dict()
    key = "roi_heads.image_hash.latent.linear.weight"
    wide = model.state_dict()[key]
    assert wide.shape[1] == state[key].shape[1] + 2 * encoder_width(TINY)
    state[key] = torch.cat([state[key], torch.zeros_like(wide[:, state[key].shape[1] :])], dim=1)
    found = model.load_state_dict(state, strict=False)
    assert all(name.startswith("image_encoders.") for name in found.missing_keys)
    for one, other in zip(model(inputs), plain(inputs), strict=True):
        torch.testing.assert_close(one["image_activation"], other["image_activation"])
    weights = model.roi_heads.image_hash.latent.linear.weight.data
    torch.nn.init.normal_(weights[:, -2 * encoder_width(TINY) :], std=0.1)
    vectors = torch.cat(
        [e(torch.stack([x["squares"][e.size] for x in inputs])) for e in model.image_encoders], 1
    )
    torch.testing.assert_close(model.image_encoders(inputs), vectors)
    outputs = model(inputs), plain(inputs), model.encode_images(inputs)
    for one, other, alone, v in zip(*outputs, vectors, strict=True):
        logit = other["image_activation"].logit() + weights[:, -len(v) :] @ v
        torch.testing.assert_close(one["image_activation"].logit(), logit, rtol=1e-3, atol=1e-3)
        assert torch.equal(alone["image_code"], one["image_code"])


def test_objects_need_no_encoder(make_model, inputs, monkeypatch):
    """Codes of given boxes come from the detector alone, in its time."""
    model = make_model(*ENCODERS).eval()
    (first, _) = model(inputs)
    given = [first["instances"][:2]]
    monkeypatch.setattr(ImageEncoders, "forward", None)
    (coded,) = model.inference([inputs[0]], given, do_postprocess=False)
    assert torch.equal(coded.pred_codes, first["instances"].pred_codes[:2])


def test_without_encoders_nothing_changes(make_model, tiny_cfg):
    assert make_model().image_encoders is None
    assert not [k for k in make_model().state_dict() if "encoder" in k]
    dropped = make_model(HASH + "FUSED_DROPOUT", 0.5)
    assert model_fingerprint(dropped) == model_fingerprint(make_model())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ((HASH + "IMAGE_ENCODERS", [TINY]), r"IMAGE_ENCODER_SIZES is \[\]: .* a size for each"),
        ((HASH + "IMAGE_ENCODERS", ["no"], HASH + "IMAGE_ENCODER_SIZES", [32]), "can't build 'no'"),
        (
            (HASH + "IMAGE_ENCODERS", ["vit_tiny_patch16_224"], HASH + "IMAGE_ENCODER_SIZES", [64]),
            "IMAGE_ENCODER_SIZES: 'vit_tiny_patch16_224' takes 224, not 64",
        ),
        (
            (*ENCODERS, *LEARN, HASH + "IMAGE_ENCODER_FREEZE_AT", 9),
            "IMAGE_ENCODER_FREEZE_AT is 9, and 'test_efficientnet' has [5-9] groups of layers",
        ),
        ((*ENCODERS, "INPUT.FORMAT", "L"), "INPUT.FORMAT is L: .* take RGB or BGR"),
        ((*ENCODERS, "MODEL.META_ARCHITECTURE", "ImageHash"), "ImageHash reads none. RegionDH"),
    ],
)
def test_what_does_not_fit_is_told(make_model, opts, message):
    with pytest.raises(RegionDHError, match=message):
        make_model(*opts)


def test_inputs_without_squares_are_refused(make_model, make_inputs):
    model = make_model(*ENCODERS).eval()
    with pytest.raises(RegionDHError, match="no 'squares' of 32 pixels, which .*ImageLoader"):
        model.encode_images(make_inputs((64, 96)))


def test_another_meta_architecture_is_refused(make_model, make_inputs):
    model = make_model(*ENCODERS, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN").eval()
    with pytest.raises(RegionDHError, match="need MODEL.META_ARCHITECTURE RegionDH"):
        model(make_inputs((64, 96)))


@pytest.mark.parametrize("path", ["", "detector.pth"])
def test_weights_without_encoders_get_imagenets(tiny_cfg, tmp_path, monkeypatch, path):
    """In a training; where a whole network is asked for, the weights must hold them."""
    torch.manual_seed(1)
    wanted = ImageEncoder(TINY, 32).model.state_dict()
    monkeypatch.setattr(checkpointer_module, "encoder_weights", lambda name: wanted)
    detector = build_model(tiny_cfg)
    torch.save({"model": detector.state_dict()}, tmp_path / "detector.pth")
    tiny_cfg.merge_from_list(list(ENCODERS))
    model = build_model(tiny_cfg)
    file = path and str(tmp_path / path)
    RegionDHCheckpointer(model).load(file)
    for encoder in model.image_encoders:
        for key, value in encoder.model.state_dict().items():
            assert torch.equal(value, wanted[key])
    if path:
        loaded = model.backbone.state_dict()
        assert all(torch.equal(v, loaded[k]) for k, v in detector.backbone.state_dict().items())
        strict = RegionDHCheckpointer(build_model(tiny_cfg))
        strict.whole = True
        with pytest.raises(RegionDHError, match="lacks .* tensors of the model"):
            strict.load(file)


def test_trained_encoders_stay_those_of_the_weights(tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointer_module, "encoder_weights", None)
    tiny_cfg.merge_from_list(list(ENCODERS))
    model, other = build_model(tiny_cfg), build_model(tiny_cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    RegionDHCheckpointer(other).load(str(tmp_path / "model.pth"))
    assert model_fingerprint(model) == model_fingerprint(other)
