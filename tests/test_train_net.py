"""tools/train_net.py end to end on a few scenes: train, resume, evaluate, cached features."""

import json
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from builders import registered_scenes
from programs import run_program
from regiondh_d2.data import build_train_loader
from regiondh_d2.engine import RegionDHTrainer, build_cfg
from regiondh_d2.engine.checkpoints import FiniteCheckpointer
from regiondh_d2.engine.command import run_command
from regiondh_d2.engine.user_code import VARIABLE
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.utils.errors import RegionDHError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools/train_net.py"
CONFIG = ROOT / "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml"
PREFIX = "train_net_test_"
TRAIN, TEST = f"{PREFIX}regiondh_scenes_database", f"{PREFIX}scenes_retrieval"
DATASETS = ["DATASETS.TRAIN", f"('{TRAIN}',)", "DATASETS.TEST", f"('{TEST}',)"]


@pytest.fixture(scope="module", autouse=True)
def datasets(shared_scenes):
    with registered_scenes(shared_scenes, PREFIX):
        yield


@pytest.fixture
def train_net(load_tool, plain_loggers, random_network, tmp_path, monkeypatch, capsys):
    """A function that runs the command in this process, with the scenes unless told otherwise.

    It returns the exit status and the last line of errors.
    """
    tool = load_tool("train_net")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "")

    def run(*words, datasets=DATASETS):
        start = ["--config-file", random_network.config, *words]
        words = [*start, *datasets, "DATALOADER.NUM_WORKERS", 0, "MODEL.DEVICE", "cpu"]
        args = tool.build_parser().parse_args([str(word) for word in words])
        capsys.readouterr()
        status = run_command(lambda: tool.run(args))
        return SimpleNamespace(status=status, error=last_line(capsys.readouterr().err))

    return run


def last_line(text):
    return text.rstrip().rsplit("\n", 1)[-1]


def metrics_of(folder):
    """The last value of each scalar; the lines of metrics.json hold what was new at their time."""
    lines = (folder / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def test_train_resume_and_evaluate(train_net, tmp_path, caplog):
    output = tmp_path / "run"
    result = train_net("OUTPUT_DIR", output)
    assert result.status == 0, result.error
    last = metrics_of(output)
    assert {"loss_cls_image", "loss_hash_image", "loss_hash_instance"} <= set(last)
    assert 0.0 < last["retrieval/MAP_min@5"] <= 1.0
    assert "bbox/AP50" in last
    database = read_codes(output / f"inference/{TEST}/database.h5")
    assert (len(database), database.bits) == (8, 48)
    assert len(database.model_fingerprint) == 64
    assert database.config == str(output / "config.yaml")

    with caplog.at_level("INFO"):
        result = train_net("--resume", "OUTPUT_DIR", output, "SOLVER.MAX_ITER", 5)
    assert result.status == 0, result.error
    assert "Starting training from iteration 3" in caplog.text

    evaluated = tmp_path / "evaluated"
    weights = output / "model_final.pth"
    result = train_net("--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", evaluated)
    assert result.status == 0, result.error
    trained = read_codes(output / f"inference/{TEST}/query.h5")
    again = read_codes(evaluated / f"inference/{TEST}/query.h5")
    assert trained.model_fingerprint == again.model_fingerprint
    assert (trained.codes == again.codes).all()


def test_heads_train_on_cached_features(train_net, tmp_path):
    """The codes from cached features are those from images, but for half-precision rounding."""
    output = tmp_path / "cached"
    frozen = [f"MODEL.REGION_DH.LR_FACTORS.{p}" for p in ("BACKBONE", "PROPOSAL_GENERATOR")]
    opts = [x for key in frozen for x in (key, "0.0")]
    opts += ["MODEL.REGION_DH.WHOLE_IMAGE", "pooled", "MODEL.REGION_DH.NORMALIZE_FUSED", "True"]
    cache = ["MODEL.REGION_DH.FEATURE_CACHE", "cache"]
    result = train_net(*opts, *cache, "OUTPUT_DIR", output)
    assert result.status == 0, result.error
    assert sorted(os.listdir("cache")) == [".lock", f"{TRAIN}.npz", f"{TEST}.npz"]

    images = tmp_path / "from_images"
    weights = ["MODEL.WEIGHTS", output / "model_final.pth"]
    result = train_net("--eval-only", *opts, *weights, "OUTPUT_DIR", images)
    assert result.status == 0, result.error
    cached, direct = (
        read_codes(folder / f"inference/{TEST}/database.h5") for folder in (output, images)
    )
    assert abs(cached.activations.astype(float) - direct.activations).max() < 0.02

    others = ["MODEL.WEIGHTS", ""]
    result = train_net(*opts, *cache, *others, "OUTPUT_DIR", tmp_path / "other")
    assert result.status == 1
    assert re.match(r"error: \S+_database\.npz was made by other", result.error)


def test_a_cache_needs_frozen_features(train_net):
    result = train_net("MODEL.REGION_DH.FEATURE_CACHE", "unused", "OUTPUT_DIR", "refused")
    assert result.status == 1
    assert re.match(r"error: .+LR_FACTORS\.BACKBONE", result.error)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(
    train_net, tmp_path
):
    output = tmp_path / "diverging"
    opts = ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"]
    result = train_net(*opts, "SOLVER.BASE_LR", "1e30", "OUTPUT_DIR", output)
    assert result.status == 1
    line = r"error: training has diverged at iteration [12]: (Predicted .+Inf/NaN|loss_\w+ is \S+)"
    assert re.match(line, result.error)
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


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_a_program(shared_scenes, tmp_path):
    """On datasets of one's own, which new processes know only if they import the same module."""
    (tmp_path / "my_zoo.py").write_text(
        "from regiondh_d2.data.datasets.scenes import register_scenes\n"
        f"register_scenes({str(shared_scenes)!r}, {PREFIX!r})\n"
    )
    result = run_program(
        [SCRIPT, "--config-file", CONFIG, "--import", "my_zoo", "--num-gpus", "2", *DATASETS]
        + ["OUTPUT_DIR", "two", "DATALOADER.NUM_WORKERS", "0"],
        cwd=tmp_path,  # and not the checkout
    )
    assert result.returncode == 0, result.stderr
    assert 0.0 < metrics_of(tmp_path / "two")["retrieval/MAP_min@5"] <= 1.0
    assert len(read_codes(tmp_path / f"two/inference/{TEST}/database.h5")) == 8
    assert "FutureWarning" not in result.stderr + result.stdout


@pytest.mark.parametrize("seed", ["0", "-1"])
def test_what_loaders_hand_to_processes_can_be_pickled(monkeypatch, seed):
    """Where a training has several processes, those of their loaders are no forks."""
    handed, iterate = [], DataLoader._get_iterator

    def iterate_pickled(loader):
        for name in ("dataset", "collate_fn", "worker_init_fn"):
            handed.append(pickle.loads(pickle.dumps(getattr(loader, name))))
            object.__setattr__(loader, name, handed[-1])
        return iterate(loader)

    monkeypatch.setattr(DataLoader, "_get_iterator", iterate_pickled)
    cfg = build_cfg(str(CONFIG), [*DATASETS, "SEED", seed, "MODEL.DEVICE", "cpu"])
    for loader in (build_train_loader(cfg), RegionDHTrainer.build_test_loader(cfg, TEST)):
        assert next(iter(loader))[0]["image"].shape[0] == 3
    assert len(handed) == 6


def test_two_processes_evaluate_and_train_nothing(train_net, random_network, tmp_path, forked):
    """What a script of one's own with --eval-only and --num-gpus did not do."""
    output = tmp_path / "zoo"
    output.mkdir()
    (output / "model_final.pth").write_bytes(b"trained for days")
    words = ["MODEL.WEIGHTS", random_network.weights, "OUTPUT_DIR", output]
    with forked():
        result = train_net("--eval-only", "--num-gpus", 2, *words)
    assert result.status == 0, result.error
    assert len(read_codes(output / f"inference/{TEST}/database.h5")) == 8
    assert (output / "model_final.pth").read_bytes() == b"trained for days"


def test_a_dataset_that_is_not_registered_is_told(train_net, random_network):
    datasets = ["DATASETS.TRAIN", "('zoo_scenes',)", "DATASETS.TEST", f"('{TEST}',)"]
    result = train_net("--eval-only", "MODEL.WEIGHTS", random_network.weights, datasets=datasets)
    assert result.status == 1
    line = r"error: DATASETS.TRAIN has 'zoo_\w+', which isn't registered; known: "
    assert re.match(line, result.error)
    assert "--import MODULE_OR_FILE" in result.error


def test_weights_that_do_not_fit_are_not_evaluated(train_net, random_network, tmp_path):
    result = train_net(
        *("--eval-only", "MODEL.REGION_DH.BITS", "64"),
        *("MODEL.WEIGHTS", random_network.weights, "OUTPUT_DIR", "misfit"),
    )
    assert result.status == 1
    assert re.match(r"error: \S+weights\.pth lacks \d+ tensors .+48.+there, 64", result.error)
    assert not (tmp_path / "misfit/inference").exists()


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


def test_a_failure_of_one_of_two_processes_is_told_in_one_line(train_net, forked):
    refused = ["SOLVER.IMS_PER_BATCH", "3", "OUTPUT_DIR", "three"]
    with forked():
        result = train_net("--num-gpus", "2", *refused)
    assert result.status == 1
    line = r"error: SOLVER\.IMS_PER_BATCH 3 is no multiple of the 2 processes"
    assert re.match(line, result.error)


def test_an_unknown_key_is_named(train_net):
    result = train_net("MODEL.REGION_DH.BITZ", "48")
    assert result.status == 1
    assert re.match(r"error: .+BITZ", result.error)
