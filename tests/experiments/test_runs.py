"""Checks before a training and of a result, what is filed, and the minutes of parts."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import runs
from experiments.result_files import ResultFolder
from experiments.rows import read_table
from experiments.runs import Minutes, check_result, check_run, train_run
from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.training_record import Training, TrainingRecorder
from regiondh_d2.utils.errors import RegionDHError
from study import CONFIG, PREFIX, RESULT, measure, write_table


def row_of(folder, opts, **values):
    return read_table(write_table(folder, a={"title": "A", "opts": opts, **values}))[0]


def save_network(folder, run, **changes):
    """A checkpoint as a training of a run leaves it."""
    cfg, training = check_run(run, folder / "output")
    recorder = TrainingRecorder(cfg)
    recorder.begin(resumed=False)
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir(parents=True)
    content = {"model": {}, "training": {**recorder.state_dict(), **changes}}
    torch.save(content, output / "model_0000001.pth")
    (output / "last_checkpoint").write_text("model_0000001.pth")
    return output


def test_a_network_of_the_same_training_is_taken(scenes, tmp_path):
    run = row_of(tmp_path, scenes).runs()[0]
    save_network(tmp_path, run)
    check_run(run, tmp_path / "output")
    elsewhere = [*scenes, "DATALOADER.NUM_WORKERS", 0, "TEST.RETRIEVAL.TOPK", 3]
    check_run(row_of(tmp_path, elsewhere).runs()[0], tmp_path / "output")


@pytest.mark.parametrize(
    "change", ["option", "config", "weights", "images", "parts", "0.1", "gone"]
)
def test_a_network_of_another_training_is_refused(scenes, tmp_path, change):
    """Nothing trains, and nothing is deleted."""
    config = tmp_path / "config.yaml"
    config.write_text(f"_BASE_: {CONFIG}\n")
    run = row_of(tmp_path, scenes, config=str(config)).runs()[0]
    mixed = {"earlier": [{}]} if change == "parts" else {}
    folder = save_network(tmp_path, run, **mixed)
    told = {
        "option": r"SOLVER.BASE_LR .+, which is now 0.123",
        "config": r"SOLVER.BASE_LR .+, which is now 0.123",
        "weights": r"another content of MODEL.WEIGHTS",
        "images": r"other images or objects of study_test_regiondh_scenes_database",
        "parts": r"was trained in parts of different settings",
        "0.1": r"doesn't say what it was trained with",
        "gone": r"the last checkpoint there, is missing",
    }[change]
    if change == "option":
        opts = [*scenes, "SOLVER.BASE_LR", 0.123]
        run = row_of(tmp_path, opts, config=str(config)).runs()[0]
    elif change == "config":
        config.write_text(f"_BASE_: {CONFIG}\nSOLVER: {{BASE_LR: 0.123}}\n")
    elif change == "weights":
        (tmp_path / "start.pth").write_bytes(b"others")
    elif change == "images":
        image = next((tmp_path / "scenes/JPEGImages").glob("database*"))
        image.write_bytes(image.read_bytes() + b" ")
    elif change == "0.1":
        torch.save({"model": {}, "iteration": 3}, folder / "model_0000001.pth")
    elif change == "gone":
        (folder / "model_0000001.pth").unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(RegionDHError, match=rf"{told}.*: delete .+a_8_seed0, or move it away"):
        train_run(run, tmp_path / "output", ResultFolder(tmp_path / "results"))
    assert sorted(folder.rglob("*")) == before
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("opts", "told"),
    [
        (
            ["DATASETS.TRAIN", "('nowhere',)"],
            "DATASETS.TRAIN has 'nowhere', which isn't registered",
        ),
        (["DATASETS.TEST", "('nowhere',)"], "DATASETS.TEST has 'nowhere', which isn't registered"),
        (["DATASETS.TEST", "()"], "must each name a dataset"),
        (["DATASETS.TEST", f"('{PREFIX}regiondh_scenes_queries',)"], "is no retrieval dataset"),
        (["SOLVER.BASE_RATE", 1], "Non-existent config key: SOLVER.BASE_RATE"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS nowhere.pth: no such file"),
    ],
)
def test_a_row_that_cannot_be_trained_is_named(scenes, tmp_path, opts, told):
    run = row_of(tmp_path, [*scenes, *opts]).runs()[0]
    with pytest.raises(RegionDHError, match=rf"^row a: .*{re.escape(told)}"):
        check_run(run, tmp_path / "output")


def test_a_config_or_images_that_are_not_there_are_named(scenes, tmp_path):
    run = row_of(tmp_path, scenes, config="nowhere.yaml").runs()[0]
    with pytest.raises(RegionDHError, match=r"^row a: nowhere.yaml: no such config file"):
        check_run(run, tmp_path / "output")
    shutil.rmtree(tmp_path / "scenes/Annotations")
    with pytest.raises(RegionDHError, match=r"^row a: .+Annotations"):
        check_run(row_of(tmp_path, scenes).runs()[0], tmp_path / "output")


def test_a_result_of_another_config_is_refused(scenes, tmp_path):
    """The options are the same, and the config's file was changed."""
    config = tmp_path / "config.yaml"
    config.write_text(f"_BASE_: {CONFIG}\n")
    run = row_of(tmp_path, scenes, config=str(config)).runs()[0]
    _, training = check_run(run, tmp_path / "output")
    result = {**RESULT, "settings_sha256": training.settings_sha256}
    check_result(run, tmp_path / "output", result)
    config.write_text(f"_BASE_: {CONFIG}\nSOLVER: {{BASE_LR: 0.123}}\n")
    with pytest.raises(RegionDHError, match="the result of a_8_seed0 was trained with other"):
        check_result(run, tmp_path / "output", result)
    check_result(run, tmp_path / "output", RESULT)


@pytest.mark.parametrize("changed", ["weights", "image", "label"])
def test_a_result_of_other_weights_or_data_is_refused(scenes, tmp_path, changed):
    weights = tmp_path / "start.pth"
    weights.write_bytes(b"one")
    run = row_of(tmp_path, [*scenes, "MODEL.WEIGHTS", str(weights)]).runs()[0]
    _, training = check_run(run, tmp_path / "output")
    result = {
        **RESULT,
        "settings_sha256": training.settings_sha256,
        "weights_sha256": training.weights_sha256,
        "data_sha256": training.data_sha256,
    }
    check_result(run, tmp_path / "output", result)
    if changed == "weights":
        weights.write_bytes(b"two")
        told = f"another content of MODEL.WEIGHTS {weights}"
    elif changed == "image":
        for image in (tmp_path / "scenes/JPEGImages").iterdir():
            image.write_bytes(image.read_bytes() + b"0")
        told = f"other images or objects of {PREFIX}regiondh_scenes_"
    else:
        for file in (tmp_path / "scenes/Annotations").iterdir():
            file.write_text(re.sub("<xmax>.*?</xmax>", "<xmax>190</xmax>", file.read_text()))
        told = f"other images or objects of {PREFIX}regiondh_scenes_"
    with pytest.raises(RegionDHError, match=told):
        check_result(run, tmp_path / "output", result)
    # Results that came without images and weights stay.
    weights.unlink()
    shutil.rmtree(tmp_path / "scenes")
    check_result(run, tmp_path / "output", result)


def test_a_result_never_lacks_the_values_of_its_queries(tmp_path, monkeypatch):
    """Where they can't be written, the run isn't done."""
    opts = ["DATASETS.TEST", "('set',)", "MODEL.DEVICE", "cpu"]
    run = read_table(write_table(tmp_path, a={"title": "", "opts": opts}))[0].runs()[0]
    measure(tmp_path, run, 0.1)
    output, results = tmp_path / "output", ResultFolder(tmp_path / "results")
    results.forget(run)
    monkeypatch.setattr(runs, "_run_timed", lambda *_: 0)
    monkeypatch.setattr(runs, "check_run", checked)
    for name in ("_metrics", "_box_ap", "data_checksum"):
        monkeypatch.setattr(runs, name, lambda *_: {"MAP@1": 0.5})
    (results.path / "per_query").write_text("in the way")
    with pytest.raises(OSError, match="per_query"):
        train_run(run, output, results)
    assert results.read(run) is None
    (results.path / "per_query").unlink()
    train_run(run, output, results)
    assert results.read(run) is not None
    with np.load(results.per_query_file(run)) as kept:
        assert sorted(kept) == ["set/ACG@5", "set/MAP@5", "set/MAP_min@5", "set/NDCG@5"]


def checked(run, output):
    cfg = build_cfg(run.row.config, run.options(output))
    return cfg, Training.of(cfg)


def test_half_a_line_of_metrics_costs_nothing(tmp_path):
    lines = ['{"bbox/AP50": 1.0}', '{"bbox/AP50": 2.0', '{"bbox/AP50": 3.0, "bbox/AP": 4.0}', "{"]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert runs._box_ap(tmp_path, ["set"]) == {"bbox/AP50": 3.0, "bbox/AP": 4.0}


def test_minutes_of_all_parts_count(tmp_path, monkeypatch):
    """Also of one that was killed, as far as they were written; not those of another training."""
    clock = [0.0]
    monkeypatch.setattr(runs.time, "perf_counter", lambda: clock[0])
    first = Minutes(tmp_path, "training")
    clock[0] = 120.0
    first.write()
    clock[0] = 150.0  # killed here
    second = Minutes(tmp_path, "training")
    clock[0] = 210.0
    second.write()
    assert second.parts == [2.0, 1.0]
    assert not second.lost
    assert Minutes(tmp_path, "another").parts == [0.0]
    (tmp_path / "minutes.json").write_text("{")
    assert not Minutes(tmp_path, "training").lost
    (tmp_path / "last_checkpoint").write_text("model.pth")
    assert Minutes(tmp_path, "training").lost


def test_time_is_kept_while_a_command_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SAVE_SECONDS", 0.05)
    minutes = Minutes(tmp_path, "training")
    seen = []
    write = minutes.write
    monkeypatch.setattr(minutes, "write", lambda: (write(), seen.append(minutes.parts[-1])))
    code = [
        sys.executable,
        "-c",
        "import time; print('line'); time.sleep(0.5); raise SystemExit(3)",
    ]
    assert runs._run_timed(code, tmp_path / "log", minutes) == 3
    assert (tmp_path / "log").read_text() == "line\n"
    assert len(seen) > 3
    kept = json.loads((tmp_path / "minutes.json").read_text())
    assert kept["minutes"] == [seen[-1]]
    assert kept["minutes"][0] >= 0.5 / 60
