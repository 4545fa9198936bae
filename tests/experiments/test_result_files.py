"""The files of results: reading, writing, damage, other options, and those of version 0.1."""

import json
import multiprocessing
import shlex
from pathlib import Path

import numpy as np
import pytest

from experiments.documents import markdown_table
from experiments.result_files import ResultFolder
from experiments.rows import Row, read_table
from regiondh_d2.utils.errors import RegionDHError
from study import RESULT, entry_of, measure, rewrite, write_result, write_table


@pytest.fixture
def results(tmp_path):
    return ResultFolder(tmp_path)


def test_a_file_holds_the_runs_of_a_row_in_order(two_rows, results, tmp_path):
    first, second = two_rows[0].runs()
    write_result(tmp_path, second, minutes=2.5)
    write_result(tmp_path, first)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["row"] == "a"
    assert content["runs"] == [
        {"bits": 8, "seed": 0, **RESULT},
        {"bits": 8, "seed": 1, **RESULT, "minutes": 2.5},
    ]
    assert results.read(second) == content["runs"][1]
    assert results.read(two_rows[1].runs()[0]) is None
    write_result(tmp_path, second, minutes=3.0)
    assert [results.read(run)["minutes"] for run in (first, second)] == [1.0, 3.0]


def write_many(folder, row, seeds, barrier):
    results = ResultFolder(folder)
    barrier.wait()
    for seed in seeds:
        (run,) = (run for run in row.runs() if run.seed == seed)
        results.write(run, RESULT)


def test_processes_that_write_runs_of_one_row_lose_none(results, tmp_path):
    """Each reads the row's file and replaces it, again and again, at the same time."""
    row = Row("a", "A", "c.yaml", bits=(8,), seeds=tuple(range(60)))
    # Forks, which need not import PyTorch once more.
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=write_many, args=(tmp_path, row, range(part, 60, 3), barrier))
        for part in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [run.seed for run in row.runs() if results.read(run) is None] == []


def test_forgetting_a_run_leaves_the_others(two_rows, results, tmp_path):
    first, second = two_rows[0].runs()
    for run in (first, second):
        write_result(tmp_path, run)
        results.write_per_query(run, {"set/MAP@1000": np.zeros(3)})
    assert results.forget(first)
    assert results.read(first) is None
    assert results.read_per_query(first) == {}
    assert results.read(second) is not None
    assert list(results.read_per_query(second)) == ["set/MAP@1000"]
    assert not results.forget(first)
    assert results.forget(second)
    assert not results.row_file(two_rows[0]).exists()


def test_results_of_version_0_1_are_read_and_newer_ones_come_first(two_rows, results, tmp_path):
    first, second = two_rows[0].runs()
    own = {"row": "a", "title": "A", "bits": 8, "seed": 0, **RESULT, "minutes": 7.0}
    (tmp_path / "a_8_seed0.json").write_text(json.dumps(own))
    write_result(tmp_path, second)
    assert results.read(first) == own
    assert results.is_of_version_0_1(first)
    assert not results.is_of_version_0_1(second)
    assert "| `a` | 8 | 2 |" in markdown_table(two_rows, results, "set")
    write_result(tmp_path, first, minutes=8.0)
    assert results.read(first)["minutes"] == 8.0
    assert not results.is_of_version_0_1(first)
    assert results.forget(first)
    assert results.read(first) is None


def test_differences_of_version_0_1_are_read(results, tmp_path):
    found = [{"against": "b", "metric": "MAP", "bits": 8, "difference": 0, "low": 0, "high": 1}]
    assert results.read_differences("set", "a") is None
    (tmp_path / "differences_set_a.json").write_text(json.dumps(found))
    assert results.read_differences("set", "a") == found
    results.write_differences("set", "a", [])
    assert results.read_differences("set", "a") == []


@pytest.mark.parametrize("name", ["a.json", "a_8_seed0.json"])
def test_a_folder_in_place_of_a_result_is_told(two_rows, results, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(RegionDHError, match=f"{name} is no file: move it away"):
        results.read(two_rows[0].runs()[0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda _: "",
        lambda _: "{}",
        lambda _: "[]",
        lambda _: "null",
        lambda text: text.replace('"seed"', '"seat"'),
        lambda text: text.replace('"seed": 1', '"seed": 0'),
        lambda text: text.replace('"minutes"', '"hours"'),
        lambda text: text.replace('"metrics"', '"numbers"'),
        lambda text: text.replace('"minutes": 1.0', '"minutes": "1"'),
        lambda text: text.replace('"MAP_min@1000"', '"MAP"'),
        lambda text: text.replace('"NDCG@1000": ', '"NDCG@1000": null, "x": '),
        lambda _: json.dumps(of_one_run({**RESULT, "metrics": {"set": 3}})),
        lambda _: json.dumps(of_one_run({**RESULT, "metrics": {}})),
    ],
)
def test_a_damaged_result_is_named(two_rows, tmp_path, damage):
    for run in two_rows[0].runs():
        measure(tmp_path, run, 0.1)
    rewrite(tmp_path / "results", two_rows[0], damage)
    with pytest.raises(RegionDHError, match="a.json is damaged .* or (delete it|drop the result)"):
        markdown_table(two_rows, ResultFolder(tmp_path / "results"), "set")


def of_one_run(result):
    return {"row": "a", "runs": [{"bits": 8, "seed": 0, **result}]}


def test_a_damaged_result_of_version_0_1_is_named(two_rows, results, tmp_path):
    (tmp_path / "a_8_seed0.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RegionDHError, match="a_8_seed0.json is damaged"):
        results.read(two_rows[0].runs()[0])


def test_a_file_of_another_row_is_refused(two_rows, results, tmp_path):
    a, b = (row.runs()[0] for row in two_rows)
    write_result(tmp_path, a)
    results.row_file(a.row).rename(results.row_file(b.row))
    with pytest.raises(RegionDHError, match="b.json is of row 'a': give the file the name of its"):
        results.read(b)


def test_a_damaged_file_is_not_replaced(two_rows, results, tmp_path):
    first, second = two_rows[0].runs()
    write_result(tmp_path, first)
    file = rewrite(tmp_path, two_rows[0], lambda text: text[:-9])
    before = file.read_bytes()
    with pytest.raises(RegionDHError, match="a.json is damaged"):
        results.write(second, RESULT)
    assert file.read_bytes() == before


def test_a_result_of_other_options_is_refused(results, tmp_path):
    """Where the row was changed and its result left in place."""
    table = write_table(tmp_path, a={"title": "A", "opts": ["SOLVER.BASE_LR", 0.1]})
    (run,) = read_table(table)[0].runs()
    command = shlex.join(run.command(Path("some where/output")))
    write_result(tmp_path, run, command=command)
    assert results.read(run)["command"] == command
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
        with pytest.raises(RegionDHError, match=rf"a.json: a_8_seed0 was trained with {told}"):
            results.read(changed)
    assert entry_of(tmp_path, run)["command"] == command


def test_a_result_with_the_old_name_of_a_value_is_read(results, tmp_path):
    key = "MODEL.REGION_DH.OBJECTIVE"
    runs = {}
    for name in ("isdh", "idhn", "isdh_soft"):
        table = write_table(tmp_path, a={"title": "A", "opts": [key, name]})
        (runs[name],) = read_table(table)[0].runs()
    write_result(tmp_path, runs["isdh"], command=shlex.join(runs["isdh"].command(Path("output"))))
    assert results.read(runs["idhn"])["command"] == results.read(runs["isdh"])["command"]
    with pytest.raises(RegionDHError, match="OBJECTIVE idhn, and row a has isdh_soft now"):
        results.read(runs["isdh_soft"])


def test_a_damaged_file_of_differences_is_named(results):
    file = results.differences_file("set", "a")
    file.parent.mkdir()
    for text in ("[{", "", "{}", "[3]", '[{"against": "b"}]'):
        file.write_text(text)
        with pytest.raises(RegionDHError, match="set_a.json is damaged"):
            results.read_differences("set", "a")
