"""``OUTPUT_DIR``: one training at a time, whose network and config stay."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import detectron2.engine.defaults
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..checkpoint import has_last_checkpoint
from ..utils.display import display_name
from ..utils.errors import OutputExistsError, RegionDHError
from ..utils.locks import hold_lock
from ..utils.shortage import ShortageError
from ..utils.temporaries import temporary_beside
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
        OSError, ShortageError: it may hold one, which can't be read now.
    """
    if not has_last_checkpoint(cfg.OUTPUT_DIR):
        return
    try:
        changes = changes_on_resume(cfg)
    except ShortageError:
        raise
    except (FileNotFoundError, RegionDHError):  # damaged: there is nothing to lose
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
    """Lets Detectron2's ``default_setup`` write a config in the block, whole or not at all.

    By itself it writes into an existing file, through any links. After a kill or a failure the
    folder would hold half a config, or that of an evaluation instead of that of the training.

    Args:
        path: of the config.
        stays: whether an existing config stays as it is.

    Raises:
        OSError: the config can't be written; an existing one stays.
    """
    stays = stays and path.is_file()
    aside = _Aside(path)
    with _replaced(detectron2.engine.defaults, "PathManager", aside):
        yield
    if aside.text is None:  # not the main process, which alone writes one
        return
    if stays:
        logger.info("%s stays as it is", path)
        return
    temporary = temporary_beside(path)
    try:
        temporary.write_text(aside.text)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


class _Aside:
    """Detectron2's ``PathManager``, but what is written to one path is kept in ``text``."""

    def __init__(self, path: Path):
        self.text: str | None = None
        self._path = os.path.abspath(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(PathManager, name)

    def open(self, path: str, mode: str = "r", **options: Any) -> Any:
        if mode == "w" and os.path.abspath(path) == self._path:
            return self._keep()
        return PathManager.open(path, mode, **options)

    @contextmanager
    def _keep(self) -> Iterator[io.StringIO]:
        text = io.StringIO()
        yield text
        self.text = text.getvalue()


@contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
