"""Trains and measures a run, and checks it before a result is stored.

A result is stored only for the network that was measured. A training is resumed only if the network
in its folder was trained with the row's config, starting weights and images
(:mod:`regiondh_d2.engine.training_record`).
"""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from regiondh_d2.data.check import is_present
from regiondh_d2.engine.command import CommandError
from regiondh_d2.engine.defaults import build_cfg, check_datasets
from regiondh_d2.engine.training_record import (
    Training,
    checkpoint_to_continue,
    data_checksum,
    last_checkpoint,
    same_data,
    weights_sha256,
)
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.file_io import write_json

from .queries import check_means, measure_queries, network_fingerprint
from .result_files import ResultFolder, as_dict, read_json, retrain
from .rows import Run

__all__ = ["check_result", "check_run", "provenance", "train_run"]

CHECKOUT = Path(__file__).resolve().parents[1]
TRAIN_NET = CHECKOUT / "tools" / "train_net.py"
BOX_AP = ("bbox/AP", "bbox/AP50")
SAVE_SECONDS = 30.0  # between writings of the time that the running part has taken


def check_result(
    run: Run, networks: Path, result: dict, checksum: Callable[[str], str] = data_checksum
) -> None:
    """Check that the row's config, weights and data haven't changed since a result.

    Missing files, such as the images of results that came with the table, aren't compared.

    Args:
        run: a run that is done.
        networks, checksum: see :func:`check_run`.
        result: what :meth:`.ResultFolder.read` returned.

    Raises:
        RegionDHError: the run would be trained with something else now.
    """
    recorded = result.get("settings_sha256")
    if recorded is None:  # of version 0.1
        return
    cfg = build_cfg(run.row.config, run.options(networks))
    fix = f"undo the change, or {retrain(run)}"
    if Training.of(cfg, None).settings_sha256 != recorded:
        raise RegionDHError(
            f"the result of {run.name} was trained with other settings than its row and "
            f"{run.row.config} have now: {fix}"
        )
    weights = weights_sha256(cfg.MODEL.WEIGHTS)
    if weights and weights != (result.get("weights_sha256") or weights):
        raise RegionDHError(
            f"the result of {run.name} was trained from another content of MODEL.WEIGHTS "
            f"{cfg.MODEL.WEIGHTS}: {fix}"
        )
    for name, before in as_dict(result.get("data_sha256")).items():
        if name not in DatasetCatalog.list() or not is_present(name):
            continue
        if not same_data(before, checksum(name)):
            raise RegionDHError(
                f"the result of {run.name} is of other images or objects of {name}: {fix}"
            )


def check_run(
    run: Run, networks: Path, checksum: Callable[[str], str] = data_checksum
) -> tuple[CfgNode, Training]:
    """Check that a run can be trained in its folder.

    Args:
        run: a run without a result.
        networks: the folder of all networks.
        checksum: :func:`.data_checksum`, which may be cached while many runs are checked.

    Returns:
        Its config, and the record of its training.

    Raises:
        RegionDHError: the row's config or options can't be used, or the network in the run's folder
            was trained with other settings, or has no record of them.
    """
    row = run.row
    try:
        cfg = build_cfg(row.config, run.options(networks))
        check_datasets(cfg)
        _check_measured(cfg)
        now = Training.of(cfg, checksum)
        for name in cfg.DATASETS.TEST:
            checksum(name)
    except KeyError as error:
        raise RegionDHError(f"row {row.name}: {error.args[0]}") from error
    except (RegionDHError, OSError, yaml.YAMLError) as error:
        raise RegionDHError(f"row {row.name}: {' '.join(str(error).split())}") from error
    fix = f"delete {cfg.OUTPUT_DIR}, or move it away, to train row {row.name} again"
    if checkpoint_to_continue(cfg.OUTPUT_DIR, now, fix) is None:
        path = cfg.MODEL.WEIGHTS
        # A file below the folder of networks may come from another row, which is trained first.
        known = not path or "://" in path or Path(path).is_relative_to(networks)
        if not known and not os.path.isfile(path):
            raise RegionDHError(f"row {row.name}: MODEL.WEIGHTS {path}: no such file")
    return cfg, now


def train_run(run: Run, networks: Path, results: ResultFolder) -> dict:
    """Train and evaluate a run, or resume it, and write its result.

    Returns:
        The result.

    Raises:
        RegionDHError: see :func:`check_run`; or another network was measured.
        CommandError: the training failed; the text names its log.
    """
    cfg, training = check_run(run, networks)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    command = run.command(networks)
    log, minutes = folder / "stdout.txt", Minutes(folder, training.sha256)
    arguments = [sys.executable, str(TRAIN_NET), "--resume", *command[1:]]
    status = _run_timed(arguments, log, minutes)
    if status != 0:
        raise CommandError(f"{run.name} failed (exit {status}): see {log}")
    result = {
        "metrics": {n: _metrics(folder, n) for n in cfg.DATASETS.TEST},
        "box_ap": _box_ap(folder, cfg.DATASETS.TEST) if cfg.TEST.RETRIEVAL.BOX_AP else {},
        "minutes": round(sum(minutes.parts), 1),
        "parts": len(minutes.parts),
        "model_fingerprint": network_fingerprint(run, networks),
        **provenance(run, networks, cfg, training, data_checksum),
    }
    if minutes.lost:
        result["audit"] = "its minutes are of the last part alone"
    arrays = {}
    for dataset in cfg.DATASETS.TEST:
        measured = measure_queries(run, networks, dataset, cfg.TEST.RETRIEVAL.TOPK)
        source = folder / "inference" / dataset
        check_means(run, measured, result["metrics"][dataset], dataset, source)
        arrays |= measured
    # First, since a run with a result counts as done.
    results.write_per_query(run, arrays)
    results.write(run, result)
    return result


def provenance(
    run: Run,
    networks: Path,
    cfg: CfgNode,
    training: Training,
    checksum: Callable[[str], str],
) -> dict[str, Any]:
    """What a result depends on, and where and when it was measured.

    Args:
        run, networks: a run, and the folder of all networks.
        cfg, training: what :func:`check_run` returned.
        checksum: as there.
    """
    return {
        "title": run.row.title,
        "command": shlex.join(run.command(networks)),
        "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "settings_sha256": training.settings_sha256,
        "weights_sha256": training.weights_sha256,
        "data_sha256": {n: checksum(n) for n in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)},
        "commit": _commit(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
    }


class Minutes:
    """The minutes that the parts of a training took, kept in its folder.

    Attributes:
        parts: of each part; the running one is the last.
        lost: whether the time of earlier parts is unknown.
    """

    def __init__(self, folder: Path, training: str):
        """
        Args:
            folder: of the training.
            training: a digest of the training's record; minutes of other trainings don't count.
        """
        self._file = folder / "minutes.json"
        self._training = training
        self._start = time.perf_counter()
        try:
            kept = as_dict(json.loads(self._file.read_text()))
        except (OSError, ValueError):
            kept = {}
        before = kept.get("minutes", []) if kept.get("training") == training else []
        self.lost = not before and last_checkpoint(folder) is not None
        self.parts = [*before, 0.0]

    def write(self) -> None:
        self.parts[-1] = (time.perf_counter() - self._start) / 60
        write_json(self._file, {"training": self._training, "minutes": self.parts})


def _run_timed(arguments: Sequence[str], log: Path, minutes: Minutes) -> int:
    """Run a command, and write its time every :data:`SAVE_SECONDS` and at its end.

    So a killed process loses no more than that.

    Returns:
        The command's exit status.
    """
    with open(log, "ab") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT)
        try:
            while True:
                minutes.write()
                try:
                    return process.wait(timeout=SAVE_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            minutes.write()


def _check_measured(cfg: CfgNode) -> None:
    """Check that there is something to measure after the training."""
    if not cfg.DATASETS.TRAIN or not cfg.DATASETS.TEST:
        raise RegionDHError("DATASETS.TRAIN and DATASETS.TEST must each name a dataset")
    for name in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(name).get("evaluator_type", None)
        if kind != "regiondh_retrieval":
            raise RegionDHError(
                f"DATASETS.TEST has {name!r}, which is no retrieval dataset (evaluator_type "
                f"{kind!r}): nothing would be measured"
            )


def _metrics(folder: Path, dataset: str) -> dict[str, float]:
    return read_json(folder / "inference" / dataset / "metrics.json")


def _box_ap(folder: Path, datasets: Sequence[str]) -> dict[str, float]:
    """Box AP on the queries of the first dataset; empty for networks without boxes."""
    # A line holds the scalars that were new when it was written.
    last: dict[str, float] = {}
    for line in (folder / "metrics.json").read_text(errors="replace").splitlines():
        with suppress(ValueError):  # a killed part may leave half a line
            last |= as_dict(json.loads(line))
    prefix = f"{datasets[0]}/" if len(datasets) > 1 else ""
    return {key: last[prefix + key] for key in BOX_AP if prefix + key in last}


def _commit() -> str:
    git = ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"]
    found = subprocess.run(git, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else ""
