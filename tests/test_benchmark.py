"""The benchmark's command line, on sizes that take no time. No number of seconds is asserted."""

import json

import numpy as np
import pytest

from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("benchmark")


SMALL = ["--queries", "30", "--items", "40", "--bits", "12", "--topk", "10", "--repeat", "1"]


def test_evaluation(tool, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    arguments = ["evaluation", *SMALL, "--baseline-queries", "20", "--json", str(out)]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "ratio" in printed.out
    written = json.loads(out.read_text())
    numbers = written["evaluation"]
    assert written["machine"]["cores"] >= 1
    assert 0 < numbers["baseline_queries_measured"] <= 20
    assert numbers["ratio"] == pytest.approx(numbers["baseline_seconds"] / numbers["seconds"])


def test_a_wrong_result_is_a_failure(tool, monkeypatch, capsys):
    """The baseline is also a check: disagreement must not end in a fine ratio."""

    def wrong(*args, **kwargs):
        result = evaluate_ranking(*args, **kwargs)
        result.per_query["MAP@10-index_order"][:] += np.float64(1e-3)
        return result

    monkeypatch.setattr(tool, "evaluate_ranking", wrong)
    assert tool.main(["evaluation", *SMALL]) == 1
    assert "MAP@10 of query 0" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["speed"], ["evaluation", "--queries", "0"]])
def test_wrong_arguments_exit_2(tool, arguments):
    with pytest.raises(SystemExit) as error:
        tool.main(arguments)
    assert error.value.code == 2


SMALL_SEARCH = ["--queries", "5", "--items", "300", "--bits", "20", "--topk", "50", "--repeat", "2"]


def test_search(tool, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    assert tool.main(["search", *SMALL_SEARCH, "--json", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "FAISS's faster way being 1" in printed.out
    numbers = json.loads(out.read_text())["search"]
    faiss = min(numbers["faiss_heap_seconds"], numbers["faiss_counting_seconds"])
    assert numbers["ratio"] == pytest.approx(faiss / numbers["seconds"])


def test_wrong_distances_are_a_failure(tool, monkeypatch, capsys):
    class Wrong(type(tool.create_index(20))):
        def search(self, codes, k):
            distances, rows = super().search(codes, k)
            return distances + 1, rows

    monkeypatch.setattr(tool, "create_index", Wrong)
    assert tool.main(["search", *SMALL_SEARCH]) == 1
    assert "other distances" in capsys.readouterr().err
