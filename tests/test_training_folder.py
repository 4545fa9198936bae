"""OUTPUT_DIR: whose network is in it, one training at a time, and config.yaml."""

import argparse
from pathlib import Path

import detectron2.engine.defaults
import pytest
import torch

from regiondh_d2.engine import defaults, setup_cfg, training_folder
from regiondh_d2.engine.defaults import build_cfg
from regiondh_d2.engine.training_folder import check_own_training, training_lock
from regiondh_d2.engine.training_record import KEY, Training, TrainingRecorder
from regiondh_d2.utils.errors import OutputExistsError
from regiondh_d2.utils.locks import FileInUseError
from regiondh_d2.utils.shortage import ShortageError

pytestmark = pytest.mark.usefixtures("plain_loggers")


@pytest.fixture
def folder(tmp_path):
    """A folder with the network of a training, and its config."""
    folder = tmp_path / "out"
    folder.mkdir()
    cfg = build_cfg("", options(folder))
    recorder = TrainingRecorder(cfg)
    recorder._training = Training.of(cfg)
    torch.save({"model": {}, KEY: recorder.state_dict()}, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def options(folder, *more):
    return ["OUTPUT_DIR", str(folder), "DATASETS.TRAIN", "()", "DATASETS.TEST", "()", *more]


def arguments(opts, **flags):
    values = {"config_file": "", "resume": False, "eval_only": False, "num_gpus": 1}
    return argparse.Namespace(**values | flags, num_machines=1, opts=opts)


def everything_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log.txt"}


def test_the_network_of_another_training_is_not_replaced(folder):
    before = everything_in(folder)
    opts = options(folder, "SOLVER.BASE_LR", "0.5")
    with pytest.raises(OutputExistsError) as told:
        setup_cfg(arguments(opts))
    text = str(told.value)
    assert f"OUTPUT_DIR {folder} holds the network of another training" in text
    assert "SOLVER.BASE_LR 0.001, which is now 0.5" in text
    assert "\n" not in text
    assert everything_in(folder) == before
    setup_cfg(arguments(opts, resume=True))  # goes on with it, and tells what differs
    setup_cfg(arguments(options(folder)))  # the same again
    (folder / "last_checkpoint").unlink()
    setup_cfg(arguments(opts))


@pytest.mark.parametrize("content", [None, b"", b"damaged"])
def test_a_damaged_network_stops_no_training(folder, content):
    path = folder / "model_final.pth"
    path.unlink() if content is None else path.write_bytes(content)
    cfg = build_cfg("", options(folder, "SOLVER.BASE_LR", "0.5"))
    check_own_training(cfg)
    (folder / "last_checkpoint").write_text("")
    check_own_training(cfg)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "model_final.pth"),
        OSError(5, "Input/output error", "model_final.pth"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_network_that_can_not_be_read_now_is_not_replaced(folder, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    before = everything_in(folder)
    with pytest.raises((OSError, ShortageError)):
        setup_cfg(arguments(options(folder, "SOLVER.BASE_LR", "0.5")))
    assert everything_in(folder) == before


def test_an_evaluation_leaves_the_config_of_a_training(folder, monkeypatch):
    before = everything_in(folder)
    default_setup = defaults.default_setup

    def look_after(*args):
        default_setup(*args)
        assert everything_in(folder) == before  # also if the process is killed now

    monkeypatch.setattr(defaults, "default_setup", look_after)
    opts = options(folder, "TEST.RETRIEVAL.TOPK", "7")
    assert setup_cfg(arguments(opts, eval_only=True)).TEST.RETRIEVAL.TOPK == 7
    assert everything_in(folder) == before


def test_a_config_stays_if_another_can_not_be_written(folder, monkeypatch, full_disk):
    before = (folder / "config.yaml").read_text()

    def fail(cfg, args):
        file = str(Path(cfg.OUTPUT_DIR, "config.yaml"))
        with detectron2.engine.defaults.PathManager.open(file, "w") as config:
            config.write("half of")
            raise OSError("disk full")

    opts = options(folder, "TEST.RETRIEVAL.TOPK", "7")
    with monkeypatch.context() as patch:
        patch.setattr(defaults, "default_setup", fail)
        with pytest.raises(OSError, match="disk full"):
            setup_cfg(arguments(opts))
    with full_disk(100), pytest.raises(OSError, match=r"config\.yaml"):
        setup_cfg(arguments(opts))
    assert (folder / "config.yaml").read_text() == before
    assert not list(folder.glob("*.tmp"))
    setup_cfg(arguments(opts))
    assert "TOPK: 7" in (folder / "config.yaml").read_text()


def test_one_training_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(training_folder, "_WAIT", 0.0)
    with training_lock(folder):
        before = everything_in(folder)
        for flags in ({}, {"resume": True}):
            with pytest.raises(FileInUseError, match="out: in use by another program"):
                setup_cfg(arguments(options(folder), **flags))
        assert everything_in(folder) == before
        setup_cfg(arguments(options(folder), eval_only=True))
    setup_cfg(arguments(options(folder)))
