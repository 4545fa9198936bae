"""What the command lines share: arguments, errors as one line, processes, trained weights."""

import argparse
import logging
import multiprocessing
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta

import torch
import yaml
from detectron2.engine import launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from ..checkpoint import RegionDHCheckpointer, WeightsError, tensors_not_loaded
from ..retrieval.search import RERANKINGS
from ..utils.errors import RegionDHError
from .allocation import keep_freed_memory

__all__ = [
    "CommandError",
    "add_overwrite_option",
    "add_rerank_options",
    "add_root_option",
    "check_rerank_options",
    "load_trained_model",
    "positive_int",
    "run_command",
    "run_workers",
]

# What users and their files cause; anything else is a defect of ours and shows its traceback.
# FloatingPointError is Detectron2's word for a training that has diverged.
EXPECTED = (ValueError, KeyError, OSError, ImportError, FloatingPointError, yaml.YAMLError)

# A process waits for the others at the end, and one may have much more to do.
TIMEOUT = timedelta(days=30)


class CommandError(Exception):
    """A failure that is told already, in one line."""


def positive_int(text: str) -> int:
    """An argument type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return value


def add_overwrite_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``, which goes to :func:`.utils.file_io.check_output_file`."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace existing files that this program did not write; what the command reads "
        "is never replaced",
    )


def add_root_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--root OLD=NEW``, a list for :func:`.retrieval.index_folder.move_roots`."""
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="the folder OLD of photos stands at NEW now; repeatable",
    )


def add_rerank_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--rerank N`` and ``--rerank-by``, one of :data:`.retrieval.search.RERANKINGS`.

    :func:`check_rerank_options` looks at what was given.
    """
    parser.add_argument(
        "--rerank",
        type=positive_int,
        metavar="N",
        help="order the N nearest images of a query anew, by a distance finer than that of codes",
    )
    parser.add_argument(
        "--rerank-by",
        choices=RERANKINGS,
        help="with --rerank: by the distance of the query's activations to the images' codes, or "
        "by that of features, which few models have (ImageHash); code files hold them if they were "
        f"extracted with --activations or --features (default: {RERANKINGS[0]})",
    )


def check_rerank_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with status 2 where ``--rerank-by`` lacks ``--rerank``; set its default, in place."""
    if args.rerank_by and args.rerank is None:
        parser.error("--rerank-by is of a second stage: give --rerank N, too")
    args.rerank_by = args.rerank_by or RERANKINGS[0]


def run_command(
    command: Callable[[], None], interrupted: str = "interrupted", keep_memory: bool = True
) -> int:
    """Run a command and tell its failure in one line on standard error.

    Args:
        command: the work of the command line.
        interrupted: the line for Ctrl-C.
        keep_memory: whether the process keeps what it frees, see :mod:`.allocation`.

    Returns:
        The exit status: 0, 1 after a failure, or 130 after Ctrl-C.
    """
    _prepare_process(keep_memory)
    try:
        command()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except (CommandError, *EXPECTED) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _prepare_process(keep_memory: bool = True) -> None:
    if keep_memory:
        keep_freed_memory()
    # PyTorch's remarks on Detectron2's code would drown the few lines of a command.
    warnings.filterwarnings("ignore", module="torch")
    logging.getLogger("torch.fx").setLevel(logging.ERROR)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # its str() is in quotes
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__


def run_workers(
    worker: Callable[..., None],
    processes: int,
    args: tuple,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """:func:`detectron2.engine.launch`, with a worker's failure as one line.

    Args:
        worker: a function that a new process can import.
        processes: how many on this machine; 1 in all calls ``worker`` in this process.
        args: its arguments.
        num_machines, machine_rank, dist_url: see ``launch``.

    Raises:
        ValueError: there are more processes than CUDA devices.
        CommandError: a worker failed as users can make it fail, or was killed.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else None
    if devices is not None and processes > devices:
        raise RegionDHError(f"--num-gpus {processes}: this machine has {devices} CUDA devices")
    try:
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
        last = str(error).rstrip().rsplit("\n", 1)[-1]
        _, found, line = last.partition(f"{CommandError.__name__}: ")
        if not found:
            raise
        raise CommandError(line) from None
    except ProcessExitedException as error:
        raise CommandError(str(error)) from None
    finally:
        # After Ctrl-C, which may have reached this process alone.
        for child in multiprocessing.active_children():
            child.terminate()


def _work(worker: Callable[..., None], args: tuple) -> None:
    """The parent process sees of an exception only its text."""
    _prepare_process()
    try:
        worker(*args)
    except EXPECTED as error:
        if comm.get_world_size() == 1:
            raise
        raise CommandError(_one_line(error)) from None


def load_trained_model(cfg) -> nn.Module:
    """The model of a config with the weights of ``MODEL.WEIGHTS``, in evaluation mode.

    Raises:
        WeightsError: no weights are named, there are none, or they lack a tensor of the model, so
            that a part of it would stay random.
    """
    path = cfg.MODEL.WEIGHTS
    if not path:
        raise WeightsError("MODEL.WEIGHTS is empty: name the checkpoint of a trained model")
    if not PathManager.isfile(PathManager.get_local_path(path)):
        raise WeightsError(f"{path}: no such file; name a trained model as MODEL.WEIGHTS")
    model = build_model(cfg)
    _WholeModelCheckpointer(model).load(path)
    return model.eval()


class _WholeModelCheckpointer(RegionDHCheckpointer):
    """A :class:`RegionDHCheckpointer` for which any part that isn't loaded is an error."""

    def _load_model(self, checkpoint):
        incompatible = super()._load_model(checkpoint)
        wrong = tensors_not_loaded(incompatible)
        if wrong:
            raise WeightsError(
                f"MODEL.WEIGHTS lacks {len(wrong)} tensors of the model or has them in another "
                f"shape (first: {wrong[0]}): name the checkpoint of a trained model, and its config"
            )
        return incompatible
