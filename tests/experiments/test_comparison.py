"""Bootstraps over queries and seeds, and differences of rows."""

import math
import shutil

import numpy as np
import pytest

from experiments.comparison import Interval, bootstrap_difference, holm
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


def loop_over_draws(a, b, draws):
    """Mean differences of drawn queries and seeds, deviations of seeds stretched, one by one."""
    rng, found = np.random.default_rng(1), []
    for _ in range(draws):
        queries = rng.integers(a.shape[1], size=a.shape[1])
        means = []
        for values in (a, b):
            seeds = len(values)
            center = values.mean(axis=0)
            stretch = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
            rows = [center + stretch * (values[rng.integers(seeds)] - center) for _ in values]
            means.append(np.mean(rows, axis=0)[queries].mean())
        found.append(means[0] - means[1])
    return np.array(found)


@pytest.mark.parametrize("seeds", [(3, 2), (1, 2), (1, 1)])
def test_bootstrap_is_that_of_drawn_queries_and_seeds(seeds):
    rng = np.random.default_rng(1)
    a, b = (rng.random((n, 40)) + 0.1 * rng.random((n, 1)) for n in seeds)
    found = bootstrap_difference(a, b, samples=4000)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    expected = loop_over_draws(a, b, 1000)
    assert (found.low, found.high) == pytest.approx(np.percentile(expected, (2.5, 97.5)), abs=0.015)
    share = min((expected <= 0).mean(), (expected >= 0).mean())
    assert found.p == pytest.approx(2 * share, abs=0.06)


def test_an_interval_holds_the_variance_of_queries_and_of_seeds():
    """Effects of queries and seeds that add up: their variances over their numbers do, too."""
    rng = np.random.default_rng(2)
    queries = rng.standard_normal(400)
    a = queries + np.array([[0.3], [-0.3], [0.0]])  # variance 0.09
    b = np.zeros((2, 400)) + np.array([[0.1], [-0.1]])  # variance 0.02
    found = bootstrap_difference(a, b, samples=4000)
    variance = queries.var() / 400 + 0.09 / 3 + 0.02 / 2
    # Three and two seeds have few sums, so that the ends of the interval aren't a normal one's.
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.1)
    alone = bootstrap_difference(a.mean(axis=0), b.mean(axis=0), samples=4000)
    width = 2 * 1.96 * math.sqrt(queries.var() / 400)
    assert alone.high - alone.low == pytest.approx(width, rel=0.06)


def test_bootstrap_leaves_out_queries_without_relevant_images():
    a, b = np.array([[0.5, np.nan, 0.7]]), np.array([[0.25, np.nan, 0.45]])
    found = bootstrap_difference(a, b)
    assert (found.difference, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.p < 0.001
    with pytest.raises(RegionDHError, match="same queries"):
        bootstrap_difference(a, np.array([[0.25, 0.3, 0.45]]))
    assert bootstrap_difference(a[:, :2], b[:, :2]) == Interval(0.25, 0.25, 0.25, 0.0)
    with pytest.raises(RegionDHError, match="no query has a relevant image"):
        bootstrap_difference(a[:, 1:2], b[:, 1:2])


def test_holm_multiplies_by_the_number_of_claims_that_are_left():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


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
