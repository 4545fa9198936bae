"""The demo on generated scenes: train, encode, compare with two references, report, draw."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import get_event_storage
from fvcore.common.config import CfgNode

from ..data.datasets.scenes import generate_scenes, register_scenes
from ..evaluation import RetrievalEvaluator, evaluate_ranking
from ..retrieval.color_histogram import color_histograms, itq_codes
from ..structures.codes import CodeSet
from ..utils.errors import RegionDHError
from ..utils.file_io import check_output_folder, mark_folder, write_json
from ..utils.progress import Progress
from ..visualization.draw import save_image
from ..visualization.grid import draw_grid
from ..visualization.report import write_report
from ..visualization.retrieval_pictures import retrieval_rows
from .defaults import build_cfg, check_datasets, config_inputs
from .trainer import RegionDHTrainer, retrieval_evaluators

__all__ = ["DemoResult", "format_table", "run_demo"]

PREFIX = "demo_"  # of the dataset names: those without it belong to DETECTRON2_DATASETS
OUTPUTS = ("metrics.json", "query.h5", "database.h5", "retrieval.png", "report.html")
TABLE = ("MAP", "MAP_min", "NDCG", "ACG")
REFERENCES = {"color_histogram": "color histogram, ITQ", "untrained": "untrained network"}
PICTURE_QUERIES = 6
PICTURE_RESULTS = 5


@dataclass(frozen=True)
class DemoResult:
    """The results of a demo run.

    Attributes:
        metrics: the contents of ``metrics.json``: the trained network's metrics by name, those of
            the references under ``untrained/`` and ``color_histogram/``.
        topk: the cut-off k of the metrics.
        picture: path of ``retrieval.png``.
        page: path of ``report.html``.
    """

    metrics: dict[str, float]
    topk: int
    picture: Path
    page: Path


def run_demo(
    output: str | os.PathLike,
    config_file: str | os.PathLike,
    *,
    images: int = 400,
    queries: int = 100,
    iterations: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    log: Callable[[str], None] = print,
) -> DemoResult:
    """Generate scenes, train Region-DH on them, encode, evaluate, report and draw.

    Complete scenes of an earlier run are used again; everything else is made again. The results of
    an earlier run in ``output`` are removed first, after all arguments were checked.

    Args:
        output: folder for ``scenes/``, ``training/`` and the five results: new, empty, or of an
            earlier demo.
        config_file: a config for the scenes; its datasets and output folder are replaced.
        images, queries: number of database and of query images.
        iterations: training iterations, or None for the config's.
        seed: chooses the scenes, the initial weights and the order of training.
        overwrite: whether ``output`` may be any folder; files there with the demo's names are then
            lost.
        log: takes lines of progress.

    Returns:
        A :class:`DemoResult`.

    Raises:
        FileNotFoundError: there is no such config.
        FileExistsError: ``output`` is no folder of a demo, or ``output/scenes`` holds other scenes.
        ValueError: a parameter is out of range.
    """
    output = Path(output).expanduser()
    started = time.perf_counter()
    cfg = build_cfg(os.fspath(config_file), ["SEED", str(seed)])
    check_output_folder(
        output, inputs=config_inputs(os.fspath(config_file)), overwrite=overwrite, kind="demo"
    )
    _forget_datasets()
    dataset = register_scenes(output / "scenes", PREFIX)
    _adapt(cfg, output / "training", dataset, iterations)
    check_datasets(cfg)
    log(f"scenes: {images} to search in, {queries} to search with ({output / 'scenes'})")
    generate_scenes(output / "scenes", num_database=images, num_queries=queries, seed=seed)
    mark_folder(output, "demo")
    _remove_results(output)
    (output / "training").mkdir()
    _log_to_file(output / "training")
    test_cfg = cfg.clone()
    cfg.DATASETS.TEST = ()  # no evaluation by the trainer: the demo encodes itself

    seed_all_rng(cfg.SEED)
    trainer = RegionDHTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([_ProgressHook(log)])
    metrics: dict[str, float] = {}

    log("untrained: encoding with ImageNet weights and random hash layers")
    untrained = RetrievalEvaluator(dataset, topk=cfg.TEST.RETRIEVAL.TOPK)
    result = RegionDHTrainer.test(test_cfg, trainer.model, [untrained])
    metrics.update({f"untrained/{k}": v for k, v in result["retrieval"].items()})

    log(f"training: {cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images")
    trainer.train()

    log("encoding with the trained network")
    evaluator = RegionDHTrainer.build_evaluator(test_cfg, dataset)
    result = RegionDHTrainer.test(test_cfg, trainer.model, [evaluator])
    metrics.update(result["retrieval"])
    metrics.update({f"bbox/{k}": v for k, v in result.get("bbox", {}).items()})
    (trained,) = retrieval_evaluators(evaluator)
    assert trained.codes is not None  # it has evaluated
    query, database = trained.codes
    for name in ("query.h5", "database.h5"):
        shutil.move(output / "training" / "inference" / dataset / name, output / name)

    log("color histogram: encoding by iterative quantization")
    reference = _color_histogram_metrics(query, database, cfg.TEST.RETRIEVAL.TOPK)
    metrics.update({f"color_histogram/{k}": v for k, v in reference.items()})

    picture = output / "retrieval.png"
    _draw(query, database, picture)
    write_json(output / "metrics.json", metrics)
    page = output / "report.html"
    notes = write_report(
        page,
        output / "query.h5",
        output / "database.h5",
        topk=cfg.TEST.RETRIEVAL.TOPK,
        metrics_file=output / "metrics.json",
        title="Region-DH on generated scenes",
        ranked=trained.ranked,
    )
    for note in notes:
        log(f"warning: {note}")
    log(f"done in {(time.perf_counter() - started) / 60:.1f} minutes")
    return DemoResult(metrics, cfg.TEST.RETRIEVAL.TOPK, picture, page)


def format_table(result: DemoResult) -> str:
    """The main metrics of the trained network and the references, as lines of text."""
    lines = [f"{'':24}" + "".join(f"{f'{name}@{result.topk}':>12}" for name in TABLE)]
    for prefix, title in {**REFERENCES, "": "Region-DH"}.items():
        names = [f"{prefix}/{m}@{result.topk}" if prefix else f"{m}@{result.topk}" for m in TABLE]
        values = "".join(f"{result.metrics[name]:12.3f}" for name in names)
        lines.append(f"{title:24}{values}")
    return "\n".join(lines)


def _forget_datasets() -> None:
    """Unregister the datasets of an earlier demo of this process, perhaps in another folder."""
    for name in filter(re.compile(f"{PREFIX}(regiondh_)?scenes_").match, DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _adapt(cfg: CfgNode, folder: Path, dataset: str, iterations: int | None) -> None:
    """Point a config at the demo's datasets and folder, in place."""
    cfg.DATASETS.TRAIN = (f"{PREFIX}regiondh_scenes_database",)
    cfg.DATASETS.TEST = (dataset,)
    cfg.OUTPUT_DIR = str(folder)
    if iterations is not None:
        if iterations < 1:
            raise RegionDHError(f"training needs at least one iteration, got {iterations}")
        cfg.SOLVER.MAX_ITER = iterations
    cfg.SOLVER.WARMUP_ITERS = min(cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER // 4)
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.SOLVER.MAX_ITER + 1  # the final one is enough


def _remove_results(output: Path) -> None:
    """Remove files of an earlier run with the demo's names, and nothing else."""
    for name in OUTPUTS:
        (output / name).unlink(missing_ok=True)
    training = output / "training"
    if training.is_symlink():  # its target is not the demo's
        training.unlink()
    elif training.exists():
        shutil.rmtree(training)


def _log_to_file(folder: Path) -> None:
    """Send the long logs to a file; the terminal gets only the demo's own lines."""
    handler = logging.FileHandler(folder / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    for name in ("detectron2", "fvcore", "regiondh_d2"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for old in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
            logger.removeHandler(old)
            old.close()
        logger.addHandler(handler)


class _ProgressHook(HookBase):
    """Shows the progress of a training, with its losses."""

    def __init__(self, log: Callable[[str], None], every: float = 15.0):
        self._log = log
        self._every = every

    def before_train(self) -> None:
        self._progress = Progress(
            self._log, "training iterations", self.trainer.max_iter, self._every
        )

    def after_step(self) -> None:
        losses = get_event_storage().histories()
        shown = ", ".join(
            f"{name} {losses[key].median(20):.2f}"
            for name, key in (("regions", "loss_cls"), ("images", "loss_cls_image"))
            if key in losses
        )
        self._progress.show(self.trainer.iter + 1, shown and f"classification loss of {shown}")


def _color_histogram_metrics(query: CodeSet, database: CodeSet, topk: int) -> dict[str, float]:
    """The metrics of ITQ codes of color histograms, learned from the database's images.

    They are as long as the network's codes, or shorter if the database is too small.
    """
    features = [color_histograms(codes.file_names) for codes in (query, database)]
    bits = min(query.bits, len(database))
    query_codes, database_codes = itq_codes(features[1], *features, bits=bits)
    return evaluate_ranking(
        query_codes,
        database_codes,
        query.column("labels"),
        database.column("labels"),
        bits=bits,
        topk=topk,
    ).metrics


def _draw(query: CodeSet, database: CodeSet, path: Path) -> None:
    """Draw the answers to some queries, taken at even distances to avoid a biased choice."""
    count = min(PICTURE_QUERIES, len(query))
    rows = np.linspace(0, len(query) - 1, count).round().astype(int).tolist()
    tiles = retrieval_rows(query, database, rows, PICTURE_RESULTS)
    title = f"Region-DH: the nearest of {len(database)} scenes by {query.bits}-bit codes"
    save_image(draw_grid(tiles, title), path)
