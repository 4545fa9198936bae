"""Experiments as a table: rows of configs, each trained at some lengths and seeds, and measured.

A *run* is one training: a row, a code length and a seed. It ends in one JSON file, which holds what
was measured and all that it depends on; a run whose file is there is done. Beside it,
``per_query/<run>.npz`` holds each query's metrics, for bootstraps. Tables for documents are made of
these files alone.
"""

import dataclasses
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import yaml

from ..data.catalog import load_dataset
from ..evaluation.retrieval_evaluator import rank_code_sets
from ..retrieval.code_store import read_codes
from ..structures.codes import CodeSet
from ..utils.errors import RegionDHError
from ..utils.file_io import replace_when_complete, write_json
from .command import CommandError
from .defaults import build_cfg

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
]

TRAIN_NET = Path(__file__).parents[2] / "tools" / "train_net.py"
BOX_AP = ("bbox/AP", "bbox/AP50")
SHOWN = ("MAP", "MAP_min", "NDCG", "ACG")
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
            ValueError: the file is damaged.
        """
        file = self.result_file(results)
        if not file.is_file():
            return None
        result = _read_json(file)
        if not isinstance(result, dict) or "metrics" not in result:
            raise RegionDHError(
                f"{file} is damaged (no metrics): restore it, or delete it to train again"
            )
        return result

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
            ValueError: the file of kept values is damaged.
        """
        file = self.per_query_file(results)
        kept = _read_arrays(file) if file.is_file() else {}
        names = {metric: _array_name(dataset, metric, topk) for metric in SHOWN}
        if not kept.keys() >= set(names.values()):
            measured = self._measure_queries(output, dataset, topk)
            if not measured:
                return None
            kept |= measured
            _write_arrays(file, kept)
        return {metric: kept[name].astype(np.float64) for metric, name in names.items()}

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
        """Codes of the queries and of the database, None where their files aren't there."""
        folder = output / self.name / "inference" / dataset
        files = [folder / f"{role}.h5" for role in ("query", "database")]
        return tuple(map(read_codes, files)) if all(file.is_file() for file in files) else None

    def options(self, output: Path) -> list[str]:
        """The KEY VALUE pairs of its training."""
        given = ("MODEL.REGION_DH.BITS", str(self.bits), "SEED", str(self.seed))
        seed = str(self.seed)
        opts = (o.replace("{seed}", seed).replace("{output}", str(output)) for o in self.row.opts)
        return [*opts, *given, "OUTPUT_DIR", str(output / self.name)]

    def command(self, output: Path) -> list[str]:
        return ["tools/train_net.py", "--config-file", self.row.config, *self.options(output)]

    def train(self, output: Path, results: Path) -> dict:
        """Train and evaluate, or go on with it, and write the result.

        Raises:
            CommandError: the training failed; the text names its log.
        """
        cfg = build_cfg(self.row.config, self.options(output))
        folder = Path(cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        command = self.command(output)
        log, start = folder / "stdout.txt", time.perf_counter()
        with open(log, "ab") as file:
            arguments = [sys.executable, str(TRAIN_NET), "--resume", *command[1:]]
            code = subprocess.run(arguments, stdout=file, stderr=subprocess.STDOUT).returncode
        if code != 0:
            raise CommandError(f"{self.name} failed (exit {code}): see {log}")
        result = {
            "row": self.row.name,
            "title": self.row.title,
            "bits": self.bits,
            "seed": self.seed,
            "command": shlex.join(command),
            "metrics": {n: _metrics(folder, n) for n in cfg.DATASETS.TEST},
            "box_ap": _box_ap(folder, cfg.DATASETS.TEST),
            "minutes": round((time.perf_counter() - start) / 60, 1),
            "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
            "data_sha256": {
                n: _data_checksum(n) for n in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
            },
            "commit": _commit(),
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "date": date.today().isoformat(),
        }
        per_query = {}
        for dataset in cfg.DATASETS.TEST:
            per_query |= self._measure_queries(output, dataset, cfg.TEST.RETRIEVAL.TOPK)
        # First, since a run that has a result counts as done.
        _write_arrays(self.per_query_file(results), per_query)
        write_json(self.result_file(results), result)
        return result


def read_table(path: str | os.PathLike) -> list[Row]:
    """The rows of a table file.

    It holds ``defaults`` (``config``, ``bits``, ``seeds``, ``opts``) and ``rows``, from a name to
    ``title`` and what differs; a row's ``opts`` follow the defaults'.

    Raises:
        ValueError: the file isn't such a table.
    """
    text = Path(path).read_text()
    try:
        table = yaml.safe_load(text)
        defaults, rows = table["defaults"], table["rows"]
        return [_row(name, defaults, row) for name, row in rows.items()]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise RegionDHError(f"{path} is no table of experiments: {error!r}") from error


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


def _row(name: str, defaults: dict, row: dict) -> Row:
    unknown = sorted(set(row) - {field.name for field in dataclasses.fields(Row)})
    if unknown:
        raise KeyError(f"row {name} has {', '.join(unknown)}")
    values = {**defaults, **row}
    opts = (*defaults.get("opts", ()), *row.get("opts", ()))
    return Row(
        name=name,
        title=values["title"],
        config=values["config"],
        bits=tuple(values["bits"]),
        seeds=tuple(values["seeds"]),
        opts=tuple(str(x) for x in opts),
    )


def _metrics(folder: Path, dataset: str) -> dict[str, float]:
    return json.loads((folder / "inference" / dataset / "metrics.json").read_text())


def _box_ap(folder: Path, datasets: Sequence[str]) -> dict[str, float]:
    """Box AP on the queries of the first dataset; empty for networks without boxes."""
    # A line holds the scalars that were new at its time.
    lines = (folder / "metrics.json").read_text().splitlines()
    last = {key: value for line in lines for key, value in json.loads(line).items()}
    prefix = f"{datasets[0]}/" if len(datasets) > 1 else ""
    return {key: last[prefix + key] for key in BOX_AP if prefix + key in last}


def _data_checksum(dataset: str) -> str:
    """sha256 over names and sizes of the images and over the annotations of a dataset."""
    digest = hashlib.sha256()
    for record in load_dataset(dataset):
        path = record["file_name"]
        boxes = [(a["category_id"], *a["bbox"]) for a in record.get("annotations", ())]
        labels = record.get("image_labels", ())
        line = (os.path.basename(path), os.path.getsize(path), boxes, list(labels))
        digest.update(repr(line).encode())
    return digest.hexdigest()


def _array_name(dataset: str, metric: str, topk: int) -> str:
    return f"{dataset}/{metric}@{topk}"


def _read_json(path: Path) -> dict | list:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
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
    return _read_json(file)


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
            data.setdefault(result["data_sha256"][dataset], run.name)
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
    counted = difference.get("reference_seeds", difference["seeds"])
    return counted > reference or difference["seeds"] > against


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
    The name of a row is what tools/run_experiments.py trains it by.
    """
    lines = [
        f"| method | row | bits | seeds | {' | '.join(SHOWN)} | MAP_min over ties | AP50 "
        "| minutes |",
        f"|{'---|' * (len(SHOWN) + 7)}",
    ]
    for row in rows:
        for bits in row.bits:
            found = [run.result(results) for run in row.runs() if run.bits == bits]
            found = [r for r in found if r and dataset in r["metrics"]]
            if found:
                lines.append(_markdown_row(row, bits, found, dataset, topk))
    return "\n".join(lines) + "\n"


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
    cells = [
        row.title,
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


def fill_document(text: str, rows: Sequence[Row], results: Path) -> str:
    """Put the tables of what is done in the places that a document has for them.

    A place is what stands between ``<!-- table: DATASET ROW... -->`` (:func:`markdown_table`) or
    ``<!-- differences: DATASET REFERENCE ROW... -->`` (:func:`markdown_differences`), and the next
    ``<!-- end -->``. No row means all; a number among them keeps runs of so many bits alone.

    Raises:
        ValueError: a row has no such name, or a place for differences has no reference.
    """

    by_name = {row.name: row for row in rows}

    def filled(block: re.Match) -> str:
        words = block["names"].split()
        names = [word for word in words if not word.isdecimal()]
        bits = [int(word) for word in words if word.isdecimal()]
        unknown = sorted(set(names) - set(by_name))
        if unknown:
            raise RegionDHError(f"the document asks for unknown rows: {', '.join(unknown)}")
        if block["what"] == "table":
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
