"""What the script on joint training measures, against hand-worked networks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from experiments.joint import (
    LossFile,
    fix_statistics,
    gradient_norms,
    main,
    measure_statistics,
)


class Network(nn.Module):
    """Losses with known gradients on two weights, and a norm that reads the inputs."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 1, bias=False)
        self.roi_heads = nn.Module()
        self.roi_heads.image_hash = nn.Module()
        self.roi_heads.image_hash.norm = nn.BatchNorm1d(3, affine=False)

    def forward(self, inputs):
        if torch.is_tensor(inputs):
            self.roi_heads.image_hash.norm(inputs)
        first, second = self.backbone.weight[0]
        return {
            "loss_rpn_cls": first,
            "loss_rpn_loc": 2.0 * first,
            "loss_cls": -second,
            "loss_box_reg": 5.0 * second,
            "loss_cls_image": 7.0 * second,
            "loss_similarity_image": 100.0 * first,
        }


def test_gradients_are_those_of_each_group():
    # Detection: 1 + 2 on the first weight, -1 + 5 on the second.
    assert gradient_norms(Network(), []) == pytest.approx(
        {"detection": 5.0, "image classification": 7.0, "similarity": 100.0}
    )


def test_statistics_are_those_of_all_batches_and_stay():
    batches = np.random.default_rng(0).normal(3.0, 2.0, (6, 8, 3)).astype(np.float32)
    model = Network().train()
    measure_statistics(model, iter(torch.from_numpy(batches)), 6)
    norm = model.roi_heads.image_hash.norm
    np.testing.assert_allclose(norm.running_mean, batches.mean(axis=(0, 1)), rtol=1e-5)
    variance = batches.var(axis=1, ddof=1).mean(axis=0) + batches.mean(axis=1).var(axis=0)
    np.testing.assert_allclose(norm.running_var, variance, rtol=1e-5)
    assert norm.momentum == 0.1
    fix_statistics(norm)
    model.train()
    model(torch.zeros(8, 3))
    np.testing.assert_allclose(norm.running_var, variance, rtol=1e-5)


def test_means_of_losses_go_on_after_a_resume(tmp_path):
    losses = LossFile(tmp_path / "losses.jsonl")

    def run(first, last, value):
        for iteration in range(first, last):
            latest = {"loss_cls_image": (value + iteration, iteration), "lr": (0.1, iteration)}
            storage = SimpleNamespace(latest=lambda found=latest: found)
            losses.trainer = SimpleNamespace(storage=storage, iter=iteration)
            losses.after_step()

    run(0, 20, 0.0)
    run(10, 45, 100.0)  # from the checkpoint before
    assert losses.means("loss_cls_image") == [(45 + 5 * 112) / 15, 122.0, 137.0]
    assert "lr" not in json.loads(losses._path.read_text().splitlines()[0])


def test_a_wrong_key_is_one_line(tmp_path, capsys):
    assert main(["--output", str(tmp_path), "MODEL.REGION_DH.BITZ", "8"]) == 1
    error = capsys.readouterr().err
    assert "BITZ" in error
    assert error.count("\n") == 1
