"""Learning-rate factors of the parts of the network."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from regiondh_d2.engine.trainer import PARTS, build_optimizer

FACTORS = {
    "BACKBONE": 0.1,
    "PROPOSAL_GENERATOR": 0.2,
    "BOX_HEAD": 0.5,
    "BOX_PREDICTOR": 2.0,
    "INSTANCE_HASH": 5.0,
    "IMAGE_HASH": 10.0,
}


def settings(model, optimizer):
    """The parameter group of each trainable parameter, by name."""
    names = {p: n for n, p in model.named_parameters()}
    return {names[p]: group for group in optimizer.param_groups for p in group["params"]}


def set_factors(cfg, factors):
    for part, factor in factors.items():
        cfg.MODEL.REGION_DH.LR_FACTORS[part] = factor


def test_every_parameter_belongs_to_a_part(make_model, tiny_cfg):
    assert set(PARTS) == set(tiny_cfg.MODEL.REGION_DH.LR_FACTORS) == set(FACTORS)
    names = [n for n, _ in make_model().named_parameters()]
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
    model = make_model()
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
