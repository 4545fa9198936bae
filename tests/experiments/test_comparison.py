"""Bootstraps over queries, and differences of rows."""

import shutil

import numpy as np
import pytest

from experiments.comparison import paired_bootstrap
from experiments.result_files import ResultFolder
from regiondh_d2.utils.errors import RegionDHError
from study import TOPK, compare, entries, measure, rewrite


def drop(folder, run):
    """Drop the result of a run, but not what it left."""
    results = ResultFolder(folder / "results")
    kept = results.read_per_query(run)
    results.forget(run)
    if kept:
        results.write_per_query(run, kept)


def test_bootstrap_is_that_of_drawn_queries():
    rng = np.random.default_rng(1)
    a, b = rng.random(40), rng.random(40)
    mean, low, high = paired_bootstrap(a, b)
    drawn = rng.integers(40, size=(20_000, 40))
    expected = np.percentile((a - b)[drawn].mean(axis=1), (2.5, 97.5))
    assert mean == pytest.approx((a - b).mean())
    assert (low, high) == pytest.approx(expected, abs=0.01)


def test_bootstrap_leaves_out_queries_without_relevant_images():
    a, b = np.array([0.5, np.nan, 0.7]), np.array([0.25, np.nan, 0.45])
    assert paired_bootstrap(a, b) == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(ValueError, match="same queries"):
        paired_bootstrap(a, np.array([0.25, 0.3, 0.45]))
    assert paired_bootstrap(a[:2], b[:2]) == (0.25, 0.25, 0.25)
    with pytest.raises(RegionDHError, match="no query has a relevant image"):
        paired_bootstrap(a[1:2], b[1:2])


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


def test_only_runs_that_are_done_are_compared(two_rows, tmp_path):
    for run in (run for row in two_rows for run in row.runs()):
        measure(tmp_path, run, 0.1)
    drop(tmp_path, two_rows[1].runs()[1])
    assert {d["seeds"] for d in compare(tmp_path, two_rows)[0]} == {1}
    drop(tmp_path, two_rows[1].runs()[0])
    assert compare(tmp_path, two_rows) == ([], [])


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
    drop(tmp_path, two_rows[0].runs()[0])
    again = [*expected, *c]
    assert compare(tmp_path, two_rows, again) == (again, ["b 8", "c 8"])


def test_runs_on_different_data_are_not_compared(two_rows, tmp_path):
    measure(tmp_path, two_rows[0].runs()[0], 0.1)
    measure(tmp_path, two_rows[1].runs()[0], 0.1, data="other")
    with pytest.raises(ValueError, match="a_8_seed0 and b_8_seed0 were measured on different"):
        compare(tmp_path, two_rows)


def test_a_result_without_data_is_not_compared(two_rows, tmp_path):
    for row in two_rows:
        measure(tmp_path, row.runs()[0], 0.1)
    rewrite(tmp_path / "results", two_rows[1], lambda text: text.replace("data_sha256", "other"))
    with pytest.raises(RegionDHError, match="b.json is damaged .b_8_seed0: no data_sha256 of set"):
        compare(tmp_path, two_rows)
