"""The table of the study: its rows, their runs, and the checks of the table's file.

A *row* is a method, or one change to it. A *run* is one training of a row, with a code length and a
seed.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from regiondh_d2.engine.command import CommandError
from regiondh_d2.utils.errors import InputNotFoundError, RegionDHError

__all__ = ["Row", "Run", "pick_rows", "read_table"]

KEYS = ("title", "config", "bits", "seeds", "opts", "trains")
# What a row may train, and which program that is.
TRAINS = {"network": "tools/train_net.py", "h2": "experiments/h2_alone.py"}
# Set by a run's bits, seed and folder.
OWN_OPTIONS = {"MODEL.REGION_DH.BITS": "bits", "SEED": "seeds", "OUTPUT_DIR": "--networks"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: of files and on the command line.
        title: for readers.
        config: path of a yaml file.
        bits, seeds: the code lengths and seeds that it is trained with.
        opts: pairs KEY VALUE that differ from the config; ``{seed}`` stands for the seed and
            ``{output}`` for the folder of all networks, where a run finds another's network.
        trains: "network", by the library's trainer, or "h2", by :mod:`.h2_alone`.
    """

    name: str
    title: str
    config: str
    bits: tuple[int, ...]
    seeds: tuple[int, ...]
    opts: tuple[str, ...] = ()
    trains: str = "network"

    def runs(self) -> list["Run"]:
        return [Run(self, bits, seed) for bits in self.bits for seed in self.seeds]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a row, at a code length and with a seed."""

    row: Row
    bits: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row.name}_{self.bits}_seed{self.seed}"

    def options(self, networks: Path) -> list[str]:
        """The pairs KEY VALUE of its training, in the folder of all networks."""
        given = ("MODEL.REGION_DH.BITS", str(self.bits), "SEED", str(self.seed))
        seed = str(self.seed)
        opts = (o.replace("{seed}", seed).replace("{output}", str(networks)) for o in self.row.opts)
        return [*opts, *given, "OUTPUT_DIR", str(networks / self.name)]

    def command(self, networks: Path) -> list[str]:
        """The words of the command that trains it; the first ones stand for :mod:`.h2_alone`, which
        is no command, where that trains."""
        return [TRAINS[self.row.trains], "--config-file", self.row.config, *self.options(networks)]


def read_table(path: str | os.PathLike) -> list[Row]:
    """The rows of a table's file.

    It holds ``defaults`` (``config``, ``bits``, ``seeds``, ``opts``) and ``rows``: by name, a
    ``title`` and the differences from the defaults. A row's ``opts`` follow those of the defaults.

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


def pick_rows(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows of those names, in the order of the table; all rows if none is named.

    Raises:
        CommandError: there is no row of a name.
    """
    known = [row.name for row in rows]
    for name in names:
        if name not in known:
            raise CommandError(f"{name} is no row of the table; known: {', '.join(known)}")
    return [row for row in rows if not names or row.name in names]


class _TableLoader(yaml.SafeLoader):
    """A loader that refuses a key given twice: YAML would drop one of two rows of the same name."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise RegionDHError(f"{twice[0]} occurs twice in it")
        return super().construct_mapping(node, deep)


def _rows(table: Any) -> list[Row]:
    if not isinstance(table, dict):
        raise RegionDHError(f"it holds {_kind(table)}, where defaults: and rows: must stand")
    _check_keys(table, ("defaults", "rows"), "it")
    defaults, rows = table.get("defaults") or {}, table.get("rows")
    if not isinstance(defaults, dict):
        raise RegionDHError(f"defaults are {_kind(defaults)}, where KEY: VALUE must stand")
    _check_keys(defaults, KEYS, "defaults")
    if not isinstance(rows, dict) or not rows:
        raise RegionDHError(f"rows are {_kind(rows)}, where NAME: and its values must stand")
    return [_row(name, defaults, row) for name, row in rows.items()]


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
    _check_keys(row, KEYS, whose)
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
    trains = values.get("trains", "network")
    if trains not in TRAINS:
        raise RegionDHError(f"{whose}: trains is {trains!r}, not one of {', '.join(TRAINS)}")
    opts: list[str] = []
    for given in (defaults.get("opts", []), row.get("opts", [])):
        if not isinstance(given, list) or any(isinstance(x, dict) for x in given) or len(given) % 2:
            raise RegionDHError(f"{whose}: opts are no list of pairs KEY, VALUE: {given!r}")
        opts += map(str, given)
    for key in opts[::2]:
        if key in OWN_OPTIONS:
            raise RegionDHError(f"{whose}: opts set {key}, which {OWN_OPTIONS[key]} does")
    return Row(
        name=name,
        title=values["title"],
        config=values["config"],
        bits=tuple(values["bits"]),
        seeds=tuple(values["seeds"]),
        opts=tuple(opts),
        trains=trains,
    )


def _check_keys(values: dict, known: Sequence[str], whose: str) -> None:
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise RegionDHError(f"{whose}: {unknown[0]} is unknown; known: {', '.join(known)}")


def _kind(value: Any) -> str:
    return "nothing" if not value else f"a {type(value).__name__}"


def _missing(values: dict, key: str) -> str:
    return repr(values[key]) if key in values else "missing"
