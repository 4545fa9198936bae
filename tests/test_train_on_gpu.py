"""The script for a GPU: its settings exist, and it goes on where it was interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from regiondh_d2.engine import build_cfg
from regiondh_d2.engine.config_rules import check_values

ROOT = Path(__file__).parents[1]
# In place of Python: notes what it was asked, and fails where the test says so.
PYTHON = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit(os.environ["FAILS"] in " ".join(sys.argv))
"""


@pytest.fixture
def run(tmp_path):
    """A function that runs the script on a device; returns its exit code and all calls so far."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(device, fails="nothing", **variables):
        names = {"PYTHON": str(python), "CALLS": str(calls), "FAILS": fails, "DEVICE": device}
        script = [str(ROOT / "tools/train_on_gpu.sh"), str(tmp_path / "out")]
        done = subprocess.run(script, env={**os.environ, **names, **variables}, check=False)
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, [json.loads(line) for line in lines]

    return run


def test_every_step_is_run_once_and_an_unfinished_one_again(run, tmp_path):
    code, calls = run("cuda", fails="out/heads")
    assert code == 1
    assert [c[0] for c in calls] == ["-m", "tools/train_net.py", "tools/train_net.py"]
    code, again = run("cuda")
    assert code == 0
    assert again[3] == calls[2]  # the heads once more, with --resume
    assert len(again) == 6
    assert run("cuda") == (0, again)
    minutes = (tmp_path / "out/minutes.txt").read_text().split()
    assert minutes[::2] == ["tests", "detector", "heads", "joint", "timings"]
    assert run("cuda", SPLIT="test")[0] == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_its_settings_are_legal(run, device):
    _, calls = run(device, SIZE="96", SPLIT="val", JOINT_ITERS="2")
    assert any("pytest" in c for c in calls) == (device == "cuda")
    trainings = [c for c in calls if c[0] == "tools/train_net.py"]
    assert len(trainings) == 3
    for call in trainings:
        assert call[1:3] == ["--resume", "--config-file"]
        cfg = build_cfg(str(ROOT / call[3]), call[4:])
        check_values(cfg)
        assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TRAIN) == (96, 160)
        assert cfg.DATASETS.TRAIN == ("regiondh_voc_2007_train",)
    assert cfg.SOLVER.MAX_ITER == 2
    assert (device == "cuda") == cfg.SOLVER.AMP.ENABLED
