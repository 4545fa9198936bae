"""The folder of results: a file for each row, each query's metrics, and differences of rows.

``ROW.json`` holds the results of a row's runs: ``{"row": NAME, "runs": [...]}``, an entry for each
code length and seed with the measurements and everything that they depend on. A run with an entry
is done. ``per_query/RUN.npz`` holds each query's metrics of one run, for bootstraps; it stays a
file a run, since it is binary and a training writes it whole.
``differences/DATASET_REFERENCE.json`` holds the results of :mod:`.comparison`, ``claims.json``
those of :mod:`.claims`, ``references.json`` those of :mod:`.references` (each query's metrics are
in ``per_query/reference_NAME.npz``), and ``milliseconds.json`` those of :mod:`.encode_times`.

Version 0.1 wrote one file a run, ``RUN.json``, and ``differences_DATASET_REFERENCE.json``. They are
read where the folder has nothing newer.
"""

import json
import math
import os
import re
import shlex
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regiondh_d2.config import current_value
from regiondh_d2.utils.errors import RegionDHError
from regiondh_d2.utils.file_io import replace_when_complete, write_json
from regiondh_d2.utils.locks import hold_lock

from .rows import Row, Run

__all__ = ["ResultFolder", "as_dict", "read_json", "require_metrics", "retrain"]

LOCK = ".lock"
LOCK_SECONDS = 600.0  # how long to wait for another process; it needs only milliseconds


class ResultFolder:
    """The results in a folder.

    Several processes may write results at once, even of one row: each holds the folder's lock while
    it reads and replaces the row's file.

    Attributes:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def row_file(self, row: Row) -> Path:
        return self.path / f"{row.name}.json"

    def per_query_file(self, run: Run) -> Path:
        return self.path / "per_query" / f"{run.name}.npz"

    def differences_file(self, dataset: str, reference: str) -> Path:
        return self.path / "differences" / f"{dataset}_{reference}.json"

    def read(self, run: Run) -> dict | None:
        """The result of a run, None if there is none.

        Raises:
            RegionDHError: the file is damaged, or the row's options have changed since.
        """
        file = self.row_file(run.row)
        result = self._read_row(run.row).get((run.bits, run.seed))
        if result is None:
            file = self._old_file(run)
            result = _read_if_there(file)
        if result is None:
            return None
        _check_content(result, run, file)
        _check_command(result, run, file)
        return result

    def is_of_version_0_1(self, run: Run) -> bool:
        """Whether the result of a run is in a file of version 0.1."""
        in_row = (run.bits, run.seed) in self._read_row(run.row)
        return not in_row and self._old_file(run).is_file()

    def write(self, run: Run, result: dict[str, Any]) -> None:
        """Add the result of a run to its row's file, in place of an earlier one.

        Raises:
            FileInUseError: another process has held the lock for ten minutes.
            RegionDHError: the row's file is damaged.
        """
        with self._lock(run.row):
            results = self._read_row(run.row)
            results[run.bits, run.seed] = {"bits": run.bits, "seed": run.seed, **result}
            self._write_row(run.row, results)

    def forget(self, run: Run) -> bool:
        """Remove the result of a run and its queries' metrics, so that it is trained again.

        Returns:
            Whether there was a result.

        Raises:
            FileInUseError, RegionDHError: see :meth:`write`.
        """
        with self._lock(run.row):
            results = self._read_row(run.row)
            known = results.pop((run.bits, run.seed), None) is not None
            if known and results:
                self._write_row(run.row, results)
            elif known:
                self.row_file(run.row).unlink()
            old = self._old_file(run)
            known |= old.is_file()
            old.unlink(missing_ok=True)
            self.per_query_file(run).unlink(missing_ok=True)
        return known

    def read_per_query(self, run: Run) -> dict[str, np.ndarray]:
        """Each query's metrics: names ``DATASET/METRIC@K`` to arrays (Q,); empty if none are kept.

        Raises:
            RegionDHError: the file is damaged.
        """
        path = self.per_query_file(run)
        if not path.is_file():
            return {}
        try:
            with np.load(path) as archive:
                return dict(archive)
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise RegionDHError(
                f"{path} is damaged ({error}): restore it, or delete it to measure the code files "
                "again"
            ) from error

    def write_per_query(self, run: Run, arrays: dict[str, np.ndarray]) -> None:
        path = self.per_query_file(run)
        with replace_when_complete(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)

    def read_differences(self, dataset: str, reference: str) -> list[dict] | None:
        """The result of :func:`.comparison.differences` for a reference row, None if there is no
        file.

        Raises:
            RegionDHError: the file is damaged.
        """
        file = self.differences_file(dataset, reference)
        found = _read_if_there(file)
        if found is None:
            file = self.path / f"differences_{dataset}_{reference}.json"
            found = _read_if_there(file)
        if found is None:
            return None
        numbers = ("bits", "difference", "low", "high")

        def is_sound(entry: Any) -> bool:
            texts = [as_dict(entry).get(key) for key in ("against", "metric")]
            values = [as_dict(entry).get(key) for key in numbers]
            return all(isinstance(x, str) for x in texts) and all(map(_is_number, values))

        if not isinstance(found, list) or not all(map(is_sound, found)):
            raise RegionDHError(f"{file} is damaged (no differences): restore it, or delete it")
        return found

    def write_differences(self, dataset: str, reference: str, found: Sequence[dict]) -> Path:
        """Write the result of :func:`.comparison.differences`; return the file."""
        file = self.differences_file(dataset, reference)
        write_json(file, found)
        return file

    @property
    def claims_file(self) -> Path:
        return self.path / "claims.json"

    @property
    def milliseconds_file(self) -> Path:
        return self.path / "milliseconds.json"

    def read_claims(self) -> list[dict]:
        """The result of :func:`.claims.measure_claims`; empty if there is no file.

        Raises:
            RegionDHError: the file is damaged.
        """
        found = _read_if_there(self.claims_file)
        if found is None:
            return []
        numbers = ("bits", "difference", "low", "high", "p_corrected")
        if not isinstance(found, list) or not all(
            all(map(_is_number, map(as_dict(entry).get, numbers))) for entry in found
        ):
            raise RegionDHError(
                f"{self.claims_file} is damaged (no claims): delete it, and measure them with "
                "python -m experiments.tables"
            )
        return found

    @property
    def references_file(self) -> Path:
        return self.path / "references.json"

    def read_references(self, database: str) -> dict[str, Any]:
        """What :mod:`.references` measured.

        Args:
            database: "seen" or "unseen", of which there must be rows.

        Raises:
            RegionDHError: there is no such file, or it is damaged.
        """
        fix = "run python -m experiments.references"
        found = _read_if_there(self.references_file)
        if found is None:
            raise RegionDHError(f"{self.references_file}: no such file: {fix}")
        for key in ("references", "classes"):
            rows = as_dict(found).get(key)
            if not isinstance(rows, list) or not any(
                as_dict(row).get("database") == database for row in rows
            ):
                raise RegionDHError(
                    f"{self.references_file} has no {key} of the database {database!r}: {fix}"
                )
        return found

    def write_reference_queries(
        self, title: str, database: str, arrays: dict[str, np.ndarray]
    ) -> None:
        """Store each query's metrics of a reference, in half precision."""
        name = "_".join(re.findall(r"\w+", f"reference {title} {database}"))
        path = self.path / "per_query" / f"{name}.npz"
        with replace_when_complete(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **{key: np.float16(v) for key, v in arrays.items()})

    def read_encoding_costs(self) -> dict[str, dict[str, float]]:
        """``milliseconds`` and ``megabytes`` of encoding an image, by row; empty without a file.

        Raises:
            RegionDHError: the file is damaged.
        """
        content = as_dict(_read_if_there(self.milliseconds_file))
        found = {key: as_dict(content.get(key)) for key in ("milliseconds", "megabytes")}
        if not all(_is_number(value) for costs in found.values() for value in costs.values()):
            raise RegionDHError(
                f"{self.milliseconds_file} is damaged: restore it, or delete it and run "
                "python -m experiments.encode_times"
            )
        return found

    def _old_file(self, run: Run) -> Path:
        return self.path / f"{run.name}.json"

    def _lock(self, row: Row):
        self.path.mkdir(parents=True, exist_ok=True)
        return hold_lock(self.path / LOCK, self.row_file(row), wait=LOCK_SECONDS)

    def _read_row(self, row: Row) -> dict[tuple[int, int], dict]:
        """The entries of a row's file by bits and seed; empty if there is no file."""
        file = self.row_file(row)
        content = _read_if_there(file)
        if content is None:
            return {}
        entries = as_dict(content).get("runs")
        keys = [_key(entry) for entry in entries] if isinstance(entries, list) else [None]
        if None in keys or len(set(keys)) < len(keys):
            what = "a run without bits and seed" if None in keys else "a run occurs twice"
            what = what if isinstance(entries, list) else "no runs"
            raise RegionDHError(
                f"{file} is damaged ({what}): restore it, or delete it to train the row again"
            )
        if content.get("row") != row.name:
            raise RegionDHError(
                f"{file} is of row {content.get('row')!r}: give the file the name of its row"
            )
        return dict(zip(keys, entries, strict=True))

    def _write_row(self, row: Row, results: dict[tuple[int, int], dict]) -> None:
        entries = [results[key] for key in sorted(results)]
        write_json(self.row_file(row), {"row": row.name, "runs": entries})


def retrain(run: Run) -> str:
    """The end of a message: how to train a run with a result again."""
    return f"drop the result with --forget {run.name} to train again"


def require_metrics(metrics: dict[str, Any], names: Sequence[str], topk: int, file: Path) -> None:
    """Check that a result has the metrics of a table or plot.

    Args:
        metrics: of one dataset, by names ``METRIC@K`` and ``METRIC@K-END``.
        names: those that are needed, of the cut-off ``topk``.
        topk: K.
        file: of the result, for the message.

    Raises:
        RegionDHError: it was measured at another cut-off, or the file is damaged.
    """
    for name in names:
        if _is_number(metrics.get(name)):
            continue
        others = [key.partition("@")[2] for key in metrics if re.fullmatch(r"MAP@\d+", key)]
        if others and str(topk) not in others:
            raise RegionDHError(
                f"{file} was measured at TEST.RETRIEVAL.TOPK {', '.join(others)}, and {topk} is to "
                "be shown: set that in the row's opts, and train the row again"
            )
        raise RegionDHError(
            f"{file} is damaged (no {name}): restore it, or delete it to train the row again"
        )


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        RegionDHError: the file is damaged.
        OSError: it can't be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of text that isn't UTF-8
        raise RegionDHError(
            f"{path} is damaged ({error}): restore it, or delete it and run the command again"
        ) from error


def as_dict(value: Any) -> dict:
    """The value if it is a dict, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def _pairs(command: Sequence[str]) -> dict[str, str]:
    """The options of a command, with the present names of their values."""
    pairs = dict(zip(command[1::2], command[2::2], strict=False))
    return {key: current_value(key, value) for key, value in pairs.items()}


def _read_if_there(path: Path) -> Any:
    if path.is_file():
        content = read_json(path)
        if content is None:
            raise RegionDHError(f"{path} is damaged (null): restore it, or delete it")
        return content
    if os.path.lexists(path):
        raise RegionDHError(f"{path} is no file: move it away, since the result goes there")
    return None


def _key(entry: Any) -> tuple[int, int] | None:
    numbers = [as_dict(entry).get(key) for key in ("bits", "seed")]
    return tuple(numbers) if all(type(number) is int for number in numbers) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_content(result: Any, run: Run, file: Path) -> None:
    what = ""
    missing = [k for k in ("metrics", "box_ap", "minutes") if k not in as_dict(result)]
    if missing:
        what = f"no {missing[0]}"
    else:
        metrics, boxes, minutes = (result[k] for k in ("metrics", "box_ap", "minutes"))
        if not as_dict(metrics) or not all(isinstance(m, dict) for m in metrics.values()):
            what = "no metrics"
        elif not _is_number(minutes) or not all(map(_is_number, as_dict(boxes).values())):
            what = f"minutes {minutes!r}, box_ap {boxes!r}"
    if what:
        raise RegionDHError(
            f"{file} is damaged ({run.name}: {what}): restore it, or {retrain(run)}"
        )


def _check_command(result: dict, run: Run, file: Path) -> None:
    """Check that the result was trained with the row's present options."""
    command = result.get("command")
    if not isinstance(command, str) or not command:
        return
    try:
        theirs = shlex.split(command)
    except ValueError as error:
        raise RegionDHError(
            f"{file} is damaged ({run.name}: command: {error}): restore it, or {retrain(run)}"
        ) from error
    # The folder of networks may differ; take it from the command's OUTPUT_DIR.
    ours = run.command(Path(theirs[-1] if theirs else "").parent)
    if theirs == ours:
        return
    old, new = (_pairs(command) for command in (theirs, ours))
    if old == new and list(old) == list(new):
        return
    key = next((k for k in {**old, **new} if old.get(k) != new.get(k)), "another order of opts")
    raise RegionDHError(
        f"{file}: {run.name} was trained with {key} {old.get(key, '(none)')}, and row "
        f"{run.row.name} has {new.get(key, '(none)')} now: give the row back its options, or "
        f"{retrain(run)}"
    )
