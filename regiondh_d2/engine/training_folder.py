"""``OUTPUT_DIR``: one training at a time, whose network and config stay."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..checkpoint import has_last_checkpoint
from ..utils.display import display_name
from ..utils.errors import OutputExistsError, RegionDHError
from ..utils.locks import hold_lock
from .training_record import changes_on_resume, phrase

__all__ = ["check_own_training", "config_kept", "training_lock"]

logger = logging.getLogger(__name__)

_LOCK = ".lock"
# Workers that read images outlive a killed training by some seconds, and hold its lock.
_WAIT = 10.0


def check_own_training(cfg: CfgNode) -> None:
    """Check that a training that starts anew replaces no network that was trained otherwise.

    Raises:
        OutputExistsError: ``OUTPUT_DIR`` holds such a network.
    """
    if not has_last_checkpoint(cfg.OUTPUT_DIR):
        return
    try:
        changes = changes_on_resume(cfg)
    except (OSError, RegionDHError):  # damaged: there is nothing to lose
        return
    if changes:
        name = display_name(cfg.OUTPUT_DIR)
        raise OutputExistsError(
            f"OUTPUT_DIR {name} holds the network of another training, with {phrase(changes)}: "
            "name another OUTPUT_DIR, go on with that network by --resume, or delete "
            f"{display_name(os.path.join(cfg.OUTPUT_DIR, 'last_checkpoint'))} to replace it"
        )


@contextmanager
def training_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other trainings out of a folder meanwhile.

    Raises:
        FileInUseError: another training writes there.
    """
    with hold_lock(Path(folder, _LOCK), folder, wait=_WAIT):
        yield


@contextmanager
def config_kept(path: Path, stays: bool) -> Iterator[None]:
    """Keeps an existing config while Detectron2 writes another one in its place.

    Args:
        path: of the config.
        stays: whether the existing one stays in the end; it stays in any case if the block fails,
            for instance because the disk is full.
    """
    if not path.is_file() or not comm.is_main_process():  # which alone writes one
        yield
        return
    # Move the file away, since Detectron2 writes into an existing file, through any links.
    kept = path.with_name(f".{path.name}.{os.getpid()}.kept")
    os.rename(path, kept)
    try:
        shutil.copyfile(kept, path)
        yield
    except BaseException:
        os.replace(kept, path)
        raise
    if stays:
        os.replace(kept, path)
        logger.info("%s stays as it is", path)
    else:
        kept.unlink()
