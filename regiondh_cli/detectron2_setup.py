"""Finds and installs Detectron2.

Detectron2 has no official release on the package registry, so it is no requirement of this package:
``regiondh setup-detectron2`` installs it into the environment that runs it, ``make setup`` into
``.venv``. Both use this module, which needs only the standard library.
"""

from __future__ import annotations

import dataclasses
import importlib.util
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
from pathlib import Path

from .requirements import missing, requirements

__all__ = [
    "Environment",
    "SetupError",
    "Source",
    "choose_source",
    "detectron2_line",
    "explain_import_error",
    "install_needs",
    "log",
    "parse_source",
    "read_json",
    "recorded_source",
    "settle_detectron2",
    "write_json",
]

# This wheel is an unofficial republish of Detectron2's main branch. It is tagged for CPython 3.10,
# but its Python files run on any newer one; the compiled part does not, and nothing here needs it
# (torchvision brings RoIAlign and NMS).
REGISTRY_REQUIREMENT = "sal-detectron2==0.7.2"
REGISTRY_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
REGISTRY_PYTHON = "3.10"
REGISTRY_WORD = "registry"

SOURCE_NAME = "regiondh-detectron2.json"
LOG_NAME = "regiondh-setup.log"
HEARTBEAT_S = 15.0
NEEDS = "detectron2-needs"  # the extra of this package with what Detectron2's Python files import

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


@dataclasses.dataclass(frozen=True)
class Source:
    """Where Detectron2 comes from.

    Attributes:
        kind: "keep", "registry", "checkout", "python-files" (a checkout without building) or
            "requirement".
        value: a folder, a pip requirement, or the pin of the registry's copy.
    """

    kind: str
    value: str = ""

    def describe(self) -> str:
        """Where it comes from, in words."""
        return {
            "keep": "found already installed",
            "registry": f"registry copy {REGISTRY_REQUIREMENT}, an unofficial republish",
            "checkout": f"built from {self.value}",
            "python-files": f"Python files of {self.value}",
            "requirement": f"installed from {self.value}",
        }[self.kind]


REGISTRY = Source("registry", f"{REGISTRY_REQUIREMENT} sha256:{REGISTRY_SHA256}")


def parse_source(text: str, build: bool = True) -> Source | None:
    """Parse the source of Detectron2 that a user named.

    Args:
        text: SOURCE of ``regiondh setup-detectron2``, or the value of DETECTRON2_SOURCE; empty for
            none, "registry" for the registry's copy, a folder with a checkout, the path of a wheel,
            or a pip requirement.
        build: whether a checkout is built (True) or its Python files are used as they are.

    Returns:
        The source, or None if none was named.

    Raises:
        SetupError: the value names a file or folder that can't be a source.
    """
    text = text.strip()
    if not text:
        return None
    if text == REGISTRY_WORD:
        return REGISTRY
    path = Path(text).expanduser()
    if path.is_dir():
        path = path.resolve()
        if not (path / "detectron2" / "__init__.py").is_file():
            raise SetupError(
                f"{text}: no detectron2/__init__.py in this folder; "
                "give the root of a checkout of the official repository"
            )
        return Source("checkout" if build else "python-files", str(path))
    if path.is_file():
        return Source("requirement", str(path.resolve()))
    if text.startswith((".", "~", os.sep)) or ("/" in text and ":" not in text):
        raise SetupError(
            f"{text}: no such file or folder; name a checkout of Detectron2, a wheel or a pip "
            "requirement, or nothing for the registry's copy"
        )
    return Source("requirement", text)


def choose_source(wanted: Source | None, found: dict, recorded: Source | None) -> Source:
    """Decide which Detectron2 to use.

    A named source wins, so that users can switch. Without one, an importable Detectron2 is kept,
    and the registry's copy is the fallback.

    Args:
        wanted: the source that the user named, or None.
        found: the probe's answer (`path`, `version`, `compiled`, `error`).
        recorded: the source this script installed earlier into this environment, if any.

    Returns:
        A source of kind "keep" if there is nothing to do, else the source to install.

    Raises:
        SetupError: there is a Detectron2 that doesn't work, and we didn't install it.
    """
    works = bool(found.get("path")) and not found.get("error")
    if wanted is not None:
        return Source("keep") if works and recorded == wanted else wanted
    if works:
        outdated = recorded is not None and recorded.kind == "registry" and recorded != REGISTRY
        return REGISTRY if outdated else Source("keep")
    if found.get("path") and recorded is None:
        raise SetupError(
            f"the Detectron2 at {Path(found['path']).parent} does not import "
            f"({explain_import_error(found['error'])}); or use the registry's copy instead: "
            f"`regiondh setup-detectron2 {REGISTRY_WORD}` (or `DETECTRON2_SOURCE={REGISTRY_WORD} "
            "make setup`)"
        )
    return REGISTRY


def explain_import_error(error: str | None) -> str:
    """An import error of Detectron2, with its fix if known."""
    error = error or "unknown error"
    fixes = {
        "'LINEAR'": "it is 0.6, too old for this Pillow: use the main branch",
        "'np.bool'": "it is 0.6, too old for this numpy: use the main branch",
        "has no attribute 'bool'": "it is 0.6, too old for this numpy: use the main branch",
        "_C": "its compiled part is missing or made for another PyTorch: rebuild it",
        "pkg_resources": "it needs setuptools below 82: use the main branch",
        "No module named 'torch'": "it needs PyTorch: `pip install torch torchvision`",
    }
    fix = next((words for sign, words in fixes.items() if sign in error), None)
    return f"{error}; {fix}" if fix else error


def registry_line() -> str:
    """The line of a requirements file for the registry's copy, with its hash."""
    return f"{REGISTRY_REQUIREMENT} --hash=sha256:{REGISTRY_SHA256}\n"


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


def without_stray_rows(record: str) -> str:
    """The rows of a wheel's RECORD to keep: those of `detectron2` and its metadata."""
    keep = [row for row in record.splitlines() if is_detectron2(row.split("/")[0])]
    return "".join(f"{row}\n" for row in keep)


def is_detectron2(top: str) -> bool:
    """Whether a top-level name of a staged wheel is Detectron2's own.

    Every Detectron2 wheel also carries a top-level package `tools`, which would shadow ours.
    """
    return top == "detectron2" or (top.endswith(".dist-info") and "detectron2" in top)


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

    def probe(self) -> dict:
        """Ask the environment about its Detectron2."""
        # -P keeps the current folder off the path: it may hold a folder named detectron2.
        command = [str(self.python), "-P", "-c", PROBE]
        output = self.run("looking for Detectron2", command)
        return json.loads([line for line in output.splitlines() if line.startswith("{")][-1])


def copy_checkout(checkout: Path, target: Path) -> Path:
    """Copy a checkout without its history: a build writes into the folder it builds."""
    return Path(
        shutil.copytree(
            checkout,
            target,
            symlinks=True,
            ignore=shutil.ignore_patterns(".git", "build", "__pycache__", "*.egg-info", ".venv"),
        )
    )


def stage_detectron2(environment: Environment, source: Source, work: Path) -> Path:
    """Install Detectron2 into a separate folder, so that a failure doesn't affect the old one.

    Returns:
        The folder, holding `detectron2` and perhaps its metadata.
    """
    staged = work / "staged"
    step = "Detectron2 from " + ("the registry" if source.kind == "registry" else source.value)
    common = ["install", "--no-deps", "--target", str(staged)]
    if source.kind == "registry":
        pinned = work / "detectron2.txt"
        pinned.write_text(registry_line(), encoding="utf-8")
        foreign = ["--python-version", REGISTRY_PYTHON, "--only-binary=:all:", "--no-compile"]
        environment.pip(step, *common, *foreign, "--require-hashes", "-r", str(pinned))
        # Remove it, since it was compiled for another Python.
        for compiled in (staged / "detectron2").glob("_C.*"):
            compiled.unlink()
    elif source.kind == "python-files":
        shutil.copytree(
            Path(source.value) / "detectron2",
            staged / "detectron2",
            ignore=shutil.ignore_patterns("csrc", "configs", "__pycache__", "_C.*"),
        )
    else:
        # The build imports torch, so it must see this environment.
        place = source.value
        if source.kind == "checkout":
            place = str(copy_checkout(Path(source.value), work / "checkout"))
        path = os.pathsep.join([str(environment.python.parent), os.environ.get("PATH", "")])
        environment.pip(step, *common, "--no-build-isolation", place, env={"PATH": path})
    if not (staged / "detectron2" / "__init__.py").is_file():
        raise SetupError(f"{step}: it holds no package called detectron2; name another source")
    return staged


def adopt_detectron2(environment: Environment, staged: Path) -> None:
    """Replace the environment's Detectron2 by the staged one, and copy nothing else."""
    environment.source_file.unlink(missing_ok=True)
    site = environment.packages
    for name in ("detectron2", "sal-detectron2"):
        environment.pip(f"removing the old {name}", "uninstall", "--yes", name)
    leftovers = [site / "detectron2", *site.glob("*detectron2-*.dist-info")]
    for old in leftovers:
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    for new in staged.iterdir():
        if not is_detectron2(new.name):
            continue
        record = new / "RECORD"
        if record.is_file():
            kept = without_stray_rows(record.read_text(encoding="utf-8"))
            record.write_text(kept, encoding="utf-8")
        shutil.move(str(new), str(site / new.name))


def recorded_source(environment: Environment) -> Source | None:
    """The source that we installed into an environment, or None."""
    noted = read_json(environment.source_file)
    return Source(noted["kind"], noted["value"]) if {"kind", "value"} <= set(noted) else None


def settle_detectron2(environment: Environment, wanted: Source | None) -> dict:
    """Find or install Detectron2.

    Returns:
        The probe's answer about the Detectron2 in use, with its `source` in words.
    """
    recorded = recorded_source(environment)
    found = environment.probe()
    choice = choose_source(wanted, found, recorded)
    if choice.kind != "keep":
        log(f"Detectron2: {choice.describe()}")
        with tempfile.TemporaryDirectory(prefix="regiondh-", dir=environment.folder) as work:
            adopt_detectron2(environment, stage_detectron2(environment, choice, Path(work)))
        found = environment.probe()
        if not found["path"] or found["error"]:
            reason = explain_import_error(found["error"])
            raise SetupError(f"Detectron2 ({choice.describe()}) does not import: {reason}")
        write_json(environment.source_file, dataclasses.asdict(choice))
        recorded = choice
    return {**found, "source": (recorded or choice).describe()}


def install_needs(environment: Environment) -> None:
    """Install the missing packages that Detectron2's Python files import.

    Detectron2 itself is installed without its own requirements, since some of its pins are
    outdated.
    """
    wanted = [x for x in requirements() or () if x.extra == NEEDS]
    lacking = missing(wanted)
    if importlib.util.find_spec("cv2"):  # several packages provide it
        lacking = [x for x in lacking if not x.name.startswith("opencv")]
    if lacking:
        log(f"installing what Detectron2 imports: {', '.join(x.name for x in lacking)}")
        environment.pip("installing what Detectron2 imports", "install", *map(str, lacking))


def detectron2_line(found: dict) -> str:
    """A line about the Detectron2 in use."""
    part = "with" if found["compiled"] else "without"
    return (
        f"Detectron2: {found['source']}; says version {found['version']}; "
        f"{Path(found['path']).parent}; {part} compiled part"
    )
