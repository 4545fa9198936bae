"""A Python environment, and the commands that run in it while Detectron2 is set up."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

__all__ = ["PROBE", "Environment", "SetupError", "log", "read_json", "write_json"]

SOURCE_NAME = "regiondh-detectron2.json"
LOG_NAME = "regiondh-setup.log"
LOCK_NAME = "regiondh-setup.lock"
WORK_PREFIX = "regiondh-setup-work-"
HEARTBEAT_S = 15.0

# Run inside the environment: is there a Detectron2, and can the parts that we need be imported?
# Versions are not compared, since two different Detectron2 call themselves 0.6.
PROBE = r"""
import importlib, importlib.util, json, sys, warnings
from importlib import metadata
warnings.simplefilter("ignore")
found = {"path": None, "version": None, "compiled": False, "error": None}
spec = importlib.util.find_spec("detectron2")
if spec is not None and spec.origin is not None:
    found["path"] = spec.origin
    try:
        for part in ("config", "layers", "modeling", "data", "engine", "evaluation", "checkpoint"):
            importlib.import_module("detectron2." + part)
        found["version"] = getattr(sys.modules["detectron2"], "__version__", "unknown")
    except BaseException as exc:
        found["error"] = type(exc).__name__ + ": " + (str(exc).strip().splitlines() or [""])[0]
    try:
        importlib.import_module("detectron2._C")
        found["compiled"] = True
    except BaseException:
        pass
print(json.dumps(found))
"""


class SetupError(Exception):
    """A failed step, logged in one line that says what to do."""


def explain_failure(step: str, output: str, log: Path) -> str:
    """Turn a failed command's output into one line that says what to do."""
    signs = (
        ("DO NOT MATCH THE HASHES", "the download is not the pinned file: do not use it; retry"),
        ("No module named 'torch'", "it was built in isolation: PyTorch must be seen by the build"),
        (
            "externally-managed-environment",
            "the system manages this Python: use a virtual environment",
        ),
        ("No module named pip", "this environment has no pip: `python -m ensurepip` installs it"),
        ("No space left on device", "the disk is full: about 8 GB are needed"),
        ("Temporary failure in name resolution", "the package registry cannot be reached"),
        ("Failed to establish a new connection", "the package registry cannot be reached"),
        ("ResolutionImpossible", "the versions asked for exclude each other"),
        ("No matching distribution found", "no such package for this Python or this system"),
        ("is not a valid editable requirement", "not a pip requirement: check the source"),
        ("Invalid requirement", "not a pip requirement: check the source"),
        ("Could not find a tag or branch", "no such branch, tag or commit"),
        ("git clone", "git could not fetch the repository: give a local checkout instead"),
        ("Cannot find command 'git'", "git is not installed"),
    )
    compiler = (
        "error: command ",
        "No such file or directory: 'g++'",
        "No such file or directory: 'c++'",
        "ninja: build stopped",
        "Error compiling objects",
        "which: no ",
        "not found: 'which'",
    )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    fix = next((words for sign, words in signs if sign in output), None)
    if fix is None and step.startswith("Detectron2") and any(s in output for s in compiler):
        fix = (
            "its compiled part could not be built: install a C++ compiler and the Python headers, "
            "or use a local checkout without building: `regiondh setup-detectron2 --no-build "
            "CHECKOUT` (or DETECTRON2_BUILD=0)"
        )
    if fix is None:
        errors = [line for line in lines if "error" in line.lower()]
        fix = (errors or lines or ["no output"])[-1]
    return f"{step} failed: {fix} (all output: {log})"


def read_json(path: Path) -> dict:
    """A small JSON file of ours; empty if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict) -> None:
    """Write a new file and rename it, so that a reader sees either the old or the new one."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


def log(text: str) -> None:
    """One line of progress."""
    print(f"[setup] {text}", flush=True)


class Environment:
    """A Python environment, and the commands that run in it.

    Attributes:
        folder: where it is, and where its log and the note about its Detectron2 go.
        python: its interpreter.
        packages: where it keeps pure Python packages.
    """

    def __init__(self, folder: Path, python: Path, packages: Path):
        self.folder = folder
        self.python = python
        self.packages = packages
        self.source_file = folder / SOURCE_NAME
        self.log = folder / LOG_NAME

    @classmethod
    def current(cls) -> Environment:
        """The environment of this process."""
        return cls(Path(sys.prefix), Path(sys.executable), Path(sysconfig.get_path("purelib")))

    def run(self, step: str, command: list[str], env: dict | None = None) -> str:
        """Run a command, log its output, and print a line of progress every few seconds.

        Args:
            step: what the command does, for the progress and error lines.
            command: the command line.
            env: variables to set on top of the present ones.

        Returns:
            The output.

        Raises:
            SetupError: if it fails.
        """
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **(env or {})},
        )
        lines: queue.Queue[str | None] = queue.Queue()
        pipe = process.stdout
        assert pipe is not None  # Popen was told to make one

        def pump() -> None:
            for line in pipe:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=pump, daemon=True).start()
        began = logged = time.monotonic()
        output: list[str] = []
        try:
            with open(self.log, "a", encoding="utf-8") as record:
                record.write(f"\n# {step}: {' '.join(command)}\n")
                while True:
                    try:
                        line = lines.get(timeout=1.0)
                        if line is None:
                            break
                        output.append(line)
                        record.write(line)
                    except queue.Empty:
                        pass
                    now = time.monotonic()
                    if now - logged >= HEARTBEAT_S:
                        logged = now
                        last = output[-1].strip()[:80] if output else ""
                        log(f"    {now - began:.0f} s: {last}")
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        if code != 0:
            raise SetupError(explain_failure(step, "".join(output), self.log))
        return "".join(output)

    def pip(self, step: str, *arguments: str, env: dict | None = None) -> str:
        """Run the environment's pip."""
        options = ["--disable-pip-version-check", "--no-input"]
        command = [str(self.python), "-m", "pip", arguments[0], *options, *arguments[1:]]
        return self.run(step, command, env)

    def probe(self, first: Path | None = None) -> dict:
        """Ask the environment about its Detectron2.

        Args:
            first: a folder of packages that come before the environment's.

        Raises:
            SetupError: the import ends the process.
        """
        # -P keeps the current folder off the path: it may hold a folder named detectron2.
        command = [str(self.python), "-P", "-c", PROBE]
        env = None
        if first is not None:
            path = [str(first), os.environ.get("PYTHONPATH", "")]
            env = {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        output = self.run("looking for Detectron2", command, env)
        return json.loads([line for line in output.splitlines() if line.startswith("{")][-1])

    @contextmanager
    def work_folder(self) -> Iterator[Path]:
        """Yields an empty folder in the environment, for one process at a time.

        What a killed process left of such a folder is removed.

        Raises:
            SetupError: another process has one.
        """
        with open(self.folder / LOCK_NAME, "w", encoding="utf-8") as lock:
            if fcntl is not None:  # on Windows there is no such lock
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise SetupError(
                        f"{self.folder}: another process installs Detectron2 here; wait until it "
                        "ends"
                    ) from None
                for left in self.folder.glob(f"{WORK_PREFIX}*/"):
                    shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=self.folder) as work:
                yield Path(work)
