"""Adds folders of photos to the index that is served: only below roots that were named at start.

The work is done by two subcommands in a process of their own, extract-codes and build-index. The
index is replaced when it is complete; until then requests see the old one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from ..data.photo_files import is_below
from ..retrieval.code_store import read_codes
from ..retrieval.index_folder import IndexFolder
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from .lanes import BusyError

__all__ = ["FolderAdder"]

_MOST_FOLDERS = 500  # that are offered below a root


class FolderAdder:
    """Adds one folder at a time.

    Attributes:
        roots: real paths of the folders that may be added, with what is below them.
    """

    def __init__(
        self,
        roots: Sequence[str | os.PathLike],
        folder: IndexFolder,
        config: str,
        opts: Sequence[str] = (),
    ):
        """
        Args:
            roots: see above; none allows nothing.
            folder: the index, whose code file will grow.
            config, opts: of the network that encodes the photos, as for ``extract-codes``.

        Raises:
            RegionDHError: a root is no folder, the network is unknown, or the code file of the
                index has gone or lacks photos of the index, which would get lost.
        """
        self.roots = [os.path.realpath(root) for root in roots]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._state: dict[str, Any] = {"state": "idle", "line": ""}
        if not roots:
            return
        for root in self.roots:
            if not os.path.isdir(root):
                raise RegionDHError(f"--add-below {display_name(root)}: there is no such folder")
        if not config:
            raise RegionDHError("--add-below: name the network of the index with --config-file")
        codes = str(folder.record.get("source") or "")
        if not os.path.isfile(codes):
            raise RegionDHError(
                f"--add-below: the index was built from {display_name(codes or 'no code file')}, "
                "which isn't there any more: it can't grow; leave --add-below out"
            )
        if not set(folder.items.file_names) <= set(read_codes(codes).file_names):
            raise RegionDHError(
                f"--add-below: {display_name(codes)} lacks photos of the index, which would get "
                "lost; build the index from it again"
            )
        if folder.record.get("options"):
            raise RegionDHError(
                "--add-below: an approximate index is built by hand; leave --add-below out"
            )
        engine = str(folder.record["engine"])
        self._encode = ["extract-codes", "--config-file", config, "--resume", "--skip-bad"]
        self._encode += ["--output", codes, "--input"]
        self._opts = list(opts)
        self._build = ["build-index", codes, "--output", str(folder.path), "--engine", engine]

    def folders(self) -> list[dict[str, Any]]:
        """The folders that can be added: the roots, and those directly in them."""
        found: list[dict[str, Any]] = []
        for number, root in enumerate(self.roots):
            name = os.path.basename(root)
            found.append({"root": number, "path": "", "name": name})
            with os.scandir(root) as entries:
                names = sorted(
                    entry.name
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
                )
            found += [
                {"root": number, "path": one, "name": f"{name}/{one}"}
                for one in names[:_MOST_FOLDERS]
            ]
        return found

    def state(self) -> dict[str, Any]:
        """``state``: "idle", "running", "done" or "failed"; ``line``, the last one of progress."""
        with self._lock:
            return dict(self._state)

    def start(self, root: int, path: str) -> None:
        """Begin to add a folder.

        Args:
            root: its number in ``roots``.
            path: below it; "" for all of it.

        Raises:
            RegionDHError: there is no such folder below a root.
            BusyError: another one is being added.
        """
        folder = self._check(root, path)
        with self._lock:
            if self._state["state"] == "running":
                raise BusyError
            self._state = {"state": "running", "line": ""}
        threading.Thread(target=self._run, args=(folder,), daemon=True).start()

    def close(self) -> None:
        """End the work; the next run of it goes on from there."""
        with self._lock:
            process = self._process
        if process is not None:
            process.terminate()

    def _check(self, root: int, path: str) -> str:
        if not 0 <= root < len(self.roots):
            raise RegionDHError("root: there is no such folder to add")
        if "\0" in path or os.path.isabs(path):
            raise RegionDHError("path: give a folder below the root")
        folder = os.path.realpath(os.path.join(self.roots[root], path))
        if folder != self.roots[root] and not is_below(folder, self.roots[root]):
            raise RegionDHError("path: give a folder below the root")
        if not os.path.isdir(folder):
            raise RegionDHError("path: there is no such folder")
        return folder

    def _run(self, folder: str) -> None:
        state = "failed"
        try:
            if self._step([*self._encode, folder, *self._opts]) and self._step(self._build):
                state = "done"
        finally:
            with self._lock:
                self._state["state"] = state
                self._process = None

    def _step(self, words: list[str]) -> bool:
        """Run a subcommand; whether it succeeded."""
        command = [sys.executable, "-m", "regiondh_cli", *words]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            with self._lock:
                self._process = process
            assert process.stdout is not None
            for line in process.stdout:
                with self._lock:
                    self._state["line"] = line.strip()[:300]
        return process.returncode == 0
