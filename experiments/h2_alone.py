"""Trains H2 alone, on what it reads of each image, which is computed once: seconds a run.

A row of the study with ``trains: h2`` is trained so. Everything below H2 must be frozen
(``MODEL.REGION_DH.LR_FACTORS``); then H2's inputs never change. H2 and its classifier start anew,
whatever ``MODEL.WEIGHTS`` holds of them. Losses, their weights, optimizer and schedule are those of
the config. Batches are in another order than those of the library's trainer, which trains the same
in minutes.

Inputs are kept in the folder of all networks, in ``h2_inputs``, for all rows that read the same.
"""

import copy
import functools
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler

from regiondh_d2.checkpoint import RegionDHCheckpointer, state_fingerprint
from regiondh_d2.config import code_settings
from regiondh_d2.data.catalog import load_dataset
from regiondh_d2.data.retrieval import with_labels
from regiondh_d2.engine.feature_cache import FeatureCache
from regiondh_d2.engine.network import build_network
from regiondh_d2.engine.optimizer import build_optimizer
from regiondh_d2.engine.training_record import data_checksum
from regiondh_d2.evaluation.ranking_metrics import RankingResult, evaluate_ranking
from regiondh_d2.modeling.cached import CachedNetwork
from regiondh_d2.modeling.hashing import ImageHashHead, binarize
from regiondh_d2.modeling.roi_heads import image_code_losses
from regiondh_d2.structures.packed import pack_codes
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.file_io import replace_when_complete

from .queries import SHOWN
from .result_files import ResultFolder
from .rows import Run
from .runs import check_run, provenance

__all__ = ["H2Inputs", "fit_h2", "h2_inputs", "rank", "train_h2"]


# Of the images of a dataset, once a process: it takes as long as a training.
_checksum = functools.cache(data_checksum)


@dataclass(frozen=True)
class H2Inputs:
    """What H2 reads of the N images of a dataset.

    Attributes:
        x: float32 (N, D).
        labels: float32 (N, C) of 0 and 1.
        roles: (N,), "query", "database" or "both"; empty texts for a dataset without roles.
    """

    x: torch.Tensor
    labels: torch.Tensor
    roles: np.ndarray


def train_h2(run: Run, networks: Path, results: ResultFolder) -> dict:
    """Train and evaluate H2 of a run, and write its result.

    Returns:
        The result.

    Raises:
        RegionDHError: see :func:`.check_run`; or something below H2 isn't frozen.
    """
    cfg, training = check_run(run, networks, _checksum)
    learning = [part for part, factor in cfg.MODEL.REGION_DH.LR_FACTORS.items() if factor]
    # Without an OBJECT_CODE its factor means nothing.
    learning = [part for part in learning if part not in ("IMAGE_HASH", "OBJECT_HASH")]
    if learning:
        raise RegionDHError(
            f"row {run.row.name} trains h2 alone: set MODEL.REGION_DH.LR_FACTORS."
            f"{learning[0]} to 0.0"
        )
    start = time.perf_counter()
    torch.manual_seed(run.seed)
    model: Any = build_network(cfg)
    new = copy.deepcopy(model.roi_heads.image_hash)
    RegionDHCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    model.roi_heads.image_hash = new
    folder = networks / "h2_inputs"
    source = f"{training.weights_sha256 or cfg.MODEL.WEIGHTS} {code_settings(cfg)}"
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    inputs = {name: h2_inputs(cfg, model, name, folder, source) for name in names}
    seen = [inputs[name] for name in cfg.DATASETS.TRAIN]
    fit_h2(
        cfg,
        model,
        torch.cat([part.x for part in seen]),
        torch.cat([part.labels for part in seen]),
        seed=run.seed,
    )
    topk = cfg.TEST.RETRIEVAL.TOPK
    found = {name: rank(new, inputs[name], topk) for name in cfg.DATASETS.TEST}
    result = {
        "metrics": {name: ranked.metrics for name, ranked in found.items()},
        "box_ap": {},
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "parts": 1,
        "model_fingerprint": state_fingerprint(new.state_dict()),
        **provenance(run, networks, cfg, training, _checksum),
    }
    # First, since a run with a result counts as done.
    results.write_per_query(
        run,
        {
            f"{name}/{metric}@{topk}": np.float16(ranked.per_query[f"{metric}@{topk}"])
            for name, ranked in found.items()
            for metric in SHOWN
        },
    )
    results.write(run, result)
    return result


def h2_inputs(cfg: CfgNode, model: Any, name: str, folder: Path, source: str) -> H2Inputs:
    """What H2 reads of the images of a dataset, from ``folder`` or computed and kept there.

    Args:
        cfg, model: a config with a ``FEATURE_CACHE``, and its network with its weights.
        name: a registered dataset.
        folder: where inputs are kept; it need not exist.
        source: what the inputs depend on beside the dataset's images.

    Raises:
        RegionDHError, OSError: the cache can't be read or made, see :class:`.FeatureCache`.
    """
    labels, roles = _labels_and_roles(name, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    digest = hashlib.sha256(f"{source} {_checksum(name)}".encode()).hexdigest()[:16]
    path = folder / f"{name}.{digest}.npy"
    if not path.is_file():
        model.eval()
        cache, network, read = FeatureCache(cfg), CachedNetwork(model), []
        cache.ensure(model, name, mirrored=False)
        hook = model.roi_heads.image_hash.register_forward_pre_hook(
            lambda module, inputs: read.append(inputs[0].float().cpu().numpy())
        )
        for batch in cache.test_loader(name):
            network.encode_images(batch)
        hook.remove()
        with replace_when_complete(path) as partial, open(partial, "wb") as file:
            np.save(file, np.concatenate(read))
    return H2Inputs(torch.from_numpy(np.load(path)), labels, roles)


@functools.cache
def _labels_and_roles(name: str, num_classes: int) -> tuple[torch.Tensor, np.ndarray]:
    records = [with_labels(record) for record in load_dataset(name)]
    labels = torch.zeros(len(records), num_classes)
    for row, record in zip(labels, records, strict=True):
        row[record["image_labels"]] = 1.0
    return labels, np.array([record.get("role", "") for record in records])


def fit_h2(cfg: CfgNode, model: Any, x: torch.Tensor, labels: torch.Tensor, *, seed: int) -> None:
    """Train H2 and its classifier in place, by the config's losses and solver.

    Args:
        cfg, model: the config, and its network.
        x, labels: what H2 reads, (N, D), and labels (N, C).
        seed: of the order of the images, which is new in each pass.
    """
    heads, batch = model.roi_heads, cfg.SOLVER.IMS_PER_BATCH
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    generator = torch.Generator().manual_seed(seed)
    passes = -(-cfg.SOLVER.MAX_ITER * batch // len(x))
    order = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(passes)])
    heads.image_hash.train()
    for rows in order.split(batch)[: cfg.SOLVER.MAX_ITER]:
        losses = image_code_losses(heads, heads.image_hash(x[rows]), labels[rows])
        loss = sum(model.loss_weights.apply_image(losses).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    heads.image_hash.eval()


@torch.no_grad()
def rank(head: ImageHashHead, inputs: H2Inputs, topk: int) -> RankingResult:
    """Search the database of a retrieval dataset with its queries, by the codes of a head.

    Args:
        head: H2, in evaluation mode.
        inputs: of all images of the dataset.
        topk: cut-off of the metrics.
    """
    codes = pack_codes(binarize(head(inputs.x).activations).numpy())
    labels = inputs.labels.numpy().astype(bool)
    query, database = inputs.roles != "database", inputs.roles != "query"
    return evaluate_ranking(
        codes[query],
        codes[database],
        labels[query],
        labels[database],
        bits=head.latent.bits,
        topk=topk,
    )
