"""The output of an extraction while it is written: the folder of its parts.

A part is a small code file. Every file in the folder is complete, so that a killed run loses only
the codes that are in no part yet.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..structures.codes import CodeSet
from ..utils.display import display_name
from ..utils.errors import OutputExistsError
from ..utils.file_io import replace_when_complete
from ..utils.locks import hold_lock
from .code_store import write_codes

__all__ = ["Parts", "check_output", "parts_folder"]


def check_output(output: str | os.PathLike, resume: bool) -> None:
    """Check that no earlier run wrote the output or a part of it.

    Raises:
        OutputExistsError: the output, or an unfinished one, is there; or it is a folder.
    """
    output = Path(output)
    name, parts = display_name(output), parts_folder(output)
    if output.is_dir():
        raise OutputExistsError(f"{name} is a folder: name a file to write")
    if resume:
        return
    if output.exists():
        raise OutputExistsError(f"{name} exists: add to it with --resume, or delete it")
    if any(parts.glob("part-*.h5")):
        raise OutputExistsError(
            f"{display_name(parts)} holds an unfinished extraction: go on with --resume, or delete "
            "it"
        )


def parts_folder(output: str | os.PathLike) -> Path:
    """The folder of an unfinished output's parts; for a link, beside the file to which it leads."""
    real = Path(os.path.realpath(output))
    return real.with_name(f"{real.name}.parts")


class Parts:
    """The parts in a folder, see :func:`parts_folder`.

    Attributes:
        folder: where they are.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def lock(self, output: Path) -> Iterator[None]:
        """Lock the folder against a second run, and delete it at the end if it holds no part.

        If the process is killed, the system releases the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.folder / "lock", output):
            try:
                yield
            finally:
                if not self.paths():
                    self._leave()

    def paths(self) -> list[Path]:
        """The parts, by name."""
        return sorted(self.folder.glob("part-*.h5"))

    def add(self, code_set: CodeSet) -> None:
        """Write codes as a new part."""
        write_codes(self.folder / f"part-{uuid.uuid4().hex}.h5", code_set)

    def keep_old(self, output: Path) -> None:
        """Keep a copy of an output of an older version as ``.bak`` until :meth:`finalize`.

        An existing file of that name stays.
        """
        backup = _backup(output)
        if not os.path.lexists(backup):
            with replace_when_complete(backup) as temporary:
                shutil.copy2(output, temporary)

    def finalize(self, output: Path, code_set: CodeSet) -> None:
        """Replace the output; the parts aren't needed after this."""
        backup = _backup(output)
        is_ours = output.exists() and backup.is_file() and filecmp.cmp(backup, output, False)
        # In this folder, so that a killed run leaves nothing elsewhere.
        merged = self.folder / "merged.h5"
        write_codes(merged, code_set)
        os.replace(merged, os.path.realpath(output))
        if is_ours:
            backup.unlink()

    def remove(self) -> None:
        """Delete all parts."""
        for path in self.paths():
            path.unlink()

    def _leave(self) -> None:
        """Remove the folder with its parts; it stays if it holds anything else."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.name == "lock" or path.name.lstrip(".").startswith(("part-", "merged.h5")):
                    path.unlink()
            self.folder.rmdir()


def _backup(output: Path) -> Path:
    return output.with_name(f"{output.name}.bak")
