"""The command that trains, measures and summarizes; it runs in this process, trainings do not."""

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from builders import registered_scenes
from experiments import run as command
from experiments import runs
from experiments.result_files import ResultFolder
from experiments.rows import read_table
from programs import start_program
from regiondh_d2.engine.user_code import VARIABLE
from regiondh_d2.retrieval.code_store import read_codes
from study import SHOWN, entries, measure, write_result, write_table

ROOT = Path(__file__).parents[2]
PREFIX = "study_run_test_"
FOLDERS = ["--table", "table.yaml", "--results", "results", "--networks", "output"]


@pytest.fixture
def run(capsys):
    """A function that runs the command in the current folder: exit status, the two outputs."""
    return lambda *words: (command.main([*FOLDERS, *words]), *capsys.readouterr())


def last_line(err):
    return err.splitlines()[-1]


def test_a_summary_of_nothing_is_told(run, two_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("--summary", "set")
    assert code == 1
    assert "of dataset 'set'; there are results of: none" in last_line(err)
    write_result("results", two_rows[0].runs()[0])
    code, _, err = run("--summary", "sett")
    assert code == 1
    assert "of dataset 'sett'; there are results of: set" in last_line(err)
    code, out, _ = run("--summary", "set")
    assert code == 0
    assert "| `a` | 8 |" in out


def test_the_summary_keeps_earlier_differences_in_its_file(run, two_rows, tmp_path, monkeypatch):
    """With code files, without them, and without any query's metrics."""
    monkeypatch.chdir(tmp_path)

    def summary():
        code, out, err = run("--summary", "set", "--against", "a")
        assert code == 0, err
        return out

    for row, noise in zip(two_rows, (0.1, 0.25), strict=True):
        for done in row.runs():
            measure(tmp_path, done, noise)
    file = ResultFolder(Path("results")).write_differences("set", "a", entries("a", "c", 3))
    out = summary()
    assert f"{file}: kept as measured earlier: c 8\n" in out
    assert "| c | 8 | +0.500 (+0.250 to +0.750) |" in out
    written = json.loads(file.read_text())
    assert [d["against"] for d in written] == ["b"] * 4 + ["c"] * 4
    shutil.rmtree("output")
    assert summary() == out
    shutil.rmtree("results/per_query")
    assert f"{file}: kept as measured earlier: b 8, c 8\n" in summary()
    assert json.loads(file.read_text()) == written


def test_documents_are_filled_all_or_none(run, two_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_result("results", two_rows[0].runs()[0])
    place = "<!-- table: set a -->\nold\n<!-- end -->\n"
    for name in ("one.md", "two.md"):
        Path(name).write_text(place)
    Path("none.md").write_text("no place")
    code, _, err = run("--document", "one.md", "none.md")
    assert code == 1
    assert "--document none.md: the document has no place for a table" in last_line(err)
    assert Path("one.md").read_text() == place
    assert run("--document", "one.md", "two.md")[0] == 0
    for name in ("one.md", "two.md"):
        assert "| `a` | 8 | 1 |" in Path(name).read_text()


def test_runs_are_forgotten_by_name(run, two_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for done in two_rows[0].runs():
        write_result("results", done)
    code, _, err = run("--forget", "a_8_seed0", "a_8_seed9")
    assert code == 1
    assert last_line(err) == "error: --forget a_8_seed9: no run of the table has this name"
    code, out, _ = run("--forget", "a_8_seed0", "b_8_seed0")
    assert (code, out) == (
        0,
        "a_8_seed0: its result was dropped\nb_8_seed0: has no result\n",
    )
    assert run("--list")[1].splitlines()[:2] == ["1 of 4 runs are done", "  a_8_seed0"]


def test_results_of_version_0_1_are_counted(run, two_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = two_rows[0].runs()
    write_result("results", first)
    old = json.loads(Path("results/a.json").read_text())["runs"][0]
    Path("results/a_8_seed1.json").write_text(json.dumps({**old, "seed": 1}))
    code, out, _ = run("--list")
    assert code == 0
    assert out.startswith("2 of 4 runs are done\n1 of them have a file each, as version 0.1")


def test_all_rows_are_checked_before_any_is_trained(run, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = {"title": "B", "opts": ["DATASETS.TRAIN", "('nowhere',)"]}
    write_table(tmp_path, a={"title": "A", "opts": scenes}, b=bad)
    trained = []
    monkeypatch.setattr(command, "train_run", lambda run, *_: trained.append(run))
    code, _, err = run()
    assert code == 1
    assert "table.yaml: row b: DATASETS.TRAIN has 'nowhere'" in last_line(err)
    Path("results").mkdir()
    Path("results/b.json").write_text("")
    code, _, err = run()
    assert code == 1
    assert "b.json is damaged" in last_line(err)
    assert trained == []


@pytest.mark.parametrize("option", ["results", "networks"])
def test_a_file_for_a_folder_is_refused(run, two_rows, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    code, _, err = run(f"--{option}", "file")
    assert (code, last_line(err)) == (1, f"error: --{option} file is a file: name a folder")


def test_a_comparison_without_a_summary_trains_nothing(run, two_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("--against", "a")
    assert (code, out) == (1, "")
    assert last_line(err).endswith("give --summary DATASET, too")


def test_an_unknown_row_is_refused(run, two_rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("another")
    assert (code, last_line(err)) == (1, "error: another is no row of the table; known: a, b")


def test_the_command_has_the_options_of_all_commands():
    text = command.build_parser().format_help()
    for option in ("--import", "--debug", "--table", "--results", "--networks"):
        assert option in text
    assert command.build_parser().parse_args(["--output", "x"]).networks == Path("x")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with scenes, which trainings register, and rows "first", done, and "second"."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "register.py").write_text(
        "from regiondh_d2.data.datasets.scenes import register_scenes\n"
        f"register_scenes({str(folder / 'scenes')!r}, {PREFIX!r})\n"
    )
    write_table(folder, **{name: row_on_scenes(name) for name in ("first", "second")})
    (first, _) = read_table(folder / "table.yaml")
    (done,) = first.runs()
    write_result(folder / "results", done, command=shlex.join(done.command(Path("output"))))
    shutil.copy(folder / "results/first.json", folder / "first as it was.json")
    scenes = registered_scenes(folder / "scenes", PREFIX, database=8, queries=4)
    with scenes, pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder / "register.py"))
        yield folder


@pytest.fixture(scope="module")
def resumed(workspace):
    """The workspace, to be read only, after a run of "second" was killed and gone on with.

    Attributes: ``left``, the files of results after the kill; ``code``, ``out`` and ``err`` of the
    command that went on.
    """
    with contextlib.chdir(workspace):
        start_and_kill(Path("output/second_8_seed0/minutes.json"))
        left = sorted(path.name for path in Path("results").glob("[!.]*"))
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(runs, "_run_timed", run_in_a_fork)
            code = command.main(FOLDERS)
    return SimpleNamespace(left=left, code=code, out=out.getvalue(), err=err.getvalue())


def row_on_scenes(name, *opts):
    given = [
        *("DATASETS.TRAIN", f"('{PREFIX}regiondh_scenes_database',)"),
        *("DATASETS.TEST", f"('{PREFIX}scenes_retrieval',)", "TEST.RETRIEVAL.TOPK", 1000),
    ]
    return {"title": name.title(), "opts": [*given, "MODEL.DEVICE", "cpu", *opts]}


def start_and_kill(begun):
    """Start the command as a process, and kill it with its training when a file is there."""
    log = Path("log of the killed run")
    words = ["-m", "experiments.run", *FOLDERS]
    process = start_program(words, cwd=Path.cwd(), output=log, error=log)
    deadline = time.monotonic() + 300
    while not begun.is_file() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert begun.is_file(), log.read_text()


def run_in_a_fork(arguments, log, minutes):
    """As ``runs._run_timed``, of which ``test_runs`` has the tests, without importing anew."""
    minutes.write()
    process = start_program(arguments[1:], cwd=Path.cwd(), output=log, error=log)
    process.join()
    minutes.write()
    return process.exitcode


def test_a_killed_table_goes_on_and_skips_what_is_done(run, workspace, resumed, monkeypatch):
    monkeypatch.chdir(workspace)
    results = ResultFolder(Path("results"))
    assert resumed.left == ["first.json"]
    assert resumed.code == 0, resumed.err
    assert "1 of 2 runs are done" in resumed.out
    assert f"second_8_seed0 on {PREFIX}scenes_retrieval: MAP@1000 " in resumed.out
    assert Path("results/first.json").read_bytes() == Path("first as it was.json").read_bytes()
    assert not Path("output/first_8_seed0").exists()
    (second,) = read_table("table.yaml")[1].runs()
    result = results.read(second)
    metrics = result["metrics"][f"{PREFIX}scenes_retrieval"]
    assert 0.0 < metrics["MAP_min@1000"] <= 1.0
    kept = results.read_per_query(second)
    assert sorted(kept) == sorted(f"{PREFIX}scenes_retrieval/{name}" for name in SHOWN)
    for name in SHOWN:
        values = kept[f"{PREFIX}scenes_retrieval/{name}"]
        assert values.shape == (4,)
        assert np.nanmean(values.astype(float)) == pytest.approx(metrics[name], rel=1e-3)
    assert "bbox/AP50" in result["box_ap"]
    assert result["command"].startswith("tools/train_net.py --config-file")
    datasets = {f"{PREFIX}regiondh_scenes_database", f"{PREFIX}scenes_retrieval"}
    assert set(result["data_sha256"]) == datasets

    minutes = json.loads(Path("output/second_8_seed0/minutes.json").read_text())["minutes"]
    assert (result["parts"], len(minutes)) == (2, 2)
    assert result["minutes"] == round(sum(minutes), 1)
    database = Path(f"output/second_8_seed0/inference/{PREFIX}scenes_retrieval/database.h5")
    assert read_codes(database).model_fingerprint == result["model_fingerprint"]

    code, out, err = run("--list")
    assert (code, out) == (0, "2 of 2 runs are done\n"), err


def test_a_network_is_not_filed_under_changed_options(
    run, workspace, resumed, tmp_path, monkeypatch
):
    """The row's options are changed, and its result is dropped, as the error advises."""
    here = Path(shutil.copytree(workspace, tmp_path / "copy"))
    monkeypatch.chdir(here)
    write_table(here, second=row_on_scenes("second", "SOLVER.BASE_LR", 0.001))
    code, out, err = run()
    assert (code, out) == (1, "")
    assert "second_8_seed0 was trained with SOLVER.BASE_LR (none), and row second has" in err
    assert run("--forget", "second_8_seed0")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path("output").rglob("*")}
    code, out, err = run()
    assert code == 1
    line = last_line(err)
    assert line.startswith("error: table.yaml: output/second_8_seed0/model_final.pth was trained")
    assert "SOLVER.BASE_LR 0.02, which is now 0.001: delete output/second_8_seed0, or" in line
    assert {path: path.stat().st_mtime_ns for path in Path("output").rglob("*")} == before
    assert not Path("results/second.json").exists()


def test_a_run_that_fails_names_its_log_and_leaves_no_result(run, workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "_run_timed", run_in_a_fork)
    write_table(tmp_path, broken=row_on_scenes("broken", "SOLVER.BASE_LR", 1e30))
    code, _, err = run()
    assert code == 1
    assert "broken_8_seed0 failed" in last_line(err)
    assert "stdout.txt" in err
    assert not Path("results/broken.json").exists()
    assert not Path("results/per_query/broken_8_seed0.npz").exists()
