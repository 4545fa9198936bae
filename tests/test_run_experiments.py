"""Experiments: the table file, comparisons, and tools/run_experiments.py end to end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from regiondh_d2.data import generate_scenes
from regiondh_d2.engine import experiments
from regiondh_d2.engine.experiments import (
    differences,
    fill_document,
    markdown_table,
    paired_bootstrap,
    read_table,
)
from regiondh_d2.evaluation.retrieval_evaluator import rank_code_sets
from regiondh_d2.retrieval.code_store import write_codes
from regiondh_d2.structures.codes import CodeSet
from regiondh_d2.structures.packed import pack_codes

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


@pytest.mark.parametrize("text", ["[]", "rows: {}", "a: [", "defaults: {}\nrows: {a: {titel: x}}"])
def test_a_damaged_table_is_named(tmp_path, text):
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="table.yaml is no table"):
        read_table(path)


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
    table = fill_document(text.format("table: set a b"), rows, tmp_path)
    assert markdown_table(rows, tmp_path, "set") in table
    assert "| b | 8 |" not in fill_document(text.format("differences: set a 16"), rows, tmp_path)
    with pytest.raises(ValueError, match="must name a row: <!-- differences: set 8 -->"):
        fill_document(text.format("differences: set 8"), rows, tmp_path)
    for row in rows:
        row.runs()[0].result_file(tmp_path).write_text(json.dumps(RESULT))
    ordered = fill_document(text.format("table: set b a 8"), rows, tmp_path)
    assert ordered.index("| B | `b` | 8 |") < ordered.index("| A | `a` | 8 |")
    assert "| B |" not in fill_document(text.format("table: set b 16"), rows, tmp_path)
    assert fill_document("no place", rows, tmp_path) == "no place"
    with pytest.raises(ValueError, match="unknown rows: c"):
        fill_document(text.format("table: set c"), rows, tmp_path)


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


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda _: "{}", lambda _: "[]"])
def test_a_damaged_result_is_named(two_rows, tmp_path, damage):
    measure(tmp_path, two_rows[0].runs()[0], 0.1)
    file = two_rows[0].runs()[0].result_file(tmp_path / "results")
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match="a_8_seed0.json is damaged .* or delete it"):
        markdown_table(two_rows, tmp_path / "results", "set")


def test_a_damaged_file_of_differences_is_named(tmp_path):
    file = experiments.differences_file(tmp_path, "set", "a")
    file.write_text("[{")
    with pytest.raises(ValueError, match="differences_set_a.json is damaged"):
        experiments.read_differences(file)


def test_a_result_never_lacks_the_values_of_its_queries(tmp_path, monkeypatch):
    """Where they can't be written, the run isn't done."""
    opts = ["DATASETS.TEST", "('set',)", "MODEL.DEVICE", "cpu"]
    run = read_table(write_table(tmp_path, a={"title": "", "opts": opts}))[0].runs()[0]
    measure(tmp_path, run, 0.1)
    output, results = tmp_path / "output", tmp_path / "results"
    run.result_file(results).unlink()
    done = SimpleNamespace(returncode=0, stdout="")
    monkeypatch.setattr(experiments.subprocess, "run", lambda *_, **__: done)
    for name in ("_metrics", "_box_ap", "_data_checksum"):
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
    while not second.is_dir() and process.poll() is None and time.monotonic() < deadline:
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

    code, out, err = run(workspace, "--list")
    assert (code, out.splitlines()[-1]) == (0, "2 of 2 runs are done"), err


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
