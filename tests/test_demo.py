"""The demo from its command line to its five files, with a network that learns nothing."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.utils.events import EventStorage
from PIL import Image

from programs import run_program
from regiondh_d2.engine import demo as demo_module
from regiondh_d2.engine.demo import DemoResult, format_table
from regiondh_d2.evaluation.ranking_metrics import METRICS, TIE_ORDERS, evaluate_ranking
from regiondh_d2.retrieval.code_store import read_codes

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tools" / "demo.py"
CONFIGS = ROOT / "configs" / "quick_schedules"
INSTANT = CONFIGS / "regiondh_effnetlite0_scenes_instant.yaml"


def arguments(*more):
    fixed = ["--images", 52, "--queries", 6, "--iterations", 2, "--config-file", INSTANT]
    return [str(a) for a in ["--output", "demo", *fixed, *more]]


@pytest.fixture
def main(load_tool):
    """The command's main function."""
    return load_tool("demo").main


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run as a program, and elsewhere than in the checkout: it finds its own files."""
    folder = tmp_path_factory.mktemp("work")
    result = run_program([SCRIPT, *arguments()], cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_leaves_five_complete_files(finished):
    folder, _ = finished
    query, database = (read_codes(folder / "demo" / f"{s}.h5") for s in ("query", "database"))
    assert (len(query), len(database), query.bits) == (6, 52, 48)
    assert query.model_fingerprint == database.model_fingerprint != ""
    with Image.open(folder / "demo" / "retrieval.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
    page = (folder / "demo" / "report.html").read_text()
    assert page.endswith("</html>\n")
    assert "<th>untrained</th>" in page
    assert "could not be read" not in page
    names = {p.name for p in (folder / "demo").iterdir()}
    assert names == {
        "scenes", "training", "metrics.json", "query.h5", "database.h5", "retrieval.png",
        "report.html", ".regiondh"
    }  # fmt: skip


def test_metrics_of_the_network_and_both_references(finished):
    folder, _ = finished
    metrics = json.loads((folder / "demo" / "metrics.json").read_text())
    names = {f"{metric}@5{order}" for metric in METRICS for order in TIE_ORDERS}
    names |= {"num_queries", "num_database", "num_queries_without_relevant"}
    references = {f"{p}/{n}" for p in ("untrained", "color_histogram") for n in names}
    others = {"bbox/AP", "bbox/AP50", "bbox/AP75"}
    others |= {"num_queries_in_database", "untrained/num_queries_in_database"}
    assert set(metrics) == names | references | others
    assert all(isinstance(value, (int, float)) for value in metrics.values())

    query, database = (read_codes(folder / "demo" / f"{s}.h5") for s in ("query", "database"))
    again = evaluate_ranking(
        query.codes, database.codes, query.labels, database.labels, bits=48, topk=5
    ).metrics
    assert {name: metrics[name] for name in names} == pytest.approx(again)


def test_shows_progress_the_table_and_where_the_pictures_lie(finished):
    folder, result = finished
    lines = result.stdout.splitlines()
    metrics = json.loads((folder / "demo" / "metrics.json").read_text())
    assert "training: 2 iterations of 2 images" in lines
    assert "encoding with the trained network" in lines
    table = {line[:24].strip(): line[24:].split() for line in lines}
    for title, prefix in (
        ("Region-DH", ""),
        ("untrained network", "untrained/"),
        ("color histogram, ITQ", "color_histogram/"),
    ):
        expected = [metrics[f"{prefix}{m}@5"] for m in ("MAP", "MAP_min", "NDCG", "ACG")]
        assert table[title] == [f"{value:.3f}" for value in expected]
    assert lines[-3:-1] == [
        f"picture: {Path('demo') / 'retrieval.png'}",
        f"report: {Path('demo') / 'report.html'}",
    ]
    page = lines[-1].removeprefix("click through the scenes: ")
    build, serve = (shlex.split(part) for part in page.split(" && "))
    assert build == ["regiondh", "build-index", "demo/database.h5", "--output", "demo/index"]
    assert serve[:4] == ["regiondh", "serve", "--index", "demo/index"]
    assert serve[4:6] == ["--config-file", str(INSTANT)]
    assert serve[6:] == ["MODEL.WEIGHTS", "demo/training/model_final.pth"]
    assert (folder / serve[-1]).is_file()


def test_codes_are_written_once(finished):
    folder, _ = finished
    written = (folder / "demo").rglob("*.h5")
    assert sorted(file.name for file in written) == ["database.h5", "query.h5"]


def test_training_shows_its_losses():
    lines = []
    hook = demo_module._ProgressHook(lines.append, every=0.0)
    hook.trainer = SimpleNamespace(iter=0, max_iter=2)
    hook.before_train()
    with EventStorage() as storage:
        for iteration in range(2):
            storage.put_scalars(loss_cls=3.0 - iteration, loss_cls_image=1.0)
            hook.trainer.iter = iteration
            hook.after_step()
            storage.step()
    shown = "of 2 training iterations, 0.0 min left, classification loss of regions"
    assert lines == [f"1 {shown} 3.00, images 1.00", f"2 {shown} 2.50, images 1.00"]


def test_refuses_scenes_of_another_kind(finished, main, monkeypatch, capsys):
    folder, _ = finished
    before = (folder / "demo" / "metrics.json").read_bytes()
    monkeypatch.chdir(folder)
    assert main(arguments("--seed", 1)) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith(f"error: {Path('demo') / 'scenes'}: holds scenes of other")
    assert (folder / "demo" / "metrics.json").read_bytes() == before


def test_runs_again_on_the_same_scenes_with_the_same_numbers(finished):
    folder, _ = finished
    scene = folder / "demo" / "scenes" / "JPEGImages" / "database_000000.jpg"
    written = scene.stat().st_mtime_ns
    before = (folder / "demo" / "metrics.json").read_bytes()
    # What an interrupted run leaves.
    (folder / "demo" / "retrieval.png").unlink()
    (folder / "demo" / "training" / "model_final.pth").write_bytes(b"half")

    again = run_program([SCRIPT, *arguments()], cwd=folder)
    assert again.returncode == 0, again.stderr
    assert scene.stat().st_mtime_ns == written
    assert (folder / "demo" / "retrieval.png").is_file()
    assert (folder / "demo" / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    "wrong", [["--images", "0"], ["--seed", "-1"], ["--iterations", "many"], ["--unknown"]]
)
def test_wrong_arguments(wrong, main, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(wrong)
    assert stop.value.code == 2
    assert wrong[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_failure_is_one_line(main, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--config-file", "no.yaml"]) == 1
    assert capsys.readouterr().err.splitlines() == ["error: no.yaml: no such config file"]


def test_a_seed_that_is_too_large(main, tmp_path, monkeypatch, capsys):
    """It was a traceback after the scenes had been drawn."""
    monkeypatch.chdir(tmp_path)
    assert main(["--seed", "4294967296"]) == 1
    (error,) = [x for x in capsys.readouterr().err.splitlines() if "no CUDA device" not in x]
    assert error.startswith("error: SEED is 4294967296: ")
    assert not list(tmp_path.iterdir())


def test_table_has_a_line_for_each_reference():
    names = [f"{p}{m}@50" for p in ("", "untrained/", "color_histogram/") for m in METRICS]
    result = DemoResult(dict.fromkeys(names, 0.25), 50, Path("x.png"), Path("x.html"))
    lines = format_table(result).splitlines()
    assert [line[:24].strip() for line in lines] == [
        "", "color histogram, ITQ", "untrained network", "Region-DH"
    ]  # fmt: skip
    assert lines[0].split() == ["MAP@50", "MAP_min@50", "NDCG@50", "ACG@50"]
