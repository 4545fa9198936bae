"""What the command lines share: argument types, and failures as one line with an exit status."""

import argparse

import pytest
import yaml
from detectron2.config import get_cfg

from regiondh_d2.checkpoint import WeightsError
from regiondh_d2.engine.command import (
    CommandError,
    load_trained_model,
    positive_int,
    run_command,
    run_workers,
)


def test_positive_int():
    assert positive_int("12") == 12
    for text in ("0", "-3"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text} is not a positive integer"):
            positive_int(text)
    with pytest.raises(ValueError):
        positive_int("x")


def failing(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\n  long   story"), "a long story"),
        (KeyError("Non-existent config key: A.B"), "Non-existent config key: A.B"),
        (OSError(28, "No space left on device", "codes.h5"), "codes.h5: No space left on device"),
        (FileNotFoundError("c.yaml: no such file"), "c.yaml: no such file"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (ImportError("no faiss"), "no faiss"),
        (yaml.YAMLError("bad yaml"), "bad yaml"),
        (CommandError("told"), "told"),
        (ValueError(), "ValueError"),
    ],
)
def test_failures_are_one_line(capsys, error, line):
    assert run_command(failing(error)) == 1
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_other_ends(capsys):
    assert run_command(lambda: print("done")) == 0
    assert capsys.readouterr() == ("done\n", "")
    assert run_command(failing(KeyboardInterrupt()), "stopped: use --resume") == 130
    assert capsys.readouterr() == ("", "stopped: use --resume\n")
    with pytest.raises(TypeError):  # a defect of ours, to be seen whole
        run_command(failing(TypeError("defect")))


def test_one_worker_runs_here():
    seen = []
    run_workers(lambda *args: seen.extend(args), 1, (1, "a"))
    assert seen == [1, "a"]
    with pytest.raises(ValueError, match="as it is"):
        run_workers(failing(ValueError("as it is")), 1, ())


def test_a_trained_model_needs_weights(tmp_path):
    cfg = get_cfg()
    for weights, message in (("", "MODEL.WEIGHTS is empty"), (str(tmp_path), "a folder; name")):
        cfg.MODEL.WEIGHTS = weights
        with pytest.raises(WeightsError, match=message):
            load_trained_model(cfg)
