"""Shared by the commands: errors as one line, processes, trained weights."""

import errno
import logging
import multiprocessing
import os
import platform
import re
import sys
import traceback
import urllib.error
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from regiondh_cli.arguments import DEBUG_VARIABLE

from ..checkpoint import (
    RegionDHCheckpointer,
    WeightsError,
    has_last_checkpoint,
    require_weights,
)
from ..utils.display import display_name, tolerate_any_text
from ..utils.errors import RegionDHError
from ..utils.progress import close_bars
from ..utils.shortage import shortage
from .allocation import keep_freed_memory
from .network import build_network
from .user_code import import_user_code

__all__ = [
    "CommandError",
    "load_trained_model",
    "prepare_process",
    "run_command",
    "run_workers",
]

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_CONNECTION = (ConnectionError, TimeoutError, urllib.error.URLError)
# torch's message, in a plain RuntimeError, when the CPU is out of memory.
NO_MEMORY = re.compile(r"DefaultCPUAllocator: (can't|not enough)")
# Raised while processes connect, if the address is wrong or in use.
NOT_CONNECTED = re.compile(r"(?:torch\.distributed\.)?Dist(?:Network|Store|Backend)Error: (.*)")

# A process waits for the others at the end, and one of them may have much more to do.
TIMEOUT = timedelta(days=30)


WARNINGS_VARIABLE = "PYTHONWARNINGS"
# The start of the message, as Python's own filters take it.
QUIET = "ignore:`torch.jit.script` is deprecated:FutureWarning"


class CommandError(Exception):
    """A failure whose message is complete."""


def run_command(
    command: Callable[[], int | None],
    interrupted: str = "interrupted",
    keep_memory: bool = True,
) -> int:
    """Run a command and print its failure to standard error.

    Errors that users can cause and fix are one line: a :class:`.RegionDHError`, an ``OSError`` with
    a path, a full disk, no memory, no connection, a missing package, a training that has diverged,
    and a standard output that was closed (``| head``). Anything else is a defect of ours and shows
    its traceback, as every error does with ``--debug``.

    Args:
        command: the work of the command line; it may return an exit status of its own.
        interrupted: the line for Ctrl-C.
        keep_memory: whether the process keeps freed memory, see :mod:`.allocation`.

    Returns:
        The exit status: 0 or what ``command`` returns, 1 after a failure, or 130 after Ctrl-C.
    """
    try:
        prepare_process(keep_memory)
        try:
            status = command()
        finally:
            close_bars()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None:
            _give_up_output()  # or the interpreter prints the error again when it exits
        _print_error(error)
        return 1
    return _finish_output() or status or 0


def prepare_process(keep_memory: bool = True) -> None:
    """Set this process up as :func:`run_command` does, as the first thing in one that it starts."""
    tolerate_any_text()
    if keep_memory:
        keep_freed_memory()
    # Hide PyTorch's warnings about Detectron2's code, which would bury a command's own lines.
    warnings.filterwarnings("ignore", module="torch")
    libraries = r"(detectron2|fvcore|timm|torchvision)(\.|$)"  # PyTorch names its callers
    warnings.filterwarnings("ignore", category=FutureWarning, module=libraries)
    logging.getLogger("torch.fx").setLevel(logging.ERROR)
    # A training continues when its output is closed (| head); log.txt has its lines.
    logging.raiseExceptions = bool(os.environ.get(DEBUG_VARIABLE))


def _print_error(error: Exception) -> None:
    line = _one_line(error)
    if line is None or os.environ.get(DEBUG_VARIABLE):
        _show_traceback(error)
    if line is None:
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, ProcessRaisedException):  # its message is a worker's traceback
            what = _last_line(error)
        line = (
            f"{display_name(what)} - this is a defect of regiondh_d2, not of what you gave it: "
            f"please report the command and the lines above ({_versions()})"
        )
    print(f"error: {line}", file=sys.stderr)


def _show_traceback(error: Exception) -> None:
    lines = "".join(traceback.format_exception(error)).rstrip("\n").split("\n")
    print("\n".join(map(display_name, lines)), file=sys.stderr)


def _last_line(error: Exception) -> str:
    return str(error).rstrip().rsplit("\n", 1)[-1]


def _versions() -> str:
    shown = [f"Python {platform.python_version()}"]
    for package in ("regiondh_d2", "detectron2", "torch"):
        number = getattr(sys.modules.get(package), "__version__", "not imported")
        shown.append(f"{package} {number}")
    return ", ".join(shown)


def _one_line(error: BaseException) -> str | None:
    """The message about an error that a user can cause; None for a defect."""
    text = _told(error)
    return None if text is None else display_name(text) or type(error).__name__


def _told(error: BaseException) -> str | None:
    text = str(error)
    match error:
        case RegionDHError() | CommandError() | FloatingPointError():
            return text
        case ImportError():
            ours = (error.name or "").split(".")[0] == __package__.split(".")[0]
            return None if ours else f"{text}: `regiondh doctor` tells what to install"
        case BrokenPipeError() if error.filename is None:
            return "standard output was closed before the end"
        case MemoryError() | torch.OutOfMemoryError():
            return _no_memory(text)
        case RuntimeError() if found := NO_MEMORY.search(text):
            return _no_memory(text[found.start() :])
        case error if what := shortage(error):
            name = getattr(error, "filename", None)
            return what if name is None else f"{display_name(name)}: {what}"
        case OSError() if error.filename is not None:
            names = (error.filename, error.filename2)
            shown = " to ".join(display_name(x) for x in names if isinstance(x, str | bytes))
            return f"{shown or error.filename}: {error.strerror or text}"
        case OSError() if error.errno in FULL_DISK:
            return error.strerror or text
        case error if isinstance(error, NO_CONNECTION):
            return f"no connection: {text or type(error).__name__}"
    return None


def _no_memory(text: str) -> str:
    """The first sentence is about memory, the others are PyTorch's advice to programmers."""
    first = re.split(r"(?<=\w)[.:] (?=[A-Z])|\n", text.strip())[:2]
    return (
        f"out of memory: {'. '.join(first)}; try fewer images at once (SOLVER.IMS_PER_BATCH, "
        "--batch-size), smaller ones (INPUT.MIN_SIZE_TRAIN, INPUT.MIN_SIZE_TEST), or another device"
    )


def _finish_output() -> int:
    """Flush standard output; return the exit status."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # all work is done, and the reader has seen enough
        _give_up_output()
    except OSError as error:
        _give_up_output()
        print(f"error: standard output: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _give_up_output() -> None:
    """Discard the rest of standard output if it can't be written."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def run_workers(
    worker: Callable[..., object],
    processes: int,
    args: tuple,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """:func:`detectron2.engine.launch`, with a worker's failure as one line.

    Args:
        worker: a function that a new process can import; what it returns is dropped.
        processes: how many on this machine; 1 in all calls ``worker`` in this process.
        args: its arguments.
        num_machines, machine_rank, dist_url: see ``launch``.

    Raises:
        ValueError: there are more processes than CUDA devices.
        CommandError: a worker failed through an error of the user's, or was killed.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else None
    if devices is not None and processes > devices:
        raise RegionDHError(f"--num-gpus {processes}: this machine has {devices} CUDA devices")
    try:
        with _quiet_workers():
            launch(
                _work,
                processes,
                num_machines=num_machines,
                machine_rank=machine_rank,
                dist_url=dist_url,
                args=(worker, args),
                timeout=TIMEOUT,
            )
    except ProcessRaisedException as error:
        last = _last_line(error)
        _, told, line = last.partition(f"{CommandError.__name__}: ")
        if told:
            raise CommandError(line) from None
        if not_connected := NOT_CONNECTED.fullmatch(last):
            raise CommandError(f"--dist-url {dist_url}: {not_connected[1]}") from None
        raise
    except ProcessExitedException as error:
        raise CommandError(str(error)) from None
    finally:
        # After Ctrl-C, which may have reached only this process.
        for child in multiprocessing.active_children():
            child.terminate()


@contextmanager
def _quiet_workers() -> Iterator[None]:
    """Keep PyTorch quiet about Detectron2 in processes that start while the block runs.

    They import Detectron2 first, and not this package, which does that for its own process.
    """
    before = os.environ.get(WARNINGS_VARIABLE)
    os.environ[WARNINGS_VARIABLE] = ",".join(filter(None, (before, QUIET)))
    try:
        yield
    finally:
        if before is None:
            del os.environ[WARNINGS_VARIABLE]
        else:
            os.environ[WARNINGS_VARIABLE] = before


def _work(worker: Callable[..., object], args: tuple) -> None:
    """The parent process sees only the text of an exception."""
    prepare_process()
    try:
        import_user_code()
        worker(*args)
    except Exception as error:
        line = _one_line(error)
        if comm.get_world_size() == 1 or line is None:
            raise
        if os.environ.get(DEBUG_VARIABLE):
            _show_traceback(error)
        raise CommandError(line) from None


def load_trained_model(
    cfg, *, resume: bool = False, build: Callable[..., nn.Module] = build_network
) -> nn.Module:
    """The model of a config with the weights of ``MODEL.WEIGHTS``, in evaluation mode.

    Args:
        cfg: the config.
        resume: take the last checkpoint of ``OUTPUT_DIR`` instead, if there is one.
        build: makes the model of the config.

    Raises:
        WeightsError: no weights are named, the file is missing, or it lacks a tensor of the model,
            which would stay random.
    """
    path = cfg.MODEL.WEIGHTS
    last = resume and has_last_checkpoint(cfg.OUTPUT_DIR)
    if resume and not last:
        logging.getLogger(__name__).warning(
            "--resume: no checkpoint in %s; MODEL.WEIGHTS %s is evaluated", cfg.OUTPUT_DIR, path
        )
    if not path and not last:
        raise WeightsError("MODEL.WEIGHTS is empty: name the checkpoint of a trained model")
    if not last:
        require_weights(path)  # before the model is built
    model = build(cfg)
    checkpointer = RegionDHCheckpointer(model, cfg.OUTPUT_DIR)
    checkpointer.whole = True
    checkpointer.resume_or_load(path, resume=resume)
    return model.eval()
