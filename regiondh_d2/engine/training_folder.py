"""``OUTPUT_DIR``: one training at a time, whose network stays, and a whole ``config.yaml``."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import defaults as detectron2_defaults

from ..checkpoint import has_last_checkpoint
from ..utils.display import display_name
from ..utils.errors import OutputExistsError, RegionDHError
from ..utils.file_io import replace_when_complete
from ..utils.locks import hold_lock
from .training_record import changes_on_resume, phrase

__all__ = ["check_own_training", "config_kept_whole", "training_lock"]

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
    with ExitStack() as stack:
        with suppress(NotImplementedError):  # raised by a file system without locks
            stack.enter_context(hold_lock(Path(folder, _LOCK), folder, wait=_WAIT))
        yield


@contextmanager
def config_kept_whole(path: Path, stays: bool) -> Iterator[None]:
    """Writes the config that Detectron2 writes to a path meanwhile whole or not at all.

    Detectron2 writes into an existing file, through any links, and may leave half of it.

    Args:
        path: of the config.
        stays: whether an existing file stays as it is.
    """
    original = detectron2_defaults.PathManager
    written = io.StringIO()

    class Manager:
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        def open(self, name: str, mode: str = "r", **options: Any) -> Any:
            if os.path.normpath(name) == os.path.normpath(path) and "w" in mode:
                return _Kept(written)
            return original.open(name, mode, **options)

    detectron2_defaults.PathManager = Manager()
    try:
        yield
    finally:
        detectron2_defaults.PathManager = original
    if written.getvalue() and not (stays and path.is_file()):
        with replace_when_complete(path) as temporary:
            temporary.write_text(written.getvalue(), encoding="utf-8")


class _Kept:
    """An open file, whose text stays after it was closed."""

    def __init__(self, text: io.StringIO):
        self._text = text

    def __enter__(self) -> io.StringIO:
        return self._text

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""
