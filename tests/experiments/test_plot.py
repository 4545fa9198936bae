"""Plots of the study, of results and code files made up for them."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from builders import random_code_set
from experiments import plot as command
from experiments.plots import metrics_against_bits
from experiments.result_files import ResultFolder
from experiments.rows import read_table
from regiondh_d2.retrieval.code_store import write_codes
from study import write_result

PLOTS = ("MAP_against_bits", "MAP_min_against_bits", "ACG_against_bits")
CURVES = ("precision_recall", "precision_at_k")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Two rows of 8 and 16 bits, the first with code files of 8; images of one color."""
    monkeypatch.chdir(tmp_path)
    rows = {"a": {"title": "A"}, "b": {"title": "B", "seeds": [0]}}
    defaults = {"config": "c.yaml", "bits": [8, 16], "seeds": [0, 1]}
    Path("table.yaml").write_text(yaml.safe_dump({"defaults": defaults, "rows": rows}))
    for row in read_table("table.yaml"):
        for run in row.runs():
            names = [f"{m}@5" for m in ("MAP", "MAP_min", "ACG")]  # no more is plotted
            values = dict.fromkeys(names, 0.01 * run.bits + 0.2 * run.seed)
            write_result(tmp_path, run, metrics={"set": values})
    rng = np.random.default_rng(0)
    labels = np.eye(2, dtype=np.uint8)[[0, 1, 0, 1, 0, 1]]
    names = [f"{i}.jpg" for i in range(6)]
    for name in names:
        Image.new("RGB", (8, 8), "navy").save(name)
    for role in ("query", "database"):
        codes = random_code_set(rng, 6, 8, file_names=names, labels=labels, class_names=["x", "y"])
        path = Path("output/a_8_seed0/inference/set", f"{role}.h5")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_codes(path, codes)
    return tmp_path


@pytest.fixture
def plot(capsys):
    """A function that runs the tool: exit code, the two outputs."""

    def run(*args):
        folders = ["--results", ".", "--networks", "output", "--output", "plots"]
        code = command.main(
            [*args, "--table", "table.yaml", "--topk", "5", "--bits", "8", *folders]
        )
        return code, *capsys.readouterr()

    return run


def test_every_plot_is_drawn(workspace, plot):
    code, out, err = plot("set", "--queries", "3")
    assert (code, out) == (0, "plots in plots\n"), err
    names = [f"{name}.png" for name in (*PLOTS, *CURVES, "map_a")] + ["answers.jpg"]
    assert sorted(p.name for p in Path("plots").iterdir()) == sorted(names)
    for name in names:
        with Image.open(f"plots/{name}") as image:
            assert image.convert("L").getextrema()[0] < 128  # not blank


def test_metrics_are_means_over_seeds(workspace):
    rows = read_table("table.yaml")
    found = metrics_against_bits(rows, ResultFolder(workspace), "set", "MAP", 5)
    assert found == {
        "A": {8: pytest.approx(0.18), 16: pytest.approx(0.26)},
        "B": {8: pytest.approx(0.08), 16: pytest.approx(0.16)},
    }
    assert metrics_against_bits(rows, ResultFolder(workspace), "another", "MAP", 5) == {}


def test_rows_without_code_files_have_no_curves(workspace, plot):
    code, out, _ = plot("set", "b")
    assert code == 0
    assert out.splitlines()[0] == "no code files of 8 bits in output: no curves"
    assert sorted(p.stem for p in Path("plots").iterdir()) == sorted(PLOTS)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["another"], ". has no results on another: measure them with "),
        (["set", "c"], "c is no row of the table; known: a, b"),
        (["set", "--queries", "9"], "A has no query '9'"),
    ],
)
def test_what_is_not_there_is_named(workspace, plot, args, message):
    code, _, err = plot(*args)
    assert code != 0
    assert message in err.splitlines()[-1]
