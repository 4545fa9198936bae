"""Experiments: the table file, comparisons, and tools/run_experiments.py end to end."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from regiondh_d2.checkpoint import model_fingerprint
from regiondh_d2.data import generate_scenes
from regiondh_d2.data.datasets.scenes import register_scenes
from regiondh_d2.engine import build_cfg, experiments
from regiondh_d2.engine.command import CommandError
from regiondh_d2.engine.experiments import (
    differences,
    fill_document,
    markdown_table,
    paired_bootstrap,
    read_table,
)
from regiondh_d2.engine.training_record import Training, TrainingRecorder
from regiondh_d2.evaluation.retrieval_evaluator import rank_code_sets
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.structures.codes import CodeSet
from regiondh_d2.structures.packed import pack_codes
from regiondh_d2.utils.errors import RegionDHError

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml"


def write_table(folder, **rows):
    path = folder / "table.yaml"
    opts = ["SOLVER.CHECKPOINT_PERIOD", 1]
    defaults = {"config": str(CONFIG), "bits": [8], "seeds": [0], "opts": opts}
    path.write_text(yaml.safe_dump({"defaults": defaults, "rows": rows}, sort_keys=False))
    return path


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


GOOD = {"title": "A", "config": "c.yaml", "bits": [8], "seeds": [0]}


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
        ("rows: {a: {title: A}, a: {title: B}}", "a stands twice"),
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
    rows = read_table(ROOT / "tools/experiments.yaml")
    assert len({row.name for row in rows}) == len(rows)
    assert all((ROOT / row.config).is_file() for row in rows)


def test_bootstrap_is_that_of_drawn_queries():
    rng = np.random.default_rng(1)
    a, b = rng.random(40), rng.random(40)
    mean, low, high = paired_bootstrap(a, b)
    drawn = rng.integers(40, size=(20_000, 40))  # independently of the multinomial counts
    expected = np.percentile((a - b)[drawn].mean(axis=1), (2.5, 97.5))
    assert mean == pytest.approx((a - b).mean())
    assert (low, high) == pytest.approx(expected, abs=0.01)


def test_bootstrap_leaves_out_queries_without_relevant_images():
    a, b = np.array([0.5, np.nan, 0.7]), np.array([0.25, np.nan, 0.45])
    assert paired_bootstrap(a, b) == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match="same queries"):
        paired_bootstrap(a, np.array([0.25, 0.3, 0.45]))


SHOWN = ["MAP@1000", "MAP_min@1000", "NDCG@1000", "ACG@1000"]
BOUNDS = ["MAP_min@1000-pessimistic", "MAP_min@1000-optimistic"]
RESULT = {
    "metrics": {"set": dict.fromkeys(SHOWN + BOUNDS, 0.5)},
    "box_ap": {},
    "minutes": 1.0,
}


def test_markdown_shows_mean_spread_and_ties(tmp_path):
    row = read_table(write_table(tmp_path, a={"title": "A", "seeds": [0, 1, 2]}))[0]
    for run, value in zip(row.runs()[:2], (0.4, 0.6), strict=True):
        metrics = {f"{m}@1000": value for m in ("MAP", "MAP_min", "NDCG", "ACG")}
        metrics |= {"MAP_min@1000-pessimistic": value - 0.1, "MAP_min@1000-optimistic": value + 0.1}
        result = {"metrics": {"set": metrics}, "box_ap": {"bbox/AP50": 40.0}, "minutes": 2.0}
        run.result_file(tmp_path).write_text(json.dumps(result))
    line = markdown_table([row], tmp_path, "set").splitlines()[2]
    assert line == (
        "| A | `a` | 8 | 2 | 0.500 ± 0.141 | 0.500 ± 0.141 | 0.500 ± 0.141 | 0.500 ± 0.141 "
        "| 0.400 to 0.600 | 40.0 ± 0.0 | 2.0 |"
    )
    assert len(markdown_table([row], tmp_path, "another").splitlines()) == 2


def test_a_document_is_filled_where_it_says_so(tmp_path):
    rows = read_table(write_table(tmp_path, a={"title": "A"}, b={"title": "B"}))
    found = [
        {
            "row": "a",
            "against": "b",
            "bits": 8,
            "metric": m,
            "difference": d,
            "low": -0.1,
            "high": 1,
        }
        for m, d in (("MAP", 0.25), ("MAP_min", 0.5), ("NDCG", 0.0), ("ACG", -0.125))
    ]
    (tmp_path / "differences_set_a.json").write_text(json.dumps(found))
    text = "Before\n<!-- {} -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    filled = fill_document(text.format("differences: set a"), rows, tmp_path)
    assert "old" not in filled
    assert filled.startswith("Before\n<!-- differences: set a -->\n\n| against | bits | MAP |")
    assert "| b | 8 | +0.250 (-0.100 to +1.000) | +0.500 (" in filled
    assert filled.endswith(" |\n\n<!-- end -->\nafter <!-- end -->\n")
    assert fill_document(filled, rows, tmp_path) == filled
    assert "| b | 8 |" not in fill_document(text.format("differences: set a 16"), rows, tmp_path)
    with pytest.raises(ValueError, match="must name a row: <!-- differences: set 8 -->"):
        fill_document(text.format("differences: set 8"), rows, tmp_path)
    for row in rows:
        row.runs()[0].result_file(tmp_path).write_text(json.dumps(RESULT))
    table = fill_document(text.format("table: set a b"), rows, tmp_path)
    assert markdown_table(rows, tmp_path, "set") in table
    ordered = fill_document(text.format("table: set b a 8"), rows, tmp_path)
    assert ordered.index("| B | `b` | 8 |") < ordered.index("| A | `a` | 8 |")
    assert "| B |" not in fill_document(text.format("table: set b 16"), rows, tmp_path)
    with pytest.raises(ValueError, match="unknown rows: c"):
        fill_document(text.format("table: set c"), rows, tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no place", "no place for a table"),
        ("<!-- table: other a -->\nold\n<!-- end -->", "of dataset 'other'; .* results of: set"),
        ("<!-- table: set a -->\nkept", "no <!-- end --> after <!-- table: set a"),
        (
            "<!-- table: set a -->\nkept\n<!-- differences: set a -->\nold\n<!-- end -->",
            "no <!-- end --> after <!-- table: set a",
        ),
    ],
)
def test_a_document_that_would_lose_text_is_refused(tmp_path, text, told):
    (row,) = read_table(write_table(tmp_path, a={"title": "A"}))
    row.runs()[0].result_file(tmp_path).write_text(json.dumps(RESULT))
    with pytest.raises(RegionDHError, match=told):
        fill_document(text, [row], tmp_path)


def test_a_result_at_another_cut_off_is_not_called_damaged(load_tool, tmp_path):
    (row,) = read_table(write_table(tmp_path, a={"title": "A"}))
    metrics = {name.replace("@1000", "@5"): 0.5 for name in SHOWN + BOUNDS}
    file = row.runs()[0].result_file(tmp_path)
    file.write_text(json.dumps({**RESULT, "metrics": {"set": metrics}}))
    with pytest.raises(RegionDHError, match="measured at TEST.RETRIEVAL.TOPK 5, and tables show"):
        markdown_table([row], tmp_path, "set")
    plots = load_tool("plot_experiments")
    with pytest.raises(RegionDHError, match="measured at TEST.RETRIEVAL.TOPK 5"):
        plots.metrics_against_bits([row], tmp_path, "set", "MAP@1000")
    assert plots.metrics_against_bits([row], tmp_path, "set", "MAP@5") == {"A": {8: 0.5}}


def test_a_folder_in_place_of_a_result_is_told(tmp_path):
    (row,) = read_table(write_table(tmp_path, a={"title": "A"}))
    row.runs()[0].result_file(tmp_path).mkdir()
    with pytest.raises(RegionDHError, match="a_8_seed0.json is no file: move it away"):
        row.runs()[0].result(tmp_path)


def test_a_summary_of_nothing_is_told(load_tool, tmp_path, capsys):
    tool = load_tool("run_experiments")
    table = write_table(tmp_path, a={"title": "A"})
    arguments = ["--table", str(table), "--results", str(tmp_path), "--summary"]
    with pytest.raises(RegionDHError, match="of dataset 'set'; there are results of: none"):
        tool.main(tool.build_parser().parse_args([*arguments, "set"]))
    read_table(table)[0].runs()[0].result_file(tmp_path).write_text(json.dumps(RESULT))
    with pytest.raises(RegionDHError, match="of dataset 'sett'; there are results of: set"):
        tool.main(tool.build_parser().parse_args([*arguments, "sett"]))
    tool.main(tool.build_parser().parse_args([*arguments, "set"]))
    assert "| A | `a` | 8 |" in capsys.readouterr().out


TOPK = 10


def measure(folder, run, noise, data="the same"):
    """Code files and a result as a training leaves them: codes are labels with wrong bits.

    Returns the metrics, of 30 queries of which one has no relevant image.
    """
    rng = np.random.default_rng(0)  # the same labels in every run
    labels = [rng.random((count, run.bits)) < 0.3 for count in (30, 40)]
    for known in labels:
        known[:, 0] |= ~known.any(axis=1)
    labels[0][3] = False
    rng = np.random.default_rng(run.seed + 1)
    sets = []
    for role, known in zip(("query", "database"), labels, strict=True):
        names = [str(row) for row in range(len(known))]
        codes = pack_codes(known ^ (rng.random(known.shape) < noise))
        sets.append(CodeSet(codes, run.bits, names, names, known.astype(np.uint8)))
        write_codes(folder / f"output/{run.name}/inference/set/{role}.h5", sets[-1])
    metrics = rank_code_sets(*sets, (TOPK, 1000))[0].metrics
    result = {**RESULT, "metrics": {"set": metrics}, "data_sha256": {"set": data}}
    (folder / "results").mkdir(exist_ok=True)
    run.result_file(folder / "results").write_text(json.dumps(result))
    return metrics


@pytest.fixture
def two_rows(tmp_path):
    """Rows a and b of two seeds, and the folders of their results; nothing is measured yet."""
    seeds = {"title": "", "seeds": [0, 1]}
    return read_table(write_table(tmp_path, a=seeds, b=seeds))


def compare(folder, rows, earlier=()):
    runs = [run for row in rows for run in row.runs()]
    folders = folder / "output", folder / "results"
    return differences(runs, rows[0], *folders, "set", TOPK, earlier)


def test_differences_are_those_of_the_means_and_outlive_the_code_files(two_rows, tmp_path):
    a, b = (
        [measure(tmp_path, run, noise) for run in row.runs()]
        for row, noise in zip(two_rows, (0.1, 0.25), strict=True)
    )
    found, _ = compare(tmp_path, two_rows)
    assert [d["metric"] for d in found] == ["MAP", "MAP_min", "NDCG", "ACG"]
    for d in found:
        name = f"{d['metric']}@{TOPK}"
        mean = np.mean([x[name] - y[name] for x, y in zip(a, b, strict=True)])
        assert d["difference"] == pytest.approx(mean, abs=2e-4)
        assert d["low"] < mean < d["high"]
        assert (d["row"], d["against"], d["bits"], d["seeds"]) == ("a", "b", 8, 2)
    shutil.rmtree(tmp_path / "output")
    assert compare(tmp_path, two_rows) == (found, [])
    shutil.rmtree(tmp_path / "results/per_query")
    assert compare(tmp_path, two_rows) == ([], [])


def test_kept_values_are_used_before_code_files_and_completed_from_them(two_rows, tmp_path):
    """Another cut-off joins what is kept."""
    run = two_rows[0].runs()[0]
    measure(tmp_path, run, 0.1)
    folders = tmp_path / "output", tmp_path / "results"
    file = run.per_query_file(folders[1])
    file.parent.mkdir()
    kept = {f"set/{name}": np.arange(30, dtype=np.float16) for name in SHOWN}
    np.savez_compressed(file, **kept)
    result = json.loads(run.result_file(folders[1]).read_text())
    result["metrics"]["set"] |= dict.fromkeys(SHOWN, 14.5)
    run.result_file(folders[1]).write_text(json.dumps(result))
    assert (run.per_query(*folders, "set", 1000)["ACG"] == np.arange(30)).all()
    other = run.per_query(*folders, "set", 5)
    assert np.flatnonzero(np.isnan(other["ACG"])).tolist() == [3]
    shutil.rmtree(folders[0])
    np.testing.assert_array_equal(run.per_query(*folders, "set", 5)["ACG"], other["ACG"])
    assert (run.per_query(*folders, "set", 1000)["ACG"] == np.arange(30)).all()
    assert run.per_query(*folders, "another", 5) is None


def test_only_runs_that_are_done_are_compared(two_rows, tmp_path):
    for run in (run for row in two_rows for run in row.runs()):
        measure(tmp_path, run, 0.1)
    two_rows[1].runs()[1].result_file(tmp_path / "results").unlink()
    assert {d["seeds"] for d in compare(tmp_path, two_rows)[0]} == {1}
    two_rows[1].runs()[0].result_file(tmp_path / "results").unlink()
    assert compare(tmp_path, two_rows) == ([], [])


def entries(row, against, seeds):
    values = {"row": row, "against": against, "bits": 8, "seeds": seeds}
    values |= {"difference": 0.5, "low": 0.25, "high": 0.75}
    return [{**values, "metric": metric} for metric in ("MAP", "MAP_min", "NDCG", "ACG")]


def test_earlier_differences_stay_where_they_cannot_be_measured(two_rows, tmp_path):
    """No values of b, or of the reference, or fewer seeds; and rows that aren't asked for."""
    earlier = [*entries("a", "c", 1), *entries("a", "b", 2)]
    b, c = entries("a", "b", 2), entries("a", "c", 1)
    assert compare(tmp_path, two_rows, earlier) == ([*b, *c], ["b 8", "c 8"])
    measure(tmp_path, two_rows[0].runs()[0], 0.1)
    assert compare(tmp_path, two_rows, earlier) == ([*b, *c], ["b 8", "c 8"])
    measure(tmp_path, two_rows[1].runs()[0], 0.2)
    assert compare(tmp_path, two_rows, earlier) == ([*b, *c], ["b 8", "c 8"])
    measure(tmp_path, two_rows[1].runs()[1], 0.2)
    assert compare(tmp_path, two_rows, earlier) == ([*b, *c], ["b 8", "c 8"])
    measure(tmp_path, two_rows[0].runs()[1], 0.1)
    expected, _ = compare(tmp_path, two_rows)
    assert len(expected) == 4
    assert {(d["seeds"], d["reference_seeds"]) for d in expected} == {(2, 2)}
    assert compare(tmp_path, two_rows, earlier) == ([*expected, *c], ["c 8"])
    two_rows[0].runs()[0].result_file(tmp_path / "results").unlink()
    again = [*expected, *c]
    assert compare(tmp_path, two_rows, again) == (again, ["b 8", "c 8"])


def test_the_summary_keeps_earlier_differences_in_its_file(load_tool, two_rows, tmp_path, capsys):
    """The whole command: with code files, without them, and without any query's metrics."""
    tool = load_tool("run_experiments")

    def summary():
        folders = ("--results", str(tmp_path / "results"), "--output", str(tmp_path / "output"))
        arguments = ["--table", str(tmp_path / "table.yaml"), *folders]
        tool.main(
            tool.build_parser().parse_args([*arguments, "--summary", "set", "--against", "a"])
        )
        return capsys.readouterr().out

    for row, noise in zip(two_rows, (0.1, 0.25), strict=True):
        for run in row.runs():
            measure(tmp_path, run, noise)
    file = tmp_path / "results/differences_set_a.json"
    file.write_text(json.dumps(entries("a", "c", 3)))
    out = summary()
    assert f"{file}: kept as measured earlier: c 8\n" in out
    assert "| c | 8 | +0.500 (+0.250 to +0.750) |" in out
    written = json.loads(file.read_text())
    assert [d["against"] for d in written] == ["b"] * 4 + ["c"] * 4
    shutil.rmtree(tmp_path / "output")
    assert summary() == out
    shutil.rmtree(tmp_path / "results/per_query")
    assert f"{file}: kept as measured earlier: b 8, c 8\n" in summary()
    assert json.loads(file.read_text()) == written


def test_runs_on_different_data_are_not_compared(two_rows, tmp_path):
    measure(tmp_path, two_rows[0].runs()[0], 0.1)
    measure(tmp_path, two_rows[1].runs()[0], 0.1, data="other")
    with pytest.raises(ValueError, match="a_8_seed0 and b_8_seed0 were measured on different"):
        compare(tmp_path, two_rows)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b"text", lambda b: b[:300], lambda b: b[:99] + bytes(50) + b[149:]],
)
def test_a_damaged_file_of_kept_values_is_named(two_rows, tmp_path, damage):
    for row in two_rows:
        measure(tmp_path, row.runs()[0], 0.1)
    compare(tmp_path, two_rows)
    file = two_rows[0].runs()[0].per_query_file(tmp_path / "results")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="a_8_seed0.npz is damaged .* or delete it"):
        compare(tmp_path, two_rows)
    file.unlink()
    assert len(compare(tmp_path, two_rows)[0]) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda _: "",
        lambda _: "{}",
        lambda _: "[]",
        lambda _: "null",
        lambda text: text.replace('"minutes"', '"hours"'),
        lambda text: text.replace('"metrics"', '"numbers"'),
        lambda text: text.replace('"MAP_min@1000"', '"MAP"'),
        lambda text: text.replace('"NDCG@1000": ', '"NDCG@1000": null, "x": '),
        lambda _: '{"metrics": {"set": 3}, "box_ap": {}, "minutes": 1}',
        lambda _: '{"metrics": {}, "box_ap": {}, "minutes": 1}',
    ],
)
def test_a_damaged_result_is_named(two_rows, tmp_path, damage):
    measure(tmp_path, two_rows[0].runs()[0], 0.1)
    file = two_rows[0].runs()[0].result_file(tmp_path / "results")
    file.write_text(damage(file.read_text()))
    with pytest.raises(RegionDHError, match="a_8_seed0.json is damaged .* or delete it"):
        markdown_table(two_rows, tmp_path / "results", "set")


def test_a_result_that_is_no_text_is_named(two_rows, tmp_path):
    (tmp_path / "a_8_seed0.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RegionDHError, match="a_8_seed0.json is damaged"):
        two_rows[0].runs()[0].result(tmp_path)


def test_a_result_without_data_is_not_compared(two_rows, tmp_path):
    for row in two_rows:
        measure(tmp_path, row.runs()[0], 0.1)
    file = two_rows[1].runs()[0].result_file(tmp_path / "results")
    file.write_text(file.read_text().replace("data_sha256", "other"))
    with pytest.raises(RegionDHError, match="b_8_seed0.json is damaged .no data_sha256 of set"):
        compare(tmp_path, two_rows)


def test_a_result_of_other_options_is_refused(tmp_path):
    """Where the row was changed and its result left in place."""
    table = write_table(tmp_path, a={"title": "A", "opts": ["SOLVER.BASE_LR", 0.1]})
    (run,) = read_table(table)[0].runs()
    command = shlex.join(run.command(Path("some where/output")))
    file = run.result_file(tmp_path)
    file.write_text(json.dumps({**RESULT, "command": command}))
    assert run.result(tmp_path)["command"] == command
    for opts, told in (
        (["SOLVER.BASE_LR", 0.2], "SOLVER.BASE_LR 0.1, and row a has 0.2 now"),
        (
            ["SOLVER.BASE_LR", 0.1, "MODEL.MASK_ON", True],
            r"MODEL.MASK_ON .none., and row a has True",
        ),
        ([], r"SOLVER.BASE_LR 0.1, and row a has .none. now"),
    ):
        table = write_table(tmp_path, a={"title": "A", "opts": opts})
        (changed,) = read_table(table)[0].runs()
        with pytest.raises(RegionDHError, match=rf"a_8_seed0.json was trained with {told}"):
            changed.result(tmp_path)


def test_an_audited_result_is_marked(two_rows, tmp_path):
    for run in two_rows[0].runs():
        run.result_file(tmp_path).write_text(json.dumps({**RESULT, "audit": "a doubt"}))
    for run in two_rows[1].runs():
        run.result_file(tmp_path).write_text(json.dumps(RESULT))
    table = markdown_table(two_rows, tmp_path, "set")
    assert "| \u2020 | `a` | 8 |" in table.replace("|  \u2020", "| \u2020")
    assert "|  | `b` | 8 |" in table
    assert table.endswith("\n\n\u2020 `a_8_seed0`, `a_8_seed1`: a doubt\n")


def test_a_damaged_file_of_differences_is_named(tmp_path):
    file = experiments.differences_file(tmp_path, "set", "a")
    for text in ("[{", "", "{}", "[3]", '[{"against": "b"}]'):
        file.write_text(text)
        with pytest.raises(RegionDHError, match="differences_set_a.json is damaged"):
            experiments.read_differences(file)


def test_kept_values_of_another_network_are_refused(two_rows, tmp_path):
    """An older file beside a new result; and code files of another network."""
    for row in two_rows:
        measure(tmp_path, row.runs()[0], 0.1)
    run = two_rows[0].runs()[0]
    compare(tmp_path, two_rows)
    old = run.per_query_file(tmp_path / "results").read_bytes()
    measure(tmp_path, run, 0.3)
    with pytest.raises(RegionDHError, match=r"a_8_seed0.npz is of another network than the result"):
        compare(tmp_path, two_rows)
    run.per_query_file(tmp_path / "results").unlink()
    compare(tmp_path, two_rows)
    result = run.result_file(tmp_path / "results").read_text()
    measure(tmp_path, run, 0.2)  # the codes, of which only the result is put back
    run.result_file(tmp_path / "results").write_text(result)
    run.per_query_file(tmp_path / "results").unlink()
    with pytest.raises(RegionDHError, match=r"inference/set is of another network than the result"):
        compare(tmp_path, two_rows)
    assert not run.per_query_file(tmp_path / "results").exists()
    assert old


def test_code_files_of_another_network_than_the_checkpoint_are_refused(two_rows, tmp_path):
    run = two_rows[0].runs()[0]
    measure(tmp_path, run, 0.1)
    network = torch.nn.Linear(2, 2)
    torch.save({"model": network.state_dict()}, tmp_path / f"output/{run.name}/model_final.pth")
    for role in ("query", "database"):
        file = tmp_path / f"output/{run.name}/inference/set/{role}.h5"
        codes = dataclasses.replace(read_codes(file), model_fingerprint=model_fingerprint(network))
        write_codes(file, codes)
    assert run.read_codes(tmp_path / "output", "set") is not None
    write_codes(file, dataclasses.replace(codes, model_fingerprint="e" * 64))
    with pytest.raises(
        RegionDHError, match=r"database.h5 was coded by model eeeeeeeeeeee, not by "
    ):
        run.read_codes(tmp_path / "output", "set")


def test_a_result_never_lacks_the_values_of_its_queries(tmp_path, monkeypatch):
    """Where they can't be written, the run isn't done."""
    opts = ["DATASETS.TEST", "('set',)", "MODEL.DEVICE", "cpu"]
    run = read_table(write_table(tmp_path, a={"title": "", "opts": opts}))[0].runs()[0]
    measure(tmp_path, run, 0.1)
    output, results = tmp_path / "output", tmp_path / "results"
    run.result_file(results).unlink()
    monkeypatch.setattr(experiments, "_run_timed", lambda *_: 0)
    monkeypatch.setattr(run.__class__, "check", lambda *_: checked(run, output))
    for name in ("_metrics", "_box_ap", "data_checksum"):
        monkeypatch.setattr(experiments, name, lambda *_: {})
    (results / "per_query").write_text("in the way")
    with pytest.raises(OSError, match="per_query"):
        run.train(output, results)
    assert not run.result_file(results).exists()
    (results / "per_query").unlink()
    run.train(output, results)
    assert run.result_file(results).is_file()
    with np.load(run.per_query_file(results)) as kept:
        assert sorted(kept) == ["set/ACG@5", "set/MAP@5", "set/MAP_min@5", "set/NDCG@5"]


def checked(run, output):
    cfg = build_cfg(run.row.config, run.options(output))
    return cfg, Training.of(cfg)


PREFIX = "run_experiments_test_"


@pytest.fixture
def scenes(tmp_path):
    """Options of a row that trains on two scenes of this test; the folder is below tmp_path."""
    before = set(DatasetCatalog.list())
    generate_scenes(tmp_path / "scenes", num_database=2, num_queries=1)
    register_scenes(tmp_path / "scenes", PREFIX)
    (tmp_path / "start.pth").write_bytes(b"weights")
    train, test = f"{PREFIX}regiondh_scenes_database", f"{PREFIX}scenes_retrieval"
    yield [
        *("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)"),
        *("MODEL.WEIGHTS", str(tmp_path / "start.pth"), "MODEL.DEVICE", "cpu"),
    ]
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def row_of(folder, opts, **values):
    return read_table(write_table(folder, a={"title": "A", "opts": opts, **values}))[0]


def save_network(folder, run, **changes):
    """A checkpoint as a training of a run leaves it."""
    cfg, training = run.check(folder / "output")
    recorder = TrainingRecorder(cfg)
    recorder.begin(resumed=False)
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir(parents=True)
    content = {"model": {}, "training": {**recorder.state_dict(), **changes}}
    torch.save(content, output / "model_0000001.pth")
    (output / "last_checkpoint").write_text("model_0000001.pth")
    return output


def test_a_network_of_the_same_training_is_taken(scenes, tmp_path):
    run = row_of(tmp_path, scenes).runs()[0]
    save_network(tmp_path, run)
    run.check(tmp_path / "output")
    elsewhere = [*scenes, "DATALOADER.NUM_WORKERS", 0, "TEST.RETRIEVAL.TOPK", 3]
    row_of(tmp_path, elsewhere).runs()[0].check(tmp_path / "output")


@pytest.mark.parametrize(
    "change", ["option", "config", "weights", "images", "parts", "0.1", "gone"]
)
def test_a_network_of_another_training_is_refused(scenes, tmp_path, change):
    """Nothing trains, and nothing is deleted."""
    config = tmp_path / "config.yaml"
    config.write_text(f"_BASE_: {CONFIG}\n")
    run = row_of(tmp_path, scenes, config=str(config)).runs()[0]
    mixed = {"earlier": [{}]} if change == "parts" else {}
    folder = save_network(tmp_path, run, **mixed)
    told = {
        "option": r"SOLVER.BASE_LR .+, which is now 0.123",
        "config": r"SOLVER.BASE_LR .+, which is now 0.123",
        "weights": r"another content of MODEL.WEIGHTS",
        "images": r"other images or objects of run_experiments_test_regiondh_scenes_database",
        "parts": r"was trained in parts of different settings",
        "0.1": r"doesn't say what it was trained with",
        "gone": r"the last checkpoint there, is missing",
    }[change]
    if change == "option":
        opts = [*scenes, "SOLVER.BASE_LR", 0.123]
        run = row_of(tmp_path, opts, config=str(config)).runs()[0]
    elif change == "config":
        config.write_text(f"_BASE_: {CONFIG}\nSOLVER: {{BASE_LR: 0.123}}\n")
    elif change == "weights":
        (tmp_path / "start.pth").write_bytes(b"others")
    elif change == "images":
        image = next((tmp_path / "scenes/JPEGImages").glob("database*"))
        image.write_bytes(image.read_bytes() + b" ")
    elif change == "0.1":
        torch.save({"model": {}, "iteration": 3}, folder / "model_0000001.pth")
    elif change == "gone":
        (folder / "model_0000001.pth").unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(RegionDHError, match=rf"{told}.*: delete .+a_8_seed0, or move it away"):
        run.train(tmp_path / "output", tmp_path / "results")
    assert sorted(folder.rglob("*")) == before
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (
            ["DATASETS.TRAIN", "('nowhere',)"],
            "DATASETS.TRAIN has 'nowhere', which isn't registered",
        ),
        (["DATASETS.TEST", "('nowhere',)"], "DATASETS.TEST has 'nowhere', which isn't registered"),
        (["DATASETS.TEST", "()"], "must each name a dataset"),
        (["DATASETS.TEST", f"('{PREFIX}regiondh_scenes_queries',)"], "is no retrieval dataset"),
        (["SOLVER.BASE_RATE", 1], "Non-existent config key: SOLVER.BASE_RATE"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS nowhere.pth: no such file"),
    ],
)
def test_a_row_that_cannot_be_trained_is_named(scenes, tmp_path, opts, told):
    run = row_of(tmp_path, [*scenes, *opts]).runs()[0]
    with pytest.raises(RegionDHError, match=rf"^row a: .*{re.escape(told)}"):
        run.check(tmp_path / "output")


def test_a_config_or_images_that_are_not_there_are_named(scenes, tmp_path):
    run = row_of(tmp_path, scenes, config="nowhere.yaml").runs()[0]
    with pytest.raises(RegionDHError, match=r"^row a: nowhere.yaml: no such config file"):
        run.check(tmp_path / "output")
    shutil.rmtree(tmp_path / "scenes/Annotations")
    with pytest.raises(RegionDHError, match=r"^row a: .+Annotations"):
        row_of(tmp_path, scenes).runs()[0].check(tmp_path / "output")


def test_a_result_of_another_config_is_refused(scenes, tmp_path):
    """The options are the same, and the config's file was changed."""
    config = tmp_path / "config.yaml"
    config.write_text(f"_BASE_: {CONFIG}\n")
    run = row_of(tmp_path, scenes, config=str(config)).runs()[0]
    _, training = run.check(tmp_path / "output")
    result = {**RESULT, "settings_sha256": training.settings_sha256}
    run.check_result(tmp_path / "output", result)
    config.write_text(f"_BASE_: {CONFIG}\nSOLVER: {{BASE_LR: 0.123}}\n")
    with pytest.raises(RegionDHError, match="the result of a_8_seed0 was trained with other"):
        run.check_result(tmp_path / "output", result)
    run.check_result(tmp_path / "output", RESULT)


@pytest.mark.parametrize("changed", ["weights", "image", "label"])
def test_a_result_of_other_weights_or_data_is_refused(scenes, tmp_path, changed):
    weights = tmp_path / "start.pth"
    weights.write_bytes(b"one")
    run = row_of(tmp_path, [*scenes, "MODEL.WEIGHTS", str(weights)]).runs()[0]
    _, training = run.check(tmp_path / "output")
    result = {
        **RESULT,
        "settings_sha256": training.settings_sha256,
        "weights_sha256": training.weights_sha256,
        "data_sha256": training.data_sha256,
    }
    run.check_result(tmp_path / "output", result)
    if changed == "weights":
        weights.write_bytes(b"two")
        told = f"another content of MODEL.WEIGHTS {weights}"
    elif changed == "image":
        for image in (tmp_path / "scenes/JPEGImages").iterdir():
            image.write_bytes(image.read_bytes() + b"0")
        told = f"other images or objects of {PREFIX}regiondh_scenes_"
    else:
        for file in (tmp_path / "scenes/Annotations").iterdir():
            file.write_text(re.sub("<xmax>.*?</xmax>", "<xmax>190</xmax>", file.read_text()))
        told = f"other images or objects of {PREFIX}regiondh_scenes_"
    with pytest.raises(RegionDHError, match=told):
        run.check_result(tmp_path / "output", result)
    # Results that came without images and weights stay.
    weights.unlink()
    shutil.rmtree(tmp_path / "scenes")
    run.check_result(tmp_path / "output", result)


def test_half_a_line_of_metrics_costs_nothing(tmp_path):
    lines = ['{"bbox/AP50": 1.0}', '{"bbox/AP50": 2.0', '{"bbox/AP50": 3.0, "bbox/AP": 4.0}', "{"]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert experiments._box_ap(tmp_path, ["set"]) == {"bbox/AP50": 3.0, "bbox/AP": 4.0}


def test_all_rows_are_checked_before_any_is_trained(load_tool, scenes, tmp_path, monkeypatch):
    tool = load_tool("run_experiments")
    bad = {"title": "B", "opts": ["DATASETS.TRAIN", "('nowhere',)"]}
    write_table(tmp_path, a={"title": "A", "opts": scenes}, b=bad)
    trained = []
    monkeypatch.setattr(experiments.Run, "train", lambda run, *_: trained.append(run))
    folders = ["--results", str(tmp_path / "results"), "--output", str(tmp_path / "output")]
    arguments = tool.build_parser().parse_args(["--table", str(tmp_path / "table.yaml"), *folders])
    with pytest.raises(RegionDHError, match=r"table.yaml: row b: DATASETS.TRAIN has 'nowhere'"):
        tool.main(arguments)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/b_8_seed0.json").write_text("")
    with pytest.raises(RegionDHError, match=r"b_8_seed0.json is damaged"):
        tool.main(arguments)
    assert trained == []


@pytest.mark.parametrize("option", ["results", "output"])
def test_a_file_for_a_folder_is_refused(load_tool, two_rows, tmp_path, option):
    tool = load_tool("run_experiments")
    (tmp_path / "file").write_text("")
    table = ["--table", str(tmp_path / "table.yaml")]
    arguments = tool.build_parser().parse_args([*table, f"--{option}", str(tmp_path / "file")])
    with pytest.raises(CommandError, match=rf"--{option} .+file is a file: name a folder"):
        tool.main(arguments)


def test_minutes_of_all_parts_count(tmp_path, monkeypatch):
    """Also of one that was killed, as far as they were written; not those of another training."""
    clock = [0.0]
    monkeypatch.setattr(experiments.time, "perf_counter", lambda: clock[0])
    first = experiments._Minutes(tmp_path, "training")
    clock[0] = 120.0
    first.write()
    clock[0] = 150.0  # killed here
    second = experiments._Minutes(tmp_path, "training")
    clock[0] = 210.0
    second.write()
    assert second.parts == [2.0, 1.0]
    assert not second.lost
    assert experiments._Minutes(tmp_path, "another").parts == [0.0]
    (tmp_path / "minutes.json").write_text("{")
    assert not experiments._Minutes(tmp_path, "training").lost
    (tmp_path / "last_checkpoint").write_text("model.pth")
    assert experiments._Minutes(tmp_path, "training").lost


def test_time_is_kept_while_a_command_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "SAVE_MINUTES", 0.05)
    minutes = experiments._Minutes(tmp_path, "training")
    seen = []
    write = minutes.write
    monkeypatch.setattr(minutes, "write", lambda: (write(), seen.append(minutes.parts[-1])))
    code = [
        sys.executable,
        "-c",
        "import time; print('line'); time.sleep(0.5); raise SystemExit(3)",
    ]
    assert experiments._run_timed(code, tmp_path / "log", minutes) == 3
    assert (tmp_path / "log").read_text() == "line\n"
    assert len(seen) > 3
    kept = json.loads((tmp_path / "minutes.json").read_text())
    assert kept["minutes"] == [seen[-1]]
    assert kept["minutes"][0] >= 0.5 / 60


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    generate_scenes(folder / "scenes", num_database=8, num_queries=4)
    opts = ["TEST.RETRIEVAL.TOPK", 1000]
    rows = {name: {"title": name.title(), "opts": opts} for name in ("first", "second")}
    write_table(folder, **rows)
    return folder


def start(workspace, *args):
    command = [
        sys.executable,
        str(ROOT / "tools/run_experiments.py"),
        "--table",
        "table.yaml",
        *args,
    ]
    env = {**os.environ, "DETECTRON2_DATASETS": str(workspace), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "--results", "results", "--output", "output"],
        cwd=workspace,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(workspace, *args):
    process = start(workspace, *args)
    out, err = process.communicate()
    return process.returncode, out, err


def test_a_killed_table_goes_on_and_skips_what_is_done(workspace):
    process = start(workspace)
    results, second = workspace / "results", workspace / "output/second_8_seed0"
    deadline = time.monotonic() + 600
    begun = second / "minutes.json"
    while not begun.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert sorted(p.name for p in results.iterdir()) == ["first_8_seed0.json", "per_query"]
    done = (results / "first_8_seed0.json").read_bytes()

    code, out, err = run(workspace)
    assert code == 0, err
    assert "1 of 2 runs are done" in out
    assert (results / "first_8_seed0.json").read_bytes() == done
    result = json.loads((results / "second_8_seed0.json").read_text())
    metrics = result["metrics"]["scenes_retrieval"]
    assert 0.0 < metrics["MAP_min@1000"] <= 1.0
    with np.load(results / "per_query/second_8_seed0.npz") as kept:
        assert sorted(kept) == sorted(f"scenes_retrieval/{name}" for name in SHOWN)
        for name in SHOWN:
            values = kept[f"scenes_retrieval/{name}"]
            assert values.shape == (4,)
            assert np.nanmean(values.astype(float)) == pytest.approx(metrics[name], rel=1e-3)
    assert "bbox/AP50" in result["box_ap"]
    assert result["command"].startswith("tools/train_net.py --config-file")
    assert set(result["data_sha256"]) == {"regiondh_scenes_database", "scenes_retrieval"}

    minutes = json.loads((workspace / "output/second_8_seed0/minutes.json").read_text())["minutes"]
    assert (result["parts"], len(minutes)) == (2, 2)
    assert result["minutes"] == round(sum(minutes), 1)
    database = workspace / "output/second_8_seed0/inference/scenes_retrieval/database.h5"
    assert read_codes(database).model_fingerprint == result["model_fingerprint"]

    code, out, err = run(workspace, "--list")
    assert (code, out.splitlines()[-1]) == (0, "2 of 2 runs are done"), err


def test_a_network_is_not_filed_under_changed_options(workspace):
    """The row's options are changed, and its result deleted, as an error of old advised."""
    opts = ["TEST.RETRIEVAL.TOPK", 1000, "SOLVER.BASE_LR", 0.001]
    write_table(workspace, first={"title": "First", "opts": opts})
    results, output = workspace / "results", workspace / "output/first_8_seed0"
    code, out, err = run(workspace)
    assert (code, out) == (1, "")
    assert "first_8_seed0.json was trained with SOLVER.BASE_LR (none), and row first has" in err
    (results / "first_8_seed0.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    code, out, err = run(workspace)
    assert code == 1
    line = err.splitlines()[-1]
    assert line.startswith("error: table.yaml: output/first_8_seed0/model_final.pth was trained")
    assert "SOLVER.BASE_LR 0.02, which is now 0.001: delete output/first_8_seed0, or" in line
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert not (results / "first_8_seed0.json").exists()


def test_a_run_that_fails_names_its_log_and_leaves_no_result(workspace):
    write = write_table(workspace, broken={"title": "", "opts": ["SOLVER.BASE_LR", 1e30]})
    code, _, err = run(workspace)
    write.unlink()
    assert code == 1
    assert "broken_8_seed0 failed" in err.splitlines()[-1]
    assert "stdout.txt" in err
    assert not (workspace / "results/broken_8_seed0.json").exists()
    assert not (workspace / "results/per_query/broken_8_seed0.npz").exists()


def test_a_comparison_without_a_summary_trains_nothing(workspace):
    code, out, err = run(workspace, "--against", "first")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].endswith("give --summary DATASET, too")


def test_an_unknown_row_is_refused(workspace):
    write_table(workspace, only={"title": ""})
    code, _, err = run(workspace, "another")
    assert code == 1
    assert err.splitlines()[-1] == "error: another is no row of the table; known: only"
