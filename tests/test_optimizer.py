"""Learning-rate factors of the parts of the network, and parts that are frozen."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from torch import nn

from builders import with_squares
from regiondh_d2 import add_regiondh_config
from regiondh_d2.engine.optimizer import PARTS, build_optimizer, freeze_parts
from regiondh_d2.utils.errors import RegionDHError

FACTORS = {
    "BACKBONE": 0.1,
    "PROPOSAL_GENERATOR": 0.2,
    "BOX_HEAD": 0.5,
    "BOX_PREDICTOR": 2.0,
    "INSTANCE_HASH": 5.0,
    "IMAGE_HASH": 10.0,
    "OBJECT_HASH": 20.0,
    "IMAGE_ENCODERS": 30.0,
}
# A network that has every part.
WHOLE = (
    *("MODEL.REGION_DH.OBJECT_CODE", "True", "MODEL.REGION_DH.LR_FACTORS.IMAGE_ENCODERS", 1.0),
    *("MODEL.REGION_DH.IMAGE_ENCODERS", ["test_efficientnet"]),
    *("MODEL.REGION_DH.IMAGE_ENCODER_SIZES", [32]),
)


def settings(model, optimizer):
    """The parameter group of each trainable parameter, by name."""
    names = {p: n for n, p in model.named_parameters()}
    return {names[p]: group for group in optimizer.param_groups for p in group["params"]}


def set_factors(cfg, factors):
    for part, factor in factors.items():
        cfg.MODEL.REGION_DH.LR_FACTORS[part] = factor


def test_every_parameter_belongs_to_a_part(make_model, tiny_cfg):
    assert set(PARTS) == set(tiny_cfg.MODEL.REGION_DH.LR_FACTORS) == set(FACTORS)
    names = [n for n, _ in make_model(*WHOLE).named_parameters()]
    for name in names:
        assert sum(name.startswith(prefix) for prefix in PARTS.values()) == 1, name
    for prefix in PARTS.values():
        assert any(n.startswith(prefix) for n in names), prefix


@pytest.mark.parametrize(
    "bias_factor",
    [
        1.0,
        2.0,
    ],
)
def test_factors_multiply_the_base_learning_rate(make_model, tiny_cfg, bias_factor):
    set_factors(tiny_cfg, FACTORS)
    tiny_cfg.merge_from_list(["SOLVER.BASE_LR", 0.04, "SOLVER.BIAS_LR_FACTOR", bias_factor])
    model = make_model(*WHOLE)
    groups = settings(model, build_optimizer(tiny_cfg, model))
    assert set(groups) == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, group in groups.items():
        part = next(k for k, prefix in PARTS.items() if name.startswith(prefix))
        expected = 0.04 * FACTORS[part] * (bias_factor if name.endswith(".bias") else 1.0)
        assert group["lr"] == pytest.approx(expected), name


def test_weight_decay_and_momentum_are_the_solvers(make_model, tiny_cfg):
    set_factors(tiny_cfg, FACTORS)
    tiny_cfg.merge_from_list(["SOLVER.WEIGHT_DECAY", 0.003, "SOLVER.WEIGHT_DECAY_BIAS", 0.0])
    tiny_cfg.merge_from_list(["SOLVER.MOMENTUM", 0.7])
    model = make_model()
    for name, group in settings(model, build_optimizer(tiny_cfg, model)).items():
        assert group["weight_decay"] == (0.0 if name.endswith(".bias") else 0.003), name
        assert group["momentum"] == 0.7


def test_a_factor_of_zero_freezes_a_part(make_model, tiny_cfg, make_inputs):
    set_factors(tiny_cfg, {"BACKBONE": 0.0, "PROPOSAL_GENERATOR": 0.0, "IMAGE_HASH": 3.0})
    model = make_model()
    optimizer = build_optimizer(tiny_cfg, model)
    assert not any(n.startswith(("backbone.", "proposal_")) for n in settings(model, optimizer))
    before = {n: p.clone() for n, p in model.named_parameters()}
    torch.manual_seed(0)
    with EventStorage():
        sum(model(make_inputs((64, 64))).values()).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.", "proposal_generator."))
        assert parameter.requires_grad != frozen
        assert (parameter.grad is None) == frozen, name
        if frozen:
            assert torch.equal(parameter, before[name])
    for prefix in ("roi_heads.image_hash.", "roi_heads.instance_hash.", "roi_heads.box_head."):
        assert any(
            not torch.equal(p, before[n])
            for n, p in model.named_parameters()
            if n.startswith(prefix)
        )


def test_frozen_levels_stay_frozen(make_model, tiny_cfg):
    model = make_model("MODEL.BACKBONE.FREEZE_AT", 2)
    groups = settings(model, build_optimizer(tiny_cfg, model))
    assert not any("blocks.0." in n or "conv_stem" in n for n in groups)
    assert any("blocks.2." in n for n in groups)


def test_gradients_are_clipped_where_the_config_says_so(make_model, tiny_cfg):
    assert tiny_cfg.SOLVER.CLIP_GRADIENTS.ENABLED
    model = make_model()
    before = {n: p.clone() for n, p in model.named_parameters()}
    tiny_cfg.merge_from_list(["SOLVER.WEIGHT_DECAY", 0.0, "SOLVER.BASE_LR", 1.0])
    optimizer = build_optimizer(tiny_cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0) if parameter.requires_grad else None
    optimizer.step()
    # CLIP_TYPE norm clips each parameter by its own norm.
    steps = [(p - before[n]).norm().item() for n, p in model.named_parameters() if p.requires_grad]
    assert steps == pytest.approx(
        [tiny_cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE] * len(steps), rel=1e-3
    )


# Norms with running statistics, and a layer of another kind that updates a buffer in training.
BATCH_NORMS = ("MODEL.TIMM.FREEZE_BN", "False", "MODEL.REGION_DH.NORMALIZE_FUSED", "True")


class Counter(nn.Module):
    """A layer that counts its calls in training: no norm, but updates itself as one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.count += 1
        return x


# Image encoders are always in evaluation mode: test_image_encoders.py.
@pytest.mark.parametrize("part", [part for part in PARTS if part != "IMAGE_ENCODERS"])
def test_a_factor_of_zero_freezes_a_part_wholly(make_model, make_inputs, tiny_cfg, part):
    """Parameters and statistics, also after train() and evaluations, and in a copy."""
    model = make_model(*BATCH_NORMS, *WHOLE)
    tiny_cfg.merge_from_list([*BATCH_NORMS, *WHOLE, f"MODEL.REGION_DH.LR_FACTORS.{part}", 0.0])
    # Each part gets a norm that really updates itself, run by hand below.
    owner = model.get_submodule(PARTS[part].rstrip("."))
    owner.extra = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(Counter()), nn.Dropout(0.5))
    optimizer = build_optimizer(tiny_cfg, model)
    state = copy.deepcopy(model.state_dict())
    model = copy.deepcopy(model)  # as DDP or an average of weights may do
    optimizer = build_optimizer(tiny_cfg, model)  # a second time changes nothing
    for _ in range(2):
        model.eval()
        model.train()
        torch.manual_seed(0)
        with EventStorage():
            losses = sum(model(with_squares(make_inputs((64, 64), (64, 64)), 32)).values())
        extra = model.get_submodule(PARTS[part].rstrip(".")).extra
        (losses + extra(torch.randn(5, 3)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    assert list(after) == list(state)
    frozen = [k for k in state if k.startswith(PARTS[part])]
    assert [k for k in frozen if not torch.equal(after[k], state[k])] == []
    assert any(k.endswith("extra.0.running_mean") for k in frozen)
    for other, prefix in PARTS.items():
        if other != part:
            names = [k for k in state if k.startswith(prefix)]
            assert any(not torch.equal(after[k], state[k]) for k in names), other
    assert extra[2].training  # dropout goes on
    assert extra[0].weight.requires_grad is False


def test_without_a_factor_of_zero_statistics_move(make_model, make_inputs, tiny_cfg):
    model = make_model(*BATCH_NORMS).train()
    freeze_parts(tiny_cfg, model)
    before = copy.deepcopy(model.state_dict())
    with EventStorage():
        model(make_inputs((64, 64), (64, 64)))
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert any(k.startswith("backbone.") and k.endswith("running_var") for k in moved)
    assert "roi_heads.image_hash.norm.running_mean" in moved


def test_a_frozen_part_may_itself_be_a_norm():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.BatchNorm1d(2)
            self.other = nn.Linear(2, 2)

    cfg = get_cfg()
    add_regiondh_config(cfg)
    cfg.MODEL.REGION_DH.LR_FACTORS.BACKBONE = 0.0
    model = Model()
    freeze_parts(cfg, model)
    model.train()
    model.backbone(torch.randn(4, 2))
    assert model.backbone.running_mean.abs().sum() == 0.0
    assert isinstance(model.backbone, nn.BatchNorm1d)


def test_nothing_left_to_train(make_model, tiny_cfg):
    for part in PARTS:
        tiny_cfg.MODEL.REGION_DH.LR_FACTORS[part] = 0.0
    with pytest.raises(RegionDHError, match=r"nothing is left to train: .+LR_FACTORS"):
        build_optimizer(tiny_cfg, make_model())
