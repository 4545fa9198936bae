"""What the command lines share: argument types, and failures as one line with an exit status."""

import io
import os
import re
import sys
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from detectron2.config import get_cfg
from torch.multiprocessing.spawn import ProcessRaisedException

from regiondh_cli.arguments import DEBUG_VARIABLE
from regiondh_d2.checkpoint import WeightsError
from regiondh_d2.engine import command
from regiondh_d2.engine.command import (
    CommandError,
    load_trained_model,
    run_command,
    run_workers,
)
from regiondh_d2.utils.errors import InputNotFoundError, RegionDHError


def failing(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RegionDHError("a.jpg: no"), "a.jpg: no"),
        (InputNotFoundError("c.yaml: no such file"), "c.yaml: no such file"),
        (RegionDHError("a\n b\x1b[31m\udce9\u202e"), r"a\n b\x1b[31m\xe9\u202e"),
        (RegionDHError(), "RegionDHError"),
        (CommandError("told"), "told"),
        (OSError(28, "No space left on device", "a\n.h5"), r"a\n.h5: No space left on device"),
        (OSError(18, "Cross-device link", "a", None, "b"), "a to b: Cross-device link"),
        (PermissionError(13, "Permission denied", b"\xe9"), r"\xe9: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(27, "File too large"), "File too large"),
        (BrokenPipeError(32, "Broken pipe"), "standard output was closed before the end"),
        (
            OSError(24, "Too many open files", "a"),
            "a: too many open files: raise the limit of open files (`ulimit -n 4096`), or use "
            "fewer workers (DATALOADER.NUM_WORKERS)",
        ),
        (
            RuntimeError("can't start new thread"),
            "can't start new thread: end other programs, or raise the limit of processes "
            "(`ulimit -u`)",
        ),
        (URLError("unreachable"), "no connection: <urlopen error unreachable>"),
        (TimeoutError(), "no connection: TimeoutError"),
        (
            ModuleNotFoundError("No module named 'faiss'", name="faiss"),
            "No module named 'faiss': `regiondh doctor` tells what to install",
        ),
        (FloatingPointError("training has diverged"), "training has diverged"),
    ],
)
def test_failures_of_users_are_one_line(capsys, monkeypatch, error, line):
    assert run_command(failing(error)) == 1
    assert capsys.readouterr() == ("", f"error: {line}\n")
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    assert run_command(failing(error)) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith(f"\nerror: {line}\n")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB "
            "of which 1 MiB is free. Of the allocated memory 1 GiB is allocated by PyTorch."
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4000000000000 bytes. Error code 12"
        ),
        MemoryError("Unable to allocate 3.6 TiB for an array"),
    ],
)
def test_no_memory_is_one_line_that_says_what_to_do(capsys, error):
    assert run_command(failing(error)) == 1
    out, err = capsys.readouterr()
    assert re.fullmatch("error: out of memory: .+ try fewer images at once .+\n", err)
    assert out == ""


def test_the_words_of_torch_without_memory(capsys):
    assert run_command(lambda: torch.empty(1 << 60, dtype=torch.uint8)) == 1
    assert capsys.readouterr().err.startswith("error: out of memory: DefaultCPUAllocator: ")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("zip() argument 2 is longer than argument 1"),
        KeyError("boxes"),
        TypeError("defect"),
        OSError("a library's, without a path"),
        RuntimeError("shapes"),
        ImportError("cannot import name 'x'", name="regiondh_d2.config"),
        ModuleNotFoundError("No module named 'regiondh_d2.x'", name="regiondh_d2.x"),
        UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"),
        AssertionError("a\nb\x1b[31m"),
    ],
)
def test_a_defect_shows_its_traceback(capsys, error):
    assert run_command(failing(error)) == 1
    out, err = capsys.readouterr()
    first, *_, last = err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert ", in fail\n" in err
    assert last.startswith(f"error: {type(error).__name__}: ")
    assert "this is a defect of regiondh_d2" in last
    assert "please report" in last
    assert f"torch {torch.__version__}" in last
    assert "\x1b" not in err
    assert out == ""


def test_other_ends(capsys):
    assert run_command(lambda: print("done")) == 0
    assert capsys.readouterr() == ("done\n", "")
    assert run_command(failing(KeyboardInterrupt()), "stopped: use --resume") == 130
    assert capsys.readouterr() == ("", "stopped: use --resume\n")


@pytest.fixture
def stdout(monkeypatch):
    """A function that lets standard output be an open file, text of an encoding."""

    def replace(file, encoding="utf-8"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding=encoding))
        return sys.stdout

    return replace


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "wb")


def test_a_closed_output_is_one_line(capsys, stdout):
    stdout(closed_pipe())
    assert run_command(lambda: print("answer", flush=True)) == 1
    assert capsys.readouterr().err == "error: standard output was closed before the end\n"
    print("no further error at the end of the process", flush=True)


def test_an_output_that_nobody_reads_to_its_end_is_no_failure(capsys, stdout):
    stdout(closed_pipe())
    assert run_command(lambda: print("answer")) == 0
    assert capsys.readouterr().err == ""
    print("no further error at the end of the process", flush=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("flush", [True, False])
def test_an_output_on_a_full_disk_is_one_line(capsys, stdout, flush):
    stdout(os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    assert run_command(lambda: print("answer", flush=flush)) == 1
    lines = capsys.readouterr().err
    assert re.fullmatch("error: (standard output: )?No space left on device\n", lines)
    print("no further error at the end of the process", flush=True)


def test_any_name_can_be_printed(stdout):
    out = stdout(io.BytesIO(), "ascii")
    assert run_command(lambda: print("\udce9 \u4e16")) == 0
    assert out.buffer.getvalue() == rb"\udce9 \u4e16" + b"\n"


def test_a_worker_tells_its_failure_to_its_parent(capsys, monkeypatch):
    monkeypatch.setattr(command, "comm", SimpleNamespace(get_world_size=lambda: 2))
    with pytest.raises(CommandError, match=r"^a\\nb$"):
        command._work(failing(RegionDHError("a\nb")), ())
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    with pytest.raises(CommandError):
        command._work(failing(RegionDHError("a\nb")), ())
    assert ", in fail\n" in capsys.readouterr().err
    with pytest.raises(KeyError):
        command._work(failing(KeyError("boxes")), ())


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ("regiondh_d2.engine.command.CommandError: a.jpg: no", "a.jpg: no"),
        ("torch.distributed.DistNetworkError: no host", "--dist-url tcp://x:1: no host"),
    ],
)
def test_what_the_parent_says_of_a_worker(capsys, monkeypatch, last, line):
    error = ProcessRaisedException(f"-- Process 1 ...:\nTraceback\n  x\n{last}\n", 1, 2)
    monkeypatch.setattr(command, "launch", lambda *args, **kwargs: failing(error)())
    assert run_command(lambda: run_workers(print, 2, (), dist_url="tcp://x:1")) == 1
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_defect_of_a_worker_shows_its_traceback(capsys, monkeypatch):
    error = ProcessRaisedException("-- Process 1 ...:\nTraceback\n  x\nKeyError: 'boxes'\n", 1, 2)
    monkeypatch.setattr(command, "launch", lambda *args, **kwargs: failing(error)())
    assert run_command(lambda: run_workers(print, 2, ())) == 1
    err = capsys.readouterr().err
    assert "\nTraceback\n  x\n" in err
    assert err.splitlines()[-1].startswith("error: KeyError: 'boxes' - this is a defect")


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
