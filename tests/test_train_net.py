"""tools/train_net.py end to end on a few scenes: train, resume, evaluate, cached features."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regiondh_d2.data import generate_scenes
from regiondh_d2.engine.trainer import FiniteCheckpointer
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.utils.errors import RegionDHError

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder of scenes, and an output folder that the tests share in order."""
    folder = tmp_path_factory.mktemp("train_net")
    generate_scenes(folder / "scenes", num_database=8, num_queries=4)
    return folder


def train_net(workspace, *args):
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(CONFIG)]
    env = {**os.environ, "DETECTRON2_DATASETS": str(workspace), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *args], cwd=workspace, env=env, capture_output=True, text=True, check=False
    )


def last_line(text):
    return text.rstrip().rsplit("\n", 1)[-1]


def metrics_of(folder):
    """The last value of each scalar; the lines of metrics.json hold what was new at their time."""
    lines = (folder / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def test_train_resume_and_evaluate(workspace):
    output = workspace / "run"
    result = train_net(workspace, "OUTPUT_DIR", str(output))
    assert result.returncode == 0, result.stderr
    last = metrics_of(output)
    assert {"loss_cls_image", "loss_hash_image", "loss_hash_instance"} <= set(last)
    assert 0.0 < last["retrieval/MAP_min@5"] <= 1.0
    assert "bbox/AP50" in last
    database = read_codes(output / "inference/scenes_retrieval/database.h5")
    assert (len(database), database.bits) == (8, 48)
    assert len(database.model_fingerprint) == 64
    assert database.config == str(output / "config.yaml")

    result = train_net(workspace, "--resume", "OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", "5")
    assert result.returncode == 0, result.stderr
    assert "Starting training from iteration 3" in result.stdout

    weights = str(output / "model_final.pth")
    evaluated = workspace / "evaluated"
    result = train_net(
        workspace, "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(evaluated)
    )
    assert result.returncode == 0, result.stderr
    trained = read_codes(output / "inference/scenes_retrieval/query.h5")
    again = read_codes(evaluated / "inference/scenes_retrieval/query.h5")
    assert trained.model_fingerprint == again.model_fingerprint
    assert (trained.codes == again.codes).all()


def test_heads_train_on_cached_features(workspace):
    """The codes from cached features are those from images, but for half-precision rounding."""
    output = workspace / "cached"
    frozen = [f"MODEL.REGION_DH.LR_FACTORS.{p}" for p in ("BACKBONE", "PROPOSAL_GENERATOR")]
    opts = [x for key in frozen for x in (key, "0.0")]
    opts += ["MODEL.REGION_DH.WHOLE_IMAGE", "pooled", "MODEL.REGION_DH.NORMALIZE_FUSED", "True"]
    result = train_net(
        workspace, *opts, "MODEL.REGION_DH.FEATURE_CACHE", "cache", "OUTPUT_DIR", str(output)
    )
    assert result.returncode == 0, result.stderr
    names = ["regiondh_scenes_database.npz", "scenes_retrieval.npz"]
    assert sorted(p.name for p in (workspace / "cache").iterdir()) == names

    images = workspace / "from_images"
    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    result = train_net(workspace, "--eval-only", *opts, *weights, "OUTPUT_DIR", str(images))
    assert result.returncode == 0, result.stderr
    cached, direct = (
        read_codes(folder / "inference/scenes_retrieval/database.h5") for folder in (output, images)
    )
    assert abs(cached.activations.astype(float) - direct.activations).max() < 0.02

    other = train_net(
        workspace,
        *opts,
        "MODEL.REGION_DH.FEATURE_CACHE",
        "cache",
        "MODEL.WEIGHTS",
        str(workspace / "run/model_final.pth"),
        "OUTPUT_DIR",
        str(workspace / "other"),
    )
    assert other.returncode == 1
    assert re.match(r"error: \S+_database\.npz was made by other", last_line(other.stderr))


def test_a_cache_needs_frozen_features(workspace):
    result = train_net(
        workspace,
        "MODEL.REGION_DH.FEATURE_CACHE",
        "unused",
        "OUTPUT_DIR",
        str(workspace / "refused"),
    )
    assert result.returncode == 1
    assert re.match(r"error: .+LR_FACTORS\.BACKBONE", last_line(result.stderr))


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(workspace):
    output = workspace / "diverging"
    opts = ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"]
    result = train_net(workspace, *opts, "SOLVER.BASE_LR", "1e30", "OUTPUT_DIR", str(output))
    assert result.returncode == 1
    line = r"error: training has diverged at iteration [12]: (Predicted .+Inf/NaN|loss_\w+ is \S+)"
    assert re.match(line, last_line(result.stderr))
    assert (output / "last_checkpoint").read_text() == "model_0000000.pth"
    weights = torch.load(output / "model_0000000.pth", weights_only=True)["model"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not (output / "model_final.pth").exists()


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_not_finite_are_not_saved(make_model, tmp_path, value):
    model = make_model()
    checkpointer = FiniteCheckpointer(model, str(tmp_path))
    checkpointer.save("good")
    model.roi_heads.image_hash.classifier.bias.data[1] = float(value)
    with pytest.raises(FloatingPointError, match=r"image_hash\.classifier\.bias .+ bad\.pth"):
        checkpointer.save("bad")
    assert not (tmp_path / "bad.pth").exists()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "good.pth")


def test_two_processes_train_and_evaluate(workspace):
    output = workspace / "two"
    result = train_net(workspace, "--num-gpus", "2", "OUTPUT_DIR", str(output))
    assert result.returncode == 0, result.stderr
    assert 0.0 < metrics_of(output)["retrieval/MAP_min@5"] <= 1.0
    assert len(read_codes(output / "inference/scenes_retrieval/database.h5")) == 8
    assert "FutureWarning" not in result.stderr + result.stdout


def test_own_datasets_are_evaluated_in_two_processes_and_nothing_is_trained(workspace):
    """What a script of one's own with --eval-only and --num-gpus did not do."""
    (workspace / "my_zoo.py").write_text(
        "from regiondh_d2.data.datasets.scenes import register_scenes\n"
        f"register_scenes({str(workspace / 'scenes')!r}, 'zoo_')\n"
    )
    output = workspace / "zoo"
    output.mkdir()
    (output / "model_final.pth").write_bytes(b"trained for days")
    opts = ["DATASETS.TRAIN", "('zoo_regiondh_scenes_database',)"]
    opts += ["DATASETS.TEST", "('zoo_scenes_retrieval',)", "OUTPUT_DIR", str(output)]
    weights = ["MODEL.WEIGHTS", str(workspace / "run/model_final.pth")]
    own = ["--import", "my_zoo", "--eval-only", "--num-gpus", "2"]
    result = train_net(workspace, *own, *opts, *weights)
    assert result.returncode == 0, result.stderr
    assert len(read_codes(output / "inference/zoo_scenes_retrieval/database.h5")) == 8
    assert (output / "model_final.pth").read_bytes() == b"trained for days"
    assert "FutureWarning" not in result.stderr + result.stdout

    result = train_net(workspace, "--eval-only", *opts, *weights)
    assert result.returncode == 1
    line = last_line(result.stderr)
    assert re.match(r"error: DATASETS.TRAIN has 'zoo_\w+', which isn't registered; known: ", line)
    assert "--import MODULE_OR_FILE" in line


def test_weights_that_do_not_fit_are_not_evaluated(workspace):
    result = train_net(
        workspace,
        *("--eval-only", "MODEL.REGION_DH.BITS", "64"),
        *("MODEL.WEIGHTS", str(workspace / "run/model_final.pth")),
        *("OUTPUT_DIR", str(workspace / "misfit")),
    )
    assert result.returncode == 1
    line = last_line(result.stderr)
    assert re.match(r"error: \S+run/model_final\.pth lacks \d+ tensors .+48.+there, 64", line)
    assert not (workspace / "misfit/inference").exists()


def test_what_the_machines_of_a_training_must_say(load_tool):
    tool = load_tool("train_net")
    for arguments, message in (
        (["--num-machines", "2"], "--num-machines 2 needs the address"),
        (["--machine-rank", "1"], "--machine-rank 1: with --num-machines 1 the machines are"),
        (["--machine-rank", "-1"], "--machine-rank -1"),
    ):
        with pytest.raises(RegionDHError, match=message):
            tool.run(tool.build_parser().parse_args(arguments))
    for arguments in (["--num-gpus", "0"], ["--num-machines", "-1"]):
        with pytest.raises(SystemExit):
            tool.build_parser().parse_args(arguments)


def test_a_failure_of_one_of_two_processes_is_told_in_one_line(workspace):
    refused = ["SOLVER.IMS_PER_BATCH", "3", "OUTPUT_DIR", str(workspace / "three")]
    result = train_net(workspace, "--num-gpus", "2", *refused)
    assert result.returncode == 1
    line = r"error: SOLVER\.IMS_PER_BATCH 3 is no multiple of the 2 processes"
    assert re.match(line, last_line(result.stderr))


def test_an_unknown_key_is_named(workspace):
    result = train_net(workspace, "MODEL.REGION_DH.BITZ", "48")
    assert result.returncode == 1
    assert re.match(r"error: .+BITZ", last_line(result.stderr))
