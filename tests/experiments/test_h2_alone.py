"""H2 alone: what it reads, a step of its training, and the result of a row, on generated scenes."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from experiments.h2_alone import H2Inputs, fit_h2, h2_inputs, rank, train_h2
from experiments.queries import per_query
from experiments.result_files import ResultFolder
from experiments.rows import read_table
from regiondh_d2.data import register_scenes
from regiondh_d2.data.catalog import load_dataset
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.command import load_trained_model
from regiondh_d2.modeling.hashing import (
    bit_balance_loss,
    forcing_binary_loss,
    label_similarity_loss,
    multi_label_logistic_loss,
)
from regiondh_d2.retrieval.images import ImageLoader
from regiondh_d2.utils.errors import RegionDHError
from study import write_table

PREFIX = "h2_alone_test_"
DATABASE, SEARCH = (PREFIX + name for name in ("regiondh_scenes_database", "scenes_retrieval"))


@pytest.fixture
def row(random_network, tmp_path):
    """A function that makes a row with further opts, which trains H2 alone for a few steps."""
    register_scenes(random_network.scenes, PREFIX)
    parts = ("BACKBONE", "PROPOSAL_GENERATOR", "BOX_HEAD", "BOX_PREDICTOR", "INSTANCE_HASH")
    opts = [
        *random_network.opts,
        *("DATASETS.TRAIN", f"('{DATABASE}',)", "DATASETS.TEST", f"('{SEARCH}',)"),
        *("MODEL.REGION_DH.FEATURE_CACHE", str(tmp_path / "cache")),
        *("MODEL.REGION_DH.LOSS_WEIGHTS.SIMILARITY", 10.0, "INPUT.RANDOM_FLIP", "none"),
        *("SOLVER.MAX_ITER", 3, "SOLVER.IMS_PER_BATCH", 4, "TEST.RETRIEVAL.TOPK", 5),
        *(v for part in parts for v in (f"MODEL.REGION_DH.LR_FACTORS.{part}", 0.0)),
    ]

    def make(*more):
        values = {"title": "A", "config": random_network.config, "trains": "h2"}
        values |= {"bits": [48], "seeds": [0, 1]}  # as many bits as the weights have
        return read_table(write_table(tmp_path, a={**values, "opts": [*opts, *more]}))[0]

    return make


def test_the_result_of_a_row(row, tmp_path):
    """Another seed reads the same, and becomes another network."""
    run, other = row().runs()
    networks, results = tmp_path / "output", ResultFolder(tmp_path / "results")
    found = train_h2(run, networks, results)
    assert results.read(run)["metrics"] == found["metrics"]
    kept = per_query(run, networks, results, SEARCH, 5)  # checks the means
    assert set(kept) == {"MAP", "MAP_min", "NDCG", "ACG"}
    files = list((networks / "h2_inputs").iterdir())
    assert len(files) == 2
    again = train_h2(other, networks, results)
    assert sorted((networks / "h2_inputs").iterdir()) == sorted(files)
    assert again["model_fingerprint"] != found["model_fingerprint"]


def test_what_learns_below_h2_is_refused(row, tmp_path):
    run = row("MODEL.REGION_DH.LR_FACTORS.INSTANCE_HASH", 1.0).runs()[0]
    with pytest.raises(RegionDHError, match=r"row a trains h2 .*LR_FACTORS.INSTANCE_HASH to 0.0"):
        train_h2(run, tmp_path / "output", ResultFolder(tmp_path / "results"))


def test_what_h2_reads_is_what_it_reads_of_the_image(row, tmp_path):
    run = row().runs()[0]
    cfg = build_cfg(run.row.config, run.options(tmp_path / "output"))
    model = load_trained_model(cfg)
    found = h2_inputs(cfg, model, DATABASE, tmp_path / "inputs", "a network")
    read = []
    model.roi_heads.image_hash.register_forward_pre_hook(lambda _, x: read.append(x[0]))
    records = load_dataset(DATABASE)
    for record in records:
        model.encode_images([ImageLoader(cfg)(record["file_name"])])
    # Cached features are in half precision.
    torch.testing.assert_close(found.x, torch.cat(read), rtol=2e-2, atol=2e-2)
    for labels, record in zip(found.labels, records, strict=True):
        shown = {a["category_id"] for a in record["annotations"]}
        assert set(np.flatnonzero(labels)) == shown


def test_a_step_is_that_of_plain_gradient_descent(row, tmp_path):
    """On the losses of the paper and the similarity, worked out apart from the heads."""
    opts = {
        "MODEL.REGION_DH.LR_FACTORS.IMAGE_HASH": 2.0,
        "MODEL.REGION_DH.LOSS_WEIGHTS.BETA": "[1.0, 1.0, 3.0]",
        "SOLVER.CLIP_GRADIENTS.ENABLED": False,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "SOLVER.MAX_ITER": 1,
        "SOLVER.STEPS": "()",
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.WEIGHT_DECAY": 0.01,
    }
    run = row(*(word for pair in opts.items() for word in pair)).runs()[0]
    cfg = build_cfg(run.row.config, run.options(tmp_path / "output"))
    model = load_trained_model(cfg)
    head = model.roi_heads.image_hash
    x = torch.randn(4, head.latent.linear.in_features)
    labels = (torch.rand(4, head.classifier.out_features) < 0.5).float()
    apart = copy.deepcopy(head).train()
    codes = apart(x)
    gamma = cfg.MODEL.REGION_DH.LOSS_WEIGHTS.GAMMA_H2
    loss = (
        gamma[0] * forcing_binary_loss(codes.activations)
        + gamma[1] * bit_balance_loss(codes.activations)
        + 3.0 * multi_label_logistic_loss(codes.scores, labels)
        + 10.0 * label_similarity_loss(codes.activations, labels)
    )
    loss.backward()
    fit_h2(cfg, model, x, labels, seed=0)
    for one, old in zip(head.parameters(), apart.parameters(), strict=True):
        expected = old - 2.0 * cfg.SOLVER.BASE_LR * (old.grad + 0.01 * old)
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-6)
    assert not head.training


def test_a_database_is_searched_by_codes():
    """Three images by a fourth, which has the class and the code of the first."""
    head = nn.Module()
    head.latent = nn.Module()
    head.latent.bits = 8
    codes = torch.tensor([[1.0] * 8, [1.0] * 7 + [0.0], [0.0] * 8, [1.0] * 8])
    head.forward = lambda x: SimpleNamespace(activations=x)
    roles = np.array(["database", "database", "database", "query"])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    found = rank(head, H2Inputs(codes, labels, roles), 3)
    # Relevant at ranks 1 and 3: (1 + 2/3) / 2.
    assert found.metrics["MAP@3"] == pytest.approx((1 + 2 / 3) / 2)
