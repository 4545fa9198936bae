"""tools/evaluate_codes.py end to end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regiondh_d2.evaluation import evaluate_ranking
from regiondh_d2.retrieval.code_store import CodeSet, pack_codes, write_codes

TOOL = Path(__file__).parents[1] / "tools/evaluate_codes.py"


def code_set(rows, seed, bits=12, classes=("cat", "dog", "cow")):
    rng = np.random.default_rng(seed)
    return CodeSet(
        codes=pack_codes(rng.random((rows, bits)) < 0.5),
        bits=bits,
        image_ids=[f"{seed}-{i}" for i in range(rows)],
        file_names=[f"{i}.jpg" for i in range(rows)],
        labels=(rng.random((rows, len(classes))) < 0.5).astype(np.uint8),
        class_names=list(classes),
    )


@pytest.fixture
def files(tmp_path):
    query, database = code_set(5, seed=1), code_set(40, seed=2)
    write_codes(tmp_path / "q.h5", query)
    write_codes(tmp_path / "d.h5", database)
    return tmp_path, query, database


def evaluate(*args):
    command = [sys.executable, str(TOOL), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_prints_and_writes_the_metrics_of_two_files(files):
    folder, query, database = files
    paths = ["--query", folder / "q.h5", "--database", folder / "d.h5"]
    result = evaluate(*paths, "--topk", 10, "--json", folder / "out.json")
    assert result.returncode == 0, result.stderr
    written = json.loads((folder / "out.json").read_text())
    expected = evaluate_ranking(
        query.codes, database.codes, query.labels, database.labels, bits=12, topk=10
    ).metrics
    for name, value in expected.items():
        assert written[name] == pytest.approx(value, abs=1e-12), name
    for name in ("MAP@10", "MAP_min@10", "NDCG@10", "ACG@10"):
        assert name in result.stdout
        assert f"{expected[name]:.4f}" in result.stdout


def test_a_failure_is_one_clear_line(files):
    folder, *_ = files
    write_codes(folder / "other.h5", code_set(5, seed=3, bits=16))
    for name, reason in (("missing.h5", "missing.h5"), ("other.h5", "16")):
        result = evaluate(
            "--query", folder / name, "--database", folder / "d.h5", "--json", folder / "no.json"
        )
        assert result.returncode == 1
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert reason in last
        assert not (folder / "no.json").exists()


def test_a_wrong_argument_exits_with_2(files):
    folder, *_ = files
    result = evaluate("--query", folder / "q.h5", "--database", folder / "d.h5", "--topk", "0")
    assert result.returncode == 2
