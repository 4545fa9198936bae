"""Claims: their file, how they are measured, and their table."""

import math

import numpy as np
import pytest
import yaml

from experiments.claims import DATASETS, Claim, markdown_claims, measure_claims, read_claims
from experiments.comparison import bootstrap_difference
from experiments.options import TABLE
from experiments.result_files import ResultFolder
from experiments.rows import read_table
from experiments.tables import main
from regiondh_d2.utils.errors import InputNotFoundError, RegionDHError
from study import BOUNDS, SHOWN, write_result, write_table

UNSEEN = DATASETS["unseen"]
STUDY = TABLE.parent
CLAIM = {"says": "A is ahead.", "row": "a", "against": "b", "bits": 8}


@pytest.fixture
def three_rows(tmp_path):
    """Rows of two seeds."""
    rows = {name: {"title": name.upper(), "seeds": [0, 1]} for name in "abc"}
    return read_table(write_table(tmp_path, **rows))


@pytest.fixture
def values():
    """A metric of 60 queries by row, of two seeds: a is ahead of b, and c is as good as b."""
    rng = np.random.default_rng(0)
    queries = rng.random(60) / 2
    offsets = {"a": (0.2, 0.22), "b": (0.0, 0.01), "c": (0.005, 0.004)}
    return {
        name: np.float16([queries + x + 0.01 * rng.random(60) for x in seeds])
        for name, seeds in offsets.items()
    }


@pytest.fixture
def results(tmp_path, three_rows, values):
    """Results of all runs, with each query's metrics of all but b's first seed."""
    folder = ResultFolder(tmp_path / "results")
    for row in three_rows:
        for run in row.runs():
            of_queries = values[row.name][run.seed]
            metrics = dict.fromkeys(SHOWN + BOUNDS, float(np.float64(of_queries).mean()))
            write_result(folder.path, run, metrics={UNSEEN: metrics})
            if (row.name, run.seed) != ("b", 0):
                arrays = {f"{UNSEEN}/{name}": of_queries for name in SHOWN}
                folder.write_per_query(run, arrays)
    return folder


def write_claims(folder, **claims):
    path = folder / "claims.yaml"
    path.write_text(yaml.safe_dump(claims))
    return path


def test_a_claim_is_the_difference_of_queries_and_seeds(three_rows, values, results, tmp_path):
    claims = [Claim("better", "", "a", "c", 8), Claim("worse", "", "c", "a", 8)]
    better, worse = measure_claims(claims, three_rows, tmp_path / "output", results)
    expected = bootstrap_difference(values["a"], values["c"])
    assert (better["difference"], better["low"]) == (expected.difference, expected.low)
    assert better["seeds"] == [2, 2]
    assert not better["queries_of_one_seed"]
    assert better["p_corrected"] == pytest.approx(2 * better["p"])
    assert better["holds"]
    assert worse["difference"] == pytest.approx(-better["difference"])
    assert not worse["holds"]  # it differs, but the other way


def test_means_of_results_stand_for_seeds_without_queries(three_rows, values, results, tmp_path):
    """The variance of queries and that of the means over seeds, worked out by hand."""
    claims = [Claim("it", "", "a", "b", 8)]
    (found,) = measure_claims(claims, three_rows, tmp_path / "output", results)
    means = np.float64(values["b"]).mean(axis=1)
    assert found["queries_of_one_seed"]
    assert found["seeds"] == [2, 2]
    assert found["difference"] == pytest.approx(np.float64(values["a"]).mean() - means.mean())
    kept = bootstrap_difference(values["a"], values["b"][1:])
    variance = ((kept.high - kept.low) / 2 / 1.96) ** 2 + (means[0] - means[1]) ** 2 / 2 / 2
    half = 1.96 * math.sqrt(variance)
    ends = [found["difference"] - half, found["difference"] + half]
    assert [found["low"], found["high"]] == pytest.approx(ends, abs=1e-4)
    assert found["holds"]


def test_a_claim_without_queries_is_told(three_rows, results, tmp_path):
    claims = [Claim("it", "", "a", "b", 8, "seen")]
    with pytest.raises(RegionDHError, match="claim it: no queries' metrics of row a at 8 bits"):
        measure_claims(claims, three_rows, tmp_path / "output", results)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"row": "x"}, "claim it: row is 'x', not a row of the table"),
        ({"dataset": "val"}, "claim it: dataset is 'val', not unseen, seen"),
        ({"metric": "mAP"}, "claim it: metric is 'mAP', not MAP, MAP_min, NDCG, ACG"),
        ({"bits": 9}, "claim it: row a has no runs of 9 bits"),
        ({"color": 1}, "claim it needs says, row, against, bits"),
    ],
)
def test_a_wrong_claim_is_told(three_rows, tmp_path, changes, told):
    path = write_claims(tmp_path, it={**CLAIM, **changes})
    with pytest.raises(RegionDHError, match=told):
        read_claims(path, three_rows)


def test_a_file_that_is_none_of_claims_is_told(three_rows, tmp_path):
    with pytest.raises(InputNotFoundError, match="no such file of claims"):
        read_claims(tmp_path / "none.yaml", three_rows)
    for text in ("", "[1]", "a: [", "a: 3"):
        (tmp_path / "claims.yaml").write_text(text)
        with pytest.raises(RegionDHError, match=r"claims\.yaml"):
            read_claims(tmp_path / "claims.yaml", three_rows)


def test_the_command_measures_claims_and_fills_pages(three_rows, results, tmp_path, capsys):
    claims = write_claims(tmp_path, it=CLAIM, tie={**CLAIM, "row": "c", "says": "C is ahead."})
    page = tmp_path / "page.md"
    page.write_text(
        f"<!-- claims: it -->\nold\n<!-- end -->\n<!-- table: {UNSEEN} c -->\n<!-- end -->"
    )
    arguments = ["--table", tmp_path / "table.yaml", "--results", results.path]
    arguments += ["--networks", tmp_path / "output", "--claims", claims, "--documents", page]
    assert main(list(map(str, arguments))) == 0
    assert "tie doesn't hold: C is ahead." in capsys.readouterr().out
    text = page.read_text()
    assert "| A is ahead. | `a`, `b` | 8 | unseen | MAP | +0.2" in text
    assert "C is ahead." not in text
    assert "| C | `c` | 8 | 2 |" in text
    found = results.read_claims()
    assert [entry["holds"] for entry in found] == [True, False]
    assert "C is ahead." in markdown_claims(found)
    with pytest.raises(RegionDHError, match="unknown claim: other"):
        markdown_claims(found, ["other"])


def test_the_claims_of_the_study_are_those_that_were_measured():
    """And one of them, measured again, gives what its file says."""
    rows, results = read_table(TABLE), ResultFolder(STUDY / "results")
    claims = read_claims(STUDY / "claims.yaml", rows)
    found = results.read_claims()
    keys = ("name", "says", "row", "against", "bits", "dataset", "metric")
    assert [[entry[key] for key in keys] for entry in found] == [
        [getattr(claim, key) for key in keys] for claim in claims
    ]
    name = "own_backbone_with_similarity"
    (again,) = measure_claims([c for c in claims if c.name == name], rows, STUDY, results)
    (kept,) = (entry for entry in found if entry["name"] == name)
    for key in ("difference", "low", "high", "p"):
        assert again[key] == pytest.approx(kept[key], abs=1e-3)
