"""Tables of results, and documents that they are put in."""

import json
from dataclasses import replace

import pytest

from experiments.documents import fill_document, markdown_table
from experiments.options import TABLE
from experiments.plots import metrics_against_bits
from experiments.result_files import ResultFolder
from experiments.rows import read_table
from regiondh_d2.utils.errors import RegionDHError
from study import BOUNDS, SHOWN, write_result, write_table

STUDY = TABLE.parent


@pytest.fixture
def results(tmp_path):
    return ResultFolder(tmp_path)


@pytest.mark.parametrize(
    "name", sorted(p.stem for p in STUDY.glob("*.md") if "<!-- end -->" in p.read_text("utf-8"))
)
def test_the_pages_of_the_study_show_what_was_measured(name):
    text = (STUDY / f"{name}.md").read_text(encoding="utf-8")
    assert fill_document(text, read_table(TABLE), ResultFolder(STUDY / "results")) == text


def test_markdown_shows_mean_spread_and_ties(tmp_path, results):
    row = read_table(write_table(tmp_path, a={"title": "A", "seeds": [0, 1, 2]}))[0]
    for run, value in zip(row.runs()[:2], (0.4, 0.6), strict=True):
        metrics = {f"{m}@1000": value for m in ("MAP", "MAP_min", "NDCG", "ACG")}
        metrics |= {"MAP_min@1000-pessimistic": value - 0.1, "MAP_min@1000-optimistic": value + 0.1}
        boxes = {"bbox/AP50": 40.0}
        results.write(run, {"metrics": {"set": metrics}, "box_ap": boxes, "minutes": 2.0})
    costs = {"milliseconds": {"a": 31.4, "b": 5.0}, "megabytes": {"a": 801.9}}
    results.milliseconds_file.write_text(json.dumps(costs))
    line = markdown_table([row], results, "set").splitlines()[2]
    assert line == (
        "| A | `a` | 8 | 2 | 0.500 ± 0.141 | 0.500 ± 0.141 | 0.500 ± 0.141 | 0.500 ± 0.141 "
        "| 0.400 to 0.600 | 40.0 ± 0.0 | 2.0 | 31 | 802 |"
    )
    assert len(markdown_table([row], results, "another").splitlines()) == 2
    other = replace(row, name="b")
    write_result(tmp_path, other.runs()[0])
    assert markdown_table([other], results, "set").splitlines()[2].endswith("| 1.0 | 5 |  |")


def test_a_document_is_filled_where_it_says_so(tmp_path, results):
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
    results.write_differences("set", "a", found)
    text = "Before\n<!-- {} -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    filled = fill_document(text.format("differences: set a"), rows, results)
    assert "old" not in filled
    assert filled.startswith("Before\n<!-- differences: set a -->\n\n| against | bits | MAP |")
    assert "| b | 8 | +0.250 (-0.100 to +1.000) | +0.500 (" in filled
    assert filled.endswith(" |\n\n<!-- end -->\nafter <!-- end -->\n")
    assert fill_document(filled, rows, results) == filled
    assert "| b | 8 |" not in fill_document(text.format("differences: set a 16"), rows, results)
    with pytest.raises(ValueError, match="must name a row: <!-- differences: set 8 -->"):
        fill_document(text.format("differences: set 8"), rows, results)
    for row in rows:
        write_result(tmp_path, row.runs()[0])
    table = fill_document(text.format("table: set a b"), rows, results)
    assert markdown_table(rows, results, "set") in table
    ordered = fill_document(text.format("table: set b a 8"), rows, results)
    assert ordered.index("| B | `b` | 8 |") < ordered.index("| A | `a` | 8 |")
    assert "| B |" not in fill_document(text.format("table: set b 16"), rows, results)
    with pytest.raises(ValueError, match="no such file; python -m experiments.tables writes it"):
        fill_document(text.format("claims: all"), rows, results)
    with pytest.raises(ValueError, match="unknown rows: c"):
        fill_document(text.format("table: set c"), rows, results)


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
def test_a_document_that_would_lose_text_is_refused(tmp_path, results, text, told):
    (row,) = read_table(write_table(tmp_path, a={"title": "A"}))
    write_result(tmp_path, row.runs()[0])
    with pytest.raises(RegionDHError, match=told):
        fill_document(text, [row], results)


def test_a_result_at_another_cut_off_is_not_called_damaged(tmp_path, results):
    (row,) = read_table(write_table(tmp_path, a={"title": "A"}))
    metrics = {name.replace("@1000", "@5"): 0.5 for name in SHOWN + BOUNDS}
    write_result(tmp_path, row.runs()[0], metrics={"set": metrics})
    with pytest.raises(RegionDHError, match="measured at TEST.RETRIEVAL.TOPK 5, and 1000 is to"):
        markdown_table([row], results, "set")
    with pytest.raises(RegionDHError, match="measured at TEST.RETRIEVAL.TOPK 5"):
        metrics_against_bits([row], results, "set", "MAP", 1000)
    assert metrics_against_bits([row], results, "set", "MAP", 5) == {"A": {8: 0.5}}


def test_an_audited_result_is_marked(two_rows, tmp_path, results):
    for run in two_rows[0].runs():
        write_result(tmp_path, run, audit="a doubt")
    for run in two_rows[1].runs():
        write_result(tmp_path, run)
    table = markdown_table(two_rows, results, "set")
    assert "| \u2020 | `a` | 8 |" in table.replace("|  \u2020", "| \u2020")
    assert "|  | `b` | 8 |" in table
    assert table.endswith("\n\n\u2020 `a_8_seed0`, `a_8_seed1`: a doubt\n")
