"""Experiments as a table: rows of configs, each trained at some lengths and seeds, and measured.

A *run* is one training: a row, a code length and a seed. It ends in one JSON file, which holds what
was measured and all that it depends on; a run whose file is there is done. Beside it,
``per_query/<run>.npz`` holds each query's metrics, for bootstraps. Tables for documents are made of
these files alone.

A result is filed for the network that was measured, and for no other. A training goes on only where
the network in its folder was trained with the row's config, starting weights and images
(:mod:`.training_record`); code files and kept metrics must be of the network of the result.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..checkpoint import read_weights, state_fingerprint
from ..data.check import is_present
from ..evaluation.retrieval_evaluator import rank_code_sets
from ..retrieval.code_store import read_codes
from ..structures.codes import CodeSet
from ..utils.errors import InputNotFoundError, RegionDHError
from ..utils.file_io import replace_when_complete, write_json
from .command import CommandError
from .defaults import build_cfg, check_datasets
from .training_record import (
    Training,
    data_checksum,
    last_checkpoint,
    phrase,
    recorded_training,
    weights_sha256,
)

__all__ = [
    "Row",
    "Run",
    "differences",
    "differences_file",
    "fill_document",
    "markdown_differences",
    "markdown_table",
    "paired_bootstrap",
    "picked_rows",
    "read_differences",
    "read_table",
    "require_metrics",
    "require_results",
]

TRAIN_NET = Path(__file__).parents[2] / "tools" / "train_net.py"
BOX_AP = ("bbox/AP", "bbox/AP50")
SHOWN = ("MAP", "MAP_min", "NDCG", "ACG")
SAVE_MINUTES = 30.0  # seconds between writings of the time that a running part has taken
MARK = "†"
BLOCK = re.compile(
    r"(?P<begin><!-- (?P<what>table|differences): (?P<dataset>\S+)(?P<names>[^>]*) -->\n).*?"
    r"(?P<end><!-- end -->)",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: a method, or one change to it.

    Attributes:
        name: of files and on the command line.
        title: for readers.
        config: path of a yaml file.
        bits, seeds: what it is trained at.
        opts: KEY VALUE pairs that differ from the config; ``{seed}`` stands for the seed and
            ``{output}`` for the folder of all runs' outputs, where a run finds another's network.
    """

    name: str
    title: str
    config: str
    bits: tuple[int, ...]
    seeds: tuple[int, ...]
    opts: tuple[str, ...] = ()

    def runs(self) -> list["Run"]:
        return [Run(self, bits, seed) for bits in self.bits for seed in self.seeds]


@dataclasses.dataclass(frozen=True)
class Run:
    row: Row
    bits: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row.name}_{self.bits}_seed{self.seed}"

    def result_file(self, results: Path) -> Path:
        return results / f"{self.name}.json"

    def result(self, results: Path) -> dict | None:
        """What :meth:`train` wrote, None where it hasn't.

        Raises:
            RegionDHError: the file is damaged, or the row has other options now than the result.
        """
        file = self.result_file(results)
        if not file.is_file():
            if os.path.lexists(file):
                raise RegionDHError(f"{file} is no file: move it away, since the result goes there")
            return None
        result = _read_json(file)
        missing = [k for k in ("metrics", "box_ap", "minutes") if k not in _dict(result)]
        metrics = [] if missing else _dict(result["metrics"]).values()
        if missing or not metrics or not all(isinstance(m, dict) for m in metrics):
            raise RegionDHError(
                f"{file} is damaged (no {missing[0] if missing else 'metrics'}): restore it, or "
                "delete it to train again"
            )
        minutes, boxes = result["minutes"], result["box_ap"]
        if not _is_number(minutes) or not all(map(_is_number, _dict(boxes).values())):
            raise RegionDHError(
                f"{file} is damaged (minutes {minutes!r}, box_ap {boxes!r}): restore it, or delete "
                "it to train again"
            )
        self._check_command(result.get("command"), file)
        return result

    def _check_command(self, command: str | None, file: Path) -> None:
        """Refuses a result that was trained by other options than the row has now."""
        if not isinstance(command, str) or not command:
            return
        try:
            theirs = shlex.split(command)
        except ValueError as error:
            raise RegionDHError(
                f"{file} is damaged (command: {error}): restore it, or delete it to train again"
            ) from error
        # The folder of outputs is the user's choice: theirs is that of the command's OUTPUT_DIR.
        ours = self.command(Path(theirs[-1] if theirs else "").parent)
        if theirs == ours:
            return
        old, new = (dict(zip(c[1::2], c[2::2], strict=False)) for c in (theirs, ours))
        key = next((k for k in {**old, **new} if old.get(k) != new.get(k)), "another order of opts")
        raise RegionDHError(
            f"{file} was trained with {key} {old.get(key, '(none)')}, and row {self.row.name} has "
            f"{new.get(key, '(none)')} now: give the row back its options, or delete the file to "
            "train again"
        )

    def per_query_file(self, results: Path) -> Path:
        return results / "per_query" / f"{self.name}.npz"

    def per_query(
        self, output: Path, results: Path, dataset: str, topk: int
    ) -> dict[str, np.ndarray] | None:
        """``SHOWN`` of each query, kept with the result, or else measured with the code files.

        What is measured is kept from then on, so that it outlives the code files.

        Returns:
            Metric names to float64 arrays (Q,), NaN where a query has no relevant image; None where
            there are neither kept values nor code files.

        Raises:
            RegionDHError: the file of kept values is damaged; or it, or a code file, is of another
                network than the result.
        """
        file = self.per_query_file(results)
        kept = _read_arrays(file) if file.is_file() else {}
        names = {metric: _array_name(dataset, metric, topk) for metric in SHOWN}
        result = self.result(results) or {}
        source = file
        if not kept.keys() >= set(names.values()):
            measured = self._measure_queries(output, dataset, topk)
            if not measured:
                return None
            kept |= measured
            source = output / self.name / "inference" / dataset
        known = result.get("metrics", {}).get(dataset, {})
        self._check_means(kept, known, dataset, source)
        if source != file:
            _write_arrays(file, kept)
        return {metric: kept[name].astype(np.float64) for metric, name in names.items()}

    def _check_means(self, arrays: dict, metrics: dict, dataset: str, source: Path) -> None:
        """Refuses values of queries whose means aren't the metrics of the result.

        Networks that differ at all differ in these means, and they need no fingerprint.
        """
        for name, known in metrics.items():
            values = arrays.get(f"{dataset}/{name}")
            if values is None or np.isnan(values).all():
                continue
            values = values.astype(np.float64)
            # Half precision rounds each value by 2^-11 of itself at most.
            if abs(np.nanmean(values) - known) > 2.0**-11 * np.nanmean(abs(values)) + 1e-6:
                raise RegionDHError(
                    f"{source} is of another network than the result of {self.name}: {name} on "
                    f"{dataset} is {np.nanmean(values):.4f} there and {known:.4f} in the result; "
                    "delete the one that is wrong"
                )

    def _measure_queries(self, output: Path, dataset: str, topk: int) -> dict[str, np.ndarray]:
        """The arrays that the file of kept values has of a dataset; none without code files."""
        codes = self.read_codes(output, dataset)
        if codes is None:
            return {}
        found, _ = rank_code_sets(*codes, topk)
        # Half precision halves the files, to 20 KB for 3,000 queries; it moves a mean by 1e-5.
        return {
            _array_name(dataset, metric, topk): np.float16(found.per_query[f"{metric}@{topk}"])
            for metric in SHOWN
        }

    def read_codes(self, output: Path, dataset: str) -> tuple[CodeSet, CodeSet] | None:
        """Codes of the queries and of the database, None where their files aren't there.

        Raises:
            CodeFileError: a file is damaged.
            RegionDHError: a file is of another network than the last one in the run's folder.
        """
        folder = output / self.name / "inference" / dataset
        files = [folder / f"{role}.h5" for role in ("query", "database")]
        if not all(file.is_file() for file in files):
            return None
        codes = tuple(map(read_codes, files))
        network = self.network_fingerprint(output)
        for file, code_set in zip(files, codes, strict=True):
            if network and code_set.model_fingerprint not in ("", network):
                raise RegionDHError(
                    f"{file} was coded by model {code_set.model_fingerprint[:12]}, not by "
                    f"{output / self.name / 'model_final.pth'} ({network[:12]}): delete the folder "
                    f"{folder.parent} and run the row again to measure that"
                )
        return codes

    def network_fingerprint(self, output: Path) -> str:
        """The fingerprint of the trained network in the run's folder, "" where there is none."""
        file = output / self.name / "model_final.pth"
        if not file.is_file():
            return ""
        content = read_weights(file)
        if "model" not in _dict(content):
            raise RegionDHError(f"{file} holds no network: delete the folder to train again")
        return state_fingerprint(content["model"])

    def options(self, output: Path) -> list[str]:
        """The KEY VALUE pairs of its training."""
        given = ("MODEL.REGION_DH.BITS", str(self.bits), "SEED", str(self.seed))
        seed = str(self.seed)
        opts = (o.replace("{seed}", seed).replace("{output}", str(output)) for o in self.row.opts)
        return [*opts, *given, "OUTPUT_DIR", str(output / self.name)]

    def command(self, output: Path) -> list[str]:
        return ["tools/train_net.py", "--config-file", self.row.config, *self.options(output)]

    def check_result(
        self, output: Path, result: dict, checksum: Callable[[str], str] = data_checksum
    ) -> None:
        """Refuses a result of this run whose row's config, weights or data have changed since.

        What isn't here, such as the images of results that came with the table, isn't compared.

        Args:
            output, checksum: as of :meth:`check`.
            result: of :meth:`result`.

        Raises:
            RegionDHError: what the row would be trained with now isn't what the result was.
        """
        recorded = result.get("settings_sha256")
        if recorded is None:  # of version 0.1
            return
        cfg = build_cfg(self.row.config, self.options(output))
        fix = "undo the change, or delete the result to train again"
        if Training.of(cfg, None).settings_sha256 != recorded:
            raise RegionDHError(
                f"the result of {self.name} was trained with other settings than its row and "
                f"{self.row.config} have now: {fix}"
            )
        weights = weights_sha256(cfg.MODEL.WEIGHTS)
        if weights and weights != (result.get("weights_sha256") or weights):
            raise RegionDHError(
                f"the result of {self.name} was trained from another content of MODEL.WEIGHTS "
                f"{cfg.MODEL.WEIGHTS}: {fix}"
            )
        for name, before in _dict(result.get("data_sha256")).items():
            if name not in DatasetCatalog.list() or not is_present(name):
                continue
            if checksum(name) != before:
                raise RegionDHError(
                    f"the result of {self.name} is of other images or objects of {name}: {fix}"
                )

    def check(
        self, output: Path, checksum: Callable[[str], str] = data_checksum
    ) -> tuple[CfgNode, Training]:
        """All that can be known before its training: that it can begin, and in which folder.

        Args:
            output: the folder of all runs' outputs.
            checksum: :func:`.data_checksum`, which may be cached while many runs are checked.

        Returns:
            Its config, and what it would be trained with.

        Raises:
            RegionDHError: the row's config or options can't be used, or the run's folder has a
                network that was trained with something else, or doesn't say with what.
        """
        try:
            cfg = build_cfg(self.row.config, self.options(output))
            check_datasets(cfg)
            _check_measured(cfg)
            now = Training.of(cfg, checksum)
            for name in cfg.DATASETS.TEST:
                checksum(name)
        except KeyError as error:
            raise RegionDHError(f"row {self.row.name}: {error.args[0]}") from error
        except (RegionDHError, OSError, yaml.YAMLError) as error:
            raise RegionDHError(f"row {self.row.name}: {' '.join(str(error).split())}") from error
        checkpoint = last_checkpoint(cfg.OUTPUT_DIR)
        if checkpoint is None:
            path = cfg.MODEL.WEIGHTS
            # Those below the outputs may be another row's, which is trained before.
            known = not path or "://" in path or Path(path).is_relative_to(output)
            if not known and not os.path.isfile(path):
                raise RegionDHError(f"row {self.row.name}: MODEL.WEIGHTS {path}: no such file")
            return cfg, now
        fix = f"delete {cfg.OUTPUT_DIR}, or move it away, to train row {self.row.name} anew"
        if not checkpoint.is_file():
            raise RegionDHError(f"{checkpoint}, the last checkpoint there, is missing: {fix}")
        before = recorded_training(checkpoint)
        if before is None:
            raise RegionDHError(
                f"{checkpoint} doesn't say what it was trained with, as those of version 0.1 "
                f"don't: {fix}"
            )
        changes = before.changes(now)
        if changes:
            raise RegionDHError(f"{checkpoint} was trained with {phrase(changes)}: {fix}")
        if before.earlier:
            raise RegionDHError(
                f"{checkpoint} was trained in parts of different settings, by --resume: {fix}"
            )
        return cfg, now

    def train(self, output: Path, results: Path) -> dict:
        """Train and evaluate, or go on with it, and write the result.

        Raises:
            RegionDHError: see :meth:`check`; or what was measured is of another network.
            CommandError: the training failed; the text names its log.
        """
        cfg, training = self.check(output)
        folder = Path(cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        command = self.command(output)
        log, minutes = folder / "stdout.txt", _Minutes(folder, training.sha256)
        arguments = [sys.executable, str(TRAIN_NET), "--resume", *command[1:]]
        code = _run_timed(arguments, log, minutes)
        if code != 0:
            raise CommandError(f"{self.name} failed (exit {code}): see {log}")
        result = {
            "row": self.row.name,
            "title": self.row.title,
            "bits": self.bits,
            "seed": self.seed,
            "command": shlex.join(command),
            "metrics": {n: _metrics(folder, n) for n in cfg.DATASETS.TEST},
            "box_ap": _box_ap(folder, cfg.DATASETS.TEST) if cfg.TEST.RETRIEVAL.BOX_AP else {},
            "minutes": round(sum(minutes.parts), 1),
            "parts": len(minutes.parts),
            "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
            "settings_sha256": training.settings_sha256,
            "weights_sha256": training.weights_sha256,
            "model_fingerprint": self.network_fingerprint(output),
            "data_sha256": {n: data_checksum(n) for n in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)},
            "commit": _commit(),
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "date": date.today().isoformat(),
        }
        if minutes.lost:
            result["audit"] = "its minutes are of the last part alone"
        per_query = {}
        for dataset in cfg.DATASETS.TEST:
            measured = self._measure_queries(output, dataset, cfg.TEST.RETRIEVAL.TOPK)
            source = folder / "inference" / dataset
            self._check_means(measured, result["metrics"][dataset], dataset, source)
            per_query |= measured
        # First, since a run that has a result counts as done.
        _write_arrays(self.per_query_file(results), per_query)
        write_json(self.result_file(results), result)
        return result


class _Minutes:
    """The minutes that the parts of a training took, kept in its folder.

    Attributes:
        parts: of each part, the running one last.
        lost: whether the network was begun by parts of which nothing is known.
    """

    def __init__(self, folder: Path, training: str):
        """
        Args:
            folder: of the training.
            training: what it is trained with; the minutes of anything else don't count.
        """
        self._file = folder / "minutes.json"
        self._training = training
        self._start = time.perf_counter()
        try:
            kept = _dict(json.loads(self._file.read_text()))
        except (OSError, ValueError):
            kept = {}
        before = kept.get("minutes", []) if kept.get("training") == training else []
        self.lost = not before and last_checkpoint(folder) is not None
        self.parts = [*before, 0.0]

    def write(self) -> None:
        self.parts[-1] = (time.perf_counter() - self._start) / 60
        write_json(self._file, {"training": self._training, "minutes": self.parts})


def _run_timed(arguments: Sequence[str], log: Path, minutes: _Minutes) -> int:
    """The exit status of a command, whose time is known up to the last half minute if this process
    is killed with it."""
    with open(log, "ab") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT)
        try:
            while True:
                minutes.write()
                try:
                    return process.wait(timeout=SAVE_MINUTES)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            minutes.write()


def _check_measured(cfg: CfgNode) -> None:
    """Refuses datasets on which nothing would be measured after the training."""
    if not cfg.DATASETS.TRAIN or not cfg.DATASETS.TEST:
        raise RegionDHError("DATASETS.TRAIN and DATASETS.TEST must each name a dataset")
    for name in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(name).get("evaluator_type", None)
        if kind != "regiondh_retrieval":
            raise RegionDHError(
                f"DATASETS.TEST has {name!r}, which is no retrieval dataset (evaluator_type "
                f"{kind!r}): nothing would be measured"
            )


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class _TableLoader(yaml.SafeLoader):
    """A loader that refuses a key given twice: of two rows of a name one would be lost."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise RegionDHError(f"{twice[0]} stands twice in it")
        return super().construct_mapping(node, deep)


def read_table(path: str | os.PathLike) -> list[Row]:
    """The rows of a table file.

    It holds ``defaults`` (``config``, ``bits``, ``seeds``, ``opts``) and ``rows``, from a name to
    ``title`` and what differs; a row's ``opts`` follow the defaults'.

    Raises:
        InputNotFoundError: there is no such file.
        RegionDHError: the file isn't such a table; the text names the row.
    """
    try:
        table = yaml.load(Path(path).read_text(encoding="utf-8"), _TableLoader)  # a safe one
        return _rows(table)
    except FileNotFoundError as error:
        raise InputNotFoundError(f"{path}: no such table of experiments") from error
    except UnicodeDecodeError as error:
        raise RegionDHError(f"{path} is no table of experiments: it is no UTF-8 text") from error
    except (yaml.YAMLError, RegionDHError) as error:
        why = " ".join(str(error).split())
        raise RegionDHError(f"{path} is no table of experiments: {why}") from error


def _rows(table: Any) -> list[Row]:
    if not isinstance(table, dict):
        raise RegionDHError(f"it holds {_kind(table)}, where defaults: and rows: must stand")
    _check_keys(table, ("defaults", "rows"), "it")
    defaults, rows = table.get("defaults") or {}, table.get("rows")
    if not isinstance(defaults, dict):
        raise RegionDHError(f"defaults are {_kind(defaults)}, where KEY: VALUE must stand")
    _check_keys(defaults, ROW_KEYS, "defaults")
    if not isinstance(rows, dict) or not rows:
        raise RegionDHError(f"rows are {_kind(rows)}, where NAME: and its values must stand")
    return [_row(name, defaults, row) for name, row in rows.items()]


def _kind(value: Any) -> str:
    return "nothing" if not value else f"a {type(value).__name__}"


def _check_keys(values: dict, known: Sequence[str], whose: str) -> None:
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise RegionDHError(f"{whose}: {unknown[0]} is unknown; known: {', '.join(known)}")


def picked_rows(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows of those names, in the order of the table; all of them where none is named.

    Raises:
        CommandError: there is no row of a name.
    """
    known = [row.name for row in rows]
    for name in names:
        if name not in known:
            raise CommandError(f"{name} is no row of the table; known: {', '.join(known)}")
    return [row for row in rows if not names or row.name in names]


ROW_KEYS = ("title", "config", "bits", "seeds", "opts")
# What a run's own bits, seed and folder set.
_OWN_OPTIONS = {"MODEL.REGION_DH.BITS": "bits", "SEED": "seeds", "OUTPUT_DIR": "--output"}


def _row(name: str, defaults: dict, row: dict) -> Row:
    """A row, checked.

    Raises:
        RegionDHError: a value is missing, unknown or of the wrong kind; the text names the row.
    """
    whose = f"row {name}"
    # Files and folders have this name.
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name):
        raise RegionDHError(f"{whose}: its name must be of letters, digits and _ . + -")
    if not isinstance(row, dict):
        raise RegionDHError(f"{whose} is {_kind(row)}, where KEY: VALUE must stand")
    _check_keys(row, ROW_KEYS, whose)
    values = {**defaults, **row}
    for key in ("title", "config"):
        if not isinstance(values.get(key), str):
            raise RegionDHError(f"{whose}: {key} is {_missing(values, key)}, not text")
    for key, least in (("bits", 1), ("seeds", 0)):
        numbers = values.get(key)
        if (
            not isinstance(numbers, list)
            or not numbers
            or not all(type(n) is int and n >= least for n in numbers)
            or len(set(numbers)) < len(numbers)
        ):
            raise RegionDHError(
                f"{whose}: {key} is {_missing(values, key)}, not a list of different whole numbers "
                f"of at least {least}, such as [48]"
            )
    opts: list[str] = []
    for given in (defaults.get("opts", []), row.get("opts", [])):
        if not isinstance(given, list) or any(isinstance(x, dict) for x in given) or len(given) % 2:
            raise RegionDHError(f"{whose}: opts are no list of pairs KEY, VALUE: {given!r}")
        opts += map(str, given)
    for key in opts[::2]:
        if key in _OWN_OPTIONS:
            raise RegionDHError(f"{whose}: opts set {key}, which {_OWN_OPTIONS[key]} does")
    return Row(
        name=name,
        title=values["title"],
        config=values["config"],
        bits=tuple(values["bits"]),
        seeds=tuple(values["seeds"]),
        opts=tuple(opts),
    )


def _missing(values: dict, key: str) -> str:
    return repr(values[key]) if key in values else "missing"


def _metrics(folder: Path, dataset: str) -> dict[str, float]:
    return _read_json(folder / "inference" / dataset / "metrics.json")


def _box_ap(folder: Path, datasets: Sequence[str]) -> dict[str, float]:
    """Box AP on the queries of the first dataset; empty for networks without boxes."""
    # A line holds the scalars that were new at its time.
    last: dict[str, float] = {}
    for line in (folder / "metrics.json").read_text(errors="replace").splitlines():
        with suppress(ValueError):  # a part that was killed may leave half a line
            last |= _dict(json.loads(line))
    prefix = f"{datasets[0]}/" if len(datasets) > 1 else ""
    return {key: last[prefix + key] for key in BOX_AP if prefix + key in last}


def _array_name(dataset: str, metric: str, topk: int) -> str:
    return f"{dataset}/{metric}@{topk}"


def _read_json(path: Path) -> dict | list:
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # of JSON, or of text that isn't UTF-8
        raise RegionDHError(
            f"{path} is damaged ({error}): restore it, or delete it and run the command again"
        ) from error


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with replace_when_complete(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as archive:
            return dict(archive)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RegionDHError(
            f"{path} is damaged ({error}): restore it, or delete it to measure the code files again"
        ) from error


def _commit() -> str:
    git = ["git", "-C", str(TRAIN_NET.parent), "rev-parse", "HEAD"]
    found = subprocess.run(git, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else ""


# --------------------------------------------------------------------------------------------------
# Comparisons


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, samples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean difference of two methods on the same queries, and its 95 % interval.

    Args:
        a, b: float (Q,), one metric of each query by each method; NaN (in both) where a query has
            no relevant image.
        samples: how often the queries are drawn with replacement.
        seed: of the draws.

    Returns:
        The mean of ``a - b`` and the 2.5 and 97.5 percentiles of its bootstrap distribution.

    Raises:
        ValueError: the two don't have the same queries.
    """
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        raise RegionDHError(f"not the same queries: {a.shape} and {b.shape} values")
    difference = (a - b)[~np.isnan(a)]
    rng = np.random.default_rng(seed)
    # How often each query is drawn says as much as which ones, in far less memory.
    share = np.full(len(difference), 1 / len(difference))
    counts = rng.multinomial(len(difference), share, size=samples)
    means = counts @ difference / len(difference)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(difference.mean()), float(low), float(high)


def differences_file(results: Path, dataset: str, reference: str) -> Path:
    return results / f"differences_{dataset}_{reference}.json"


def read_differences(file: Path) -> list[dict]:
    """What :func:`differences` found, from the file it was written to.

    Raises:
        ValueError: the file is damaged.
    """
    found = _read_json(file)
    numbers = ("bits", "difference", "low", "high")

    def is_sound(entry: Any) -> bool:
        texts = [_dict(entry).get(key) for key in ("against", "metric")]
        values = [_dict(entry).get(key) for key in numbers]
        return all(isinstance(x, str) for x in texts) and all(map(_is_number, values))

    if not isinstance(found, list) or not all(map(is_sound, found)):
        raise RegionDHError(f"{file} is damaged (no differences): restore it, or delete it")
    return found


def differences(
    runs: Sequence[Run],
    reference: Row,
    output: Path,
    results: Path,
    dataset: str,
    topk: int = 1000,
    earlier: Sequence[dict] = (),
) -> tuple[list[dict], list[str]]:
    """Each row against a reference row at the same length, each query's metric averaged over seeds.

    Of the runs that are done on the dataset, those are compared that have each query's metrics
    (:meth:`Run.per_query`).

    Args:
        runs: those of the reference and of the rows to compare it with.
        reference, output, results, dataset, topk: what is compared, and where it is found.
        earlier: what this function found of this reference before. Differences stay where they
            can't be measured now, or only over fewer seeds of either row.

    Returns:
        The differences, by row, length and metric, and the names of those that stayed.

    Raises:
        ValueError: runs were measured on different data, or a file of kept values is damaged.
    """
    values, data = {}, {}
    for run in runs:
        result = run.result(results)
        if not result or dataset not in result["metrics"]:
            continue
        per_query = run.per_query(output, results, dataset, topk)
        if per_query is not None:
            values.setdefault((run.row.name, run.bits), []).append(per_query)
            checksum = _dict(result.get("data_sha256")).get(dataset)
            if checksum is None:
                raise RegionDHError(
                    f"{run.result_file(results)} is damaged (no data_sha256 of {dataset}): restore "
                    "it, or delete it to train again"
                )
            data.setdefault(checksum, run.name)
    if len(data) > 1:
        first, other, *_ = data.values()
        raise RegionDHError(
            f"{first} and {other} were measured on different images or labels of {dataset}: train "
            "one of them again to compare them"
        )
    asked = [(run.row.name, run.bits) for run in runs if run.row.name != reference.name]
    found, kept = [], []
    for name, bits in dict.fromkeys([*asked, *((d["against"], d["bits"]) for d in earlier)]):
        old = [d for d in earlier if (d["against"], d["bits"]) == (name, bits)]
        seeds = [values.get((row, bits), []) for row in (reference.name, name)]
        if all(seeds) and not any(_has_more_seeds(d, *map(len, seeds)) for d in old):
            found += _row_differences(reference.name, name, bits, *seeds)
        elif old:
            found += old
            kept.append(f"{name} {bits}")
    return found, kept


def _has_more_seeds(difference: dict, reference: int, against: int) -> bool:
    # Older files don't count the reference's seeds: it had as many at least.
    seeds = difference.get("seeds", 1)
    return difference.get("reference_seeds", seeds) > reference or seeds > against


def _row_differences(
    reference: str, against: str, bits: int, a: Sequence[dict], b: Sequence[dict]
) -> list[dict]:
    """An entry for each metric; ``a`` and ``b`` hold each seed's :meth:`Run.per_query`."""
    found = []
    for metric in SHOWN:
        pair = (np.mean([seed[metric] for seed in seeds], axis=0) for seeds in (a, b))
        mean, low, high = paired_bootstrap(*pair)
        found.append(
            {"row": reference, "against": against, "bits": bits, "metric": metric}
            | {"difference": mean, "low": low, "high": high}
            | {"seeds": len(b), "reference_seeds": len(a)}
        )
    return found


def markdown_table(rows: Sequence[Row], results: Path, dataset: str, topk: int = 1000) -> str:
    """A table of the runs that are done: mean and standard deviation over seeds, and the means of
    the least and the greatest MAP_min over all orders of ties; rows without any run are left out.
    The name of a row is what tools/run_experiments.py trains it by. Rows with a result that has an
    ``audit`` are marked, and what that says stands below.
    """
    marked: dict[str, list[str]] = {}
    lines = [
        f"| method | row | bits | seeds | {' | '.join(SHOWN)} | MAP_min over ties | AP50 "
        "| minutes |",
        f"|{'---|' * (len(SHOWN) + 7)}",
    ]
    for row in rows:
        for bits in row.bits:
            runs = [run for run in row.runs() if run.bits == bits]
            found = {run: run.result(results) for run in runs}
            found = {run: r for run, r in found.items() if r and dataset in r["metrics"]}
            for run, result in found.items():
                require_metrics(result["metrics"][dataset], topk, run.result_file(results))
                if result.get("audit"):
                    marked.setdefault(str(result["audit"]), []).append(f"`{run.name}`")
            if found:
                lines.append(_markdown_row(row, bits, [*found.values()], dataset, topk))
    notes = [f"\n{MARK} {', '.join(names)}: {note}" for note, names in marked.items()]
    return "\n".join([*lines, *notes]) + "\n"


def require_metrics(metrics: dict, topk: int, file: Path) -> None:
    """Checks that what was measured on a dataset has all that tables and plots show.

    Raises:
        RegionDHError: it was measured at another cut-off, or its ``file`` is damaged.
    """
    ends = ("pessimistic", "optimistic")
    needed = [f"{m}@{topk}" for m in SHOWN] + [f"MAP_min@{topk}-{end}" for end in ends]
    for name in needed:
        if not _is_number(metrics.get(name)):
            others = [key.partition("@")[2] for key in metrics if re.fullmatch(r"MAP@\d+", key)]
            if others and str(topk) not in others:
                raise RegionDHError(
                    f"{file} was measured at TEST.RETRIEVAL.TOPK {', '.join(others)}, and tables "
                    f"show {topk}: set that in the row's opts to have it in a table"
                )
            raise RegionDHError(
                f"{file} is damaged (no {name}): restore it, or delete it to train again"
            )


def _markdown_row(row: Row, bits: int, found: list[dict], dataset: str, topk: int) -> str:
    def spread(values: list[float], digits: int = 3) -> str:
        mean = f"{np.mean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"

    metrics = [r["metrics"][dataset] for r in found]
    shown = [spread([m[f"{name}@{topk}"] for m in metrics]) for name in SHOWN]
    ties = [
        np.mean([m[f"MAP_min@{topk}-{end}"] for m in metrics])
        for end in ("pessimistic", "optimistic")
    ]
    boxes = [r["box_ap"]["bbox/AP50"] for r in found if "bbox/AP50" in r["box_ap"]]
    title = f"{row.title} {MARK}" if any(r.get("audit") for r in found) else row.title
    cells = [
        title,
        f"`{row.name}`",
        str(bits),
        str(len(found)),
        *shown,
        f"{ties[0]:.3f} to {ties[1]:.3f}",
        spread(boxes, 1) if boxes else "",
        f"{np.mean([r['minutes'] for r in found]):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def markdown_differences(found: Sequence[dict], names: Sequence[str] = ()) -> str:
    """A table of what :func:`differences` found, of all rows or of those against which it names."""
    shown = ("MAP", "MAP_min", "ACG")
    lines = [
        f"| against | bits | {' | '.join(shown)} |",
        f"|{'---|' * (len(shown) + 2)}",
    ]
    cells = {(d["against"], d["bits"], d["metric"]): d for d in found}
    for against, bits in dict.fromkeys((d["against"], d["bits"]) for d in found):
        if not names or against in names:
            row = [cells[against, bits, metric] for metric in shown]
            values = [f"{d['difference']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})" for d in row]
            lines.append(f"| {against} | {bits} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def require_results(rows: Sequence[Row], results: Path, dataset: str) -> None:
    """Checks that a table of a dataset would hold something.

    Raises:
        RegionDHError: no run of any row was measured on it; the text has what there is.
    """
    found = [run.result(results) for row in rows for run in row.runs()]
    known = sorted({name for result in found if result for name in result["metrics"]})
    if dataset not in known:
        raise RegionDHError(
            f"no result in {results} is of dataset {dataset!r}; there are results of: "
            f"{', '.join(known) or 'none'}"
        )


def _check_places(text: str) -> None:
    """Refuses a document of which :func:`fill_document` would replace too much, or nothing."""
    begin = None
    for mark in re.finditer(r"<!-- *(?:(end)|(?:table|differences)\b).*?-->", text):
        if not mark[1] and begin:
            raise RegionDHError(f"the document has no <!-- end --> after {begin}")
        begin = None if mark[1] else mark[0]
    if begin:
        raise RegionDHError(f"the document has no <!-- end --> after {begin}")
    if not BLOCK.search(text):
        raise RegionDHError(
            "the document has no place for a table: write <!-- table: DATASET ROW... --> on a line "
            "and <!-- end --> below it"
        )


def fill_document(text: str, rows: Sequence[Row], results: Path) -> str:
    """Put the tables of what is done in the places that a document has for them.

    A place is what stands between ``<!-- table: DATASET ROW... -->`` (:func:`markdown_table`) or
    ``<!-- differences: DATASET REFERENCE ROW... -->`` (:func:`markdown_differences`), and the next
    ``<!-- end -->``. No row means all; a number among them keeps runs of so many bits alone.

    Raises:
        RegionDHError: there is no place, or one without an end; or a place has a row or a dataset
            that no result has, or differences without a reference.
    """
    _check_places(text)
    by_name = {row.name: row for row in rows}

    def filled(block: re.Match) -> str:
        words = block["names"].split()
        names = [word for word in words if not word.isdecimal()]
        bits = [int(word) for word in words if word.isdecimal()]
        unknown = sorted(set(names) - set(by_name))
        if unknown:
            raise RegionDHError(f"the document asks for unknown rows: {', '.join(unknown)}")
        if block["what"] == "table":
            require_results(rows, results, block["dataset"])
            picked = [by_name[name] for name in names or by_name]
            if bits:
                picked = [dataclasses.replace(row, bits=tuple(bits)) for row in picked]
            table = markdown_table(picked, results, block["dataset"])
        else:
            if not names:
                raise RegionDHError(
                    f"a place for differences must name a row: {block['begin'].strip()}"
                )
            file = differences_file(results, block["dataset"], names.pop(0))
            found = [d for d in read_differences(file) if not bits or d["bits"] in bits]
            table = markdown_differences(found, names)
        return f"{block['begin']}\n{table}\n{block['end']}"

    return BLOCK.sub(filled, text)
