"""The table of the study, and the checks of its file."""

import re
from pathlib import Path

import pytest
import yaml

from experiments.options import TABLE
from experiments.rows import read_table
from regiondh_d2.utils.errors import RegionDHError
from study import write_table

ROOT = Path(__file__).parents[2]


def test_rows_add_to_the_defaults(tmp_path):
    table = write_table(
        tmp_path,
        a={"title": "A"},
        b={"title": "B", "bits": [4, 8], "opts": ["K", "{output}/of_{seed}"]},
    )
    a, b = read_table(table)
    assert (a.name, a.title, a.bits, a.opts) == ("a", "A", (8,), ("SOLVER.CHECKPOINT_PERIOD", "1"))
    assert b.opts == (*a.opts, "K", "{output}/of_{seed}")
    assert [run.name for run in b.runs()] == ["b_4_seed0", "b_8_seed0"]
    command = " ".join(b.runs()[0].command(Path("out")))
    assert "K out/of_0 MODEL.REGION_DH.BITS 4 SEED 0 OUTPUT_DIR out/b_4_seed0" in command
    assert command.startswith("tools/train_net.py --config-file ")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it holds nothing"),
        ("[1]", "it holds a list"),
        ("a: [", "expected"),
        ("rows: {}", "rows are nothing"),
        ("rows: [a]", "rows are a list"),
        ("defaults: 3\nrows: {a: {}}", "defaults are a int"),
        ("defaults: {titel: x}\nrows: {a: {}}", "defaults: titel is unknown; known: title, "),
        ("defaults: {}\nrowz: {a: {}}", "it: rowz is unknown"),
        ("rows: {a: {titel: x}}", "row a: titel is unknown"),
        ("rows: {a: {name: x}}", "row a: name is unknown"),
        ("rows: {a: {title: A}, a: {title: B}}", "a occurs twice"),
        ("rows: {a: {config: c}}", "row a: title is missing"),
        ("rows: {a: {title: A}}", "row a: config is missing"),
        ("rows: {a: 3}", "row a is a int"),
        ("rows: {a: }", "row a is nothing"),
        ("rows: {1: {title: A}}", "row 1: its name"),
        ("rows: {../a: {title: A}}", "row ../a: its name"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, text, why):
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(
        RegionDHError, match=f"table.yaml is no table of .+{re.escape(why)}"
    ) as told:
        read_table(path)
    assert "\n" not in str(told.value)


GOOD = {"title": "A", "config": "c.yaml", "bits": [8], "seeds": [0]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bits", 48),
        ("bits", []),
        ("bits", ["48"]),
        ("bits", [48, 48]),
        ("bits", [0]),
        ("bits", [True]),
        ("seeds", [-1]),
        ("seeds", [0.5]),
        ("seeds", None),
        ("title", 3),
        ("config", None),
        ("opts", ["SOLVER.BASE_LR"]),
        ("opts", "SOLVER.BASE_LR 1"),
        ("opts", {"SOLVER.BASE_LR": 1}),
        ("opts", ["SEED", 3]),
        ("opts", ["MODEL.REGION_DH.BITS", 3]),
        ("opts", ["OUTPUT_DIR", "x"]),
        ("trains", "h1"),
    ],
)
def test_a_wrong_value_of_a_row_is_named(tmp_path, key, value):
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump({"rows": {"good": GOOD, "bad": {**GOOD, key: value}}}))
    with pytest.raises(RegionDHError, match=rf"table.yaml is no table .+: row bad: {key} "):
        read_table(path)


def test_a_table_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="table.yaml: no such table"):
        read_table(tmp_path / "table.yaml")
    (tmp_path / "table.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RegionDHError, match="table.yaml is no table .+: it is no UTF-8 text"):
        read_table(tmp_path / "table.yaml")


def test_every_row_of_the_shipped_table_has_a_config():
    rows = read_table(TABLE)
    assert len({row.name for row in rows}) == len(rows)
    assert all((ROOT / row.config).is_file() for row in rows)
