"""Set up `.venv` for regiondh_d2: pinned packages, Detectron2 and this package itself.

Runs on a bare Python, so it uses the standard library alone. `make setup` calls it. Running it
again costs a fraction of a second while nothing changed, because a stamp in the environment
records what it was made from. The stamp goes first and comes last, so an interrupted set-up is
taken up again, never believed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import queue
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIN_PYTHON = (3, 11)

# The registry has no official Detectron2. This wheel is an unofficial republish of its main
# branch. It is tagged for CPython 3.10, but its Python files run on any newer one; the compiled
# part does not, and nothing here needs it (torchvision brings RoIAlign and NMS).
REGISTRY_REQUIREMENT = "sal-detectron2==0.7.2"
REGISTRY_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
REGISTRY_PYTHON = "3.10"
REGISTRY_WORD = "registry"

PACKAGE_EXTRAS = "detectron2-needs,search,demo,weights,heic,dev"
STAMP_NAME = "regiondh-setup.json"
SOURCE_NAME = "regiondh-detectron2.json"
HEARTBEAT_S = 15.0

# Run inside the environment: is there a Detectron2, and does what we build on import? Features
# are tried, versions never compared: two different Detectron2 call themselves 0.6.
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
        value: what identifies it: a folder, a pip requirement, or the pin of the registry's copy.
    """

    kind: str
    value: str = ""

    def describe(self) -> str:
        """Words for the last line of the set-up."""
        return {
            "keep": "found already installed",
            "registry": f"registry copy {REGISTRY_REQUIREMENT}, an unofficial republish",
            "checkout": f"built from {self.value}",
            "python-files": f"Python files of {self.value}",
            "requirement": f"installed from {self.value}",
        }[self.kind]


REGISTRY = Source("registry", f"{REGISTRY_REQUIREMENT} sha256:{REGISTRY_SHA256}")


# ---------------------------------------------------------------------------------------------
# Pure parts
# ---------------------------------------------------------------------------------------------


def parse_source(text: str, build: bool = True) -> Source | None:
    """Read the value of DETECTRON2_SOURCE.

    Args:
        text: the value; empty for no opinion, "registry" for the registry's copy, a folder with
            a checkout, the path of a wheel, or a pip requirement.
        build: whether a checkout is built (True) or its Python files are used as they are.

    Returns:
        The source, or None for no opinion.

    Raises:
        SetupError: if the value names a folder or file that cannot be one.
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
                f"DETECTRON2_SOURCE={text}: no detectron2/__init__.py in this folder; "
                "give the root of a checkout of the official repository"
            )
        return Source("checkout" if build else "python-files", str(path))
    if path.is_file():
        return Source("requirement", str(path.resolve()))
    if text.startswith((".", "~", os.sep)) or ("/" in text and ":" not in text):
        raise SetupError(
            f"DETECTRON2_SOURCE={text}: no such file or folder; give a checkout, a wheel or a "
            "pip requirement, or unset it for the registry's copy"
        )
    return Source("requirement", text)


def choose_source(wanted: Source | None, found: dict, recorded: Source | None) -> Source:
    """Decide which Detectron2 to use.

    An explicit wish wins, or changing DETECTRON2_SOURCE could not switch. Without one, an
    importable Detectron2 is kept, and the registry's copy is the fallback.

    Args:
        wanted: what DETECTRON2_SOURCE asks for; None for no opinion.
        found: the probe's answer (`path`, `version`, `compiled`, `error`).
        recorded: the source this script installed earlier into this environment, if any.

    Returns:
        A source of kind "keep" if nothing is to be done, else what to install.

    Raises:
        SetupError: if a Detectron2 that is not ours to replace is there and does not work.
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
            f"({fix_for(found['error'])}); or use the registry's copy instead: "
            f"DETECTRON2_SOURCE={REGISTRY_WORD} make setup"
        )
    return REGISTRY


def fix_for(error: str | None) -> str:
    """An import error of Detectron2, with its known fix where there is one."""
    error = error or "unknown error"
    fixes = {
        "'LINEAR'": "it is 0.6, too old for this Pillow: use the main branch",
        "'np.bool'": "it is 0.6, too old for this numpy: use the main branch",
        "has no attribute 'bool'": "it is 0.6, too old for this numpy: use the main branch",
        "_C": "its compiled part is missing or made for another PyTorch: rebuild it",
        "pkg_resources": "it needs setuptools below 82: use the main branch",
    }
    fix = next((words for sign, words in fixes.items() if sign in error), None)
    return f"{error}; {fix}" if fix else error


def stamp_key(root: Path, source: str, build: bool, system_site: bool, python: str) -> str:
    """Hash of everything a finished environment depends on.

    Args:
        root: the checkout of this repository.
        source: the value of DETECTRON2_SOURCE.
        build: whether a Detectron2 checkout is built.
        system_site: whether the environment sees the base interpreter's packages.
        python: version and path of the base interpreter.
    """
    digest = hashlib.sha256()
    for name in ("constraints.txt", "setup.py", "tools/setup_env.py"):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    # The root is part of it: a moved checkout has an environment full of old absolute paths.
    facts = [str(root), source.strip(), build, system_site, python]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def registry_line() -> str:
    """The hashed requirement line of the registry's copy."""
    return f"{REGISTRY_REQUIREMENT} --hash=sha256:{REGISTRY_SHA256}\n"


def explain_failure(step: str, output: str, log: Path) -> str:
    """Turn a failed command's output into one line that says what to do."""
    signs = (
        ("DO NOT MATCH THE HASHES", "the download is not the pinned file: do not use it; retry"),
        ("No module named 'torch'", "it was built in isolation: PyTorch must be seen by the build"),
        ("No space left on device", "the disk is full: about 8 GB are needed"),
        ("Temporary failure in name resolution", "the package registry cannot be reached"),
        ("Failed to establish a new connection", "the package registry cannot be reached"),
        ("ResolutionImpossible", "the versions asked for exclude each other"),
        ("No matching distribution found", "no such package for this Python or this system"),
        ("is not a valid editable requirement", "not a pip requirement: check DETECTRON2_SOURCE"),
        ("Invalid requirement", "not a pip requirement: check DETECTRON2_SOURCE"),
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
            "or use a local checkout without building: DETECTRON2_BUILD=0 make setup"
        )
    if fix is None:
        errors = [line for line in lines if "error" in line.lower()]
        fix = (errors or lines or ["no output"])[-1]
    return f"{step} failed: {fix} (all output: {log})"


def without_stray_rows(record: str) -> str:
    """Rows of a wheel's RECORD that stay: those of `detectron2` and its metadata."""
    keep = [row for row in record.splitlines() if is_detectron2(row.split("/")[0])]
    return "".join(f"{row}\n" for row in keep)


def is_detectron2(top: str) -> bool:
    """Whether a top-level name of a staged wheel is Detectron2's own.

    Every Detectron2 wheel also carries a top-level package `tools`, which would shadow ours.
    """
    return top == "detectron2" or (top.endswith(".dist-info") and "detectron2" in top)


def read_json(path: Path) -> dict:
    """A small JSON file of ours; empty if it is absent or torn."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict) -> None:
    """Write beside and rename, so that a reader sees the old file or the new one."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


# ---------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------


def log(text: str) -> None:
    """One line of progress."""
    print(f"[setup] {text}", flush=True)


class Environment:
    """The virtual environment and the commands that are run in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.stamp = folder / STAMP_NAME
        self.source_file = folder / SOURCE_NAME
        self.log = folder / "regiondh-setup.log"

    def run(self, step: str, command: list[str], env: dict | None = None) -> str:
        """Run a command, log its output, and tell every few seconds that it lives.

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
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, **(env or {})},
        )
        lines: queue.Queue[str | None] = queue.Queue()

        def pump() -> None:
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=pump, daemon=True).start()
        began = logged = time.monotonic()
        output: list[str] = []
        try:
            with open(self.log, "a", encoding="utf-8") as log:
                log.write(f"\n# {step}: {' '.join(command)}\n")
                while True:
                    try:
                        line = lines.get(timeout=1.0)
                        if line is None:
                            break
                        output.append(line)
                        log.write(line)
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

    def ensure(self, system_site: bool) -> None:
        """Create the environment, or anew if it is of another Python or half made."""
        config = self.folder / "pyvenv.cfg"
        if self.folder.exists() and not config.is_file() and any(self.folder.iterdir()):
            raise SetupError(
                f"{self.folder} exists and is not a virtual environment: move it away and retry"
            )
        if config.is_file() and self._usable(config, system_site):
            return
        log(f"creating {self.folder.name} with Python {platform.python_version()}")
        command = [sys.executable, "-m", "venv", "--clear", str(self.folder)]
        if system_site:
            command.insert(-1, "--system-site-packages")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            if "ensurepip" in done.stdout + done.stderr:
                raise SetupError(
                    "this Python cannot create virtual environments: install its venv and pip "
                    "parts (on Debian and Ubuntu the package python3-venv)"
                )
            words = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise SetupError(f"creating {self.folder} failed: {words[-1]}")

    def _usable(self, config: Path, system_site: bool) -> bool:
        """Whether an existing environment can be kept."""
        settings = {}
        for line in config.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            settings[name.strip().lower()] = value.strip()
        version = settings.get("version", settings.get("version_info", ""))
        same = version.split(".")[:2] == [str(part) for part in sys.version_info[:2]]
        seen = settings.get("include-system-site-packages", "false").lower() == "true"
        if not same or seen != system_site or not self.python.is_file():
            return False
        done = subprocess.run([str(self.python), "-m", "pip", "--version"], capture_output=True)
        return done.returncode == 0

    def site_packages(self) -> Path:
        """Where the environment keeps pure Python packages."""
        paths = sysconfig.get_paths(
            "nt" if os.name == "nt" else "posix_prefix",
            vars={"base": str(self.folder), "platbase": str(self.folder)},
        )
        return Path(paths["purelib"])

    def probe(self) -> dict:
        """Ask the environment about its Detectron2."""
        # -P keeps the current folder off the path: a folder named detectron2 there is no answer.
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


def stage_detectron2(venv: Environment, source: Source, work: Path) -> Path:
    """Install Detectron2 into a folder of its own, so that a failure leaves the old one alone.

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
        venv.pip(step, *common, *foreign, "--require-hashes", "-r", str(pinned))
        # Made for another Python; left in place, it would only look as if it could be used.
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
        path = os.pathsep.join([str(venv.python.parent), os.environ.get("PATH", "")])
        venv.pip(step, *common, "--no-build-isolation", place, env={"PATH": path})
    if not (staged / "detectron2" / "__init__.py").is_file():
        raise SetupError(f"{step}: it holds no package called detectron2; check DETECTRON2_SOURCE")
    return staged


def adopt_detectron2(venv: Environment, staged: Path) -> None:
    """Replace the environment's Detectron2 by the staged one, and take nothing else over."""
    venv.source_file.unlink(missing_ok=True)
    site = venv.site_packages()
    for name in ("detectron2", "sal-detectron2"):
        venv.pip(f"removing the old {name}", "uninstall", "--yes", name)
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


def settle_detectron2(venv: Environment, wanted: Source | None) -> dict:
    """Find or install Detectron2.

    Returns:
        The probe's answer about the one that is used, with its `source` in words.
    """
    noted = read_json(venv.source_file)
    recorded = Source(noted["kind"], noted["value"]) if {"kind", "value"} <= set(noted) else None
    found = venv.probe()
    choice = choose_source(wanted, found, recorded)
    if choice.kind != "keep":
        log(f"Detectron2: {choice.describe()}")
        with tempfile.TemporaryDirectory(prefix="regiondh-", dir=venv.folder) as work:
            adopt_detectron2(venv, stage_detectron2(venv, choice, Path(work)))
        found = venv.probe()
        if not found["path"] or found["error"]:
            raise SetupError(
                f"Detectron2 ({choice.describe()}) does not import: {fix_for(found['error'])}"
            )
        write_json(venv.source_file, dataclasses.asdict(choice))
        recorded = choice
    return {**found, "source": (recorded or choice).describe()}


def detectron2_line(found: dict) -> str:
    """The one line that says which Detectron2 is used."""
    part = "with" if found["compiled"] else "without"
    return (
        f"Detectron2: {found['source']}; says version {found['version']}; "
        f"{Path(found['path']).parent}; {part} compiled part"
    )


def set_up(arguments: argparse.Namespace) -> None:
    """Bring the environment up to date, or see that it is."""
    source = os.environ.get("DETECTRON2_SOURCE", "")
    build = os.environ.get("DETECTRON2_BUILD", "1") != "0"
    wanted = parse_source(source, build)
    # A relative path means another folder elsewhere, so the key takes what it points to.
    named = wanted.value if wanted else ""
    python = f"{platform.python_version()} {sys.base_prefix}"
    key = stamp_key(ROOT, named, build, arguments.system_site_packages, python)
    venv = Environment(Path(os.path.abspath(arguments.venv)))

    stamp = read_json(venv.stamp)
    there = venv.python.is_file() and Path(stamp.get("path") or venv.folder / "none").is_file()
    if stamp.get("key") == key and there and not arguments.force:
        log(f"up to date; {stamp.get('detectron2', '')}")
        return

    began = time.monotonic()
    venv.stamp.unlink(missing_ok=True)
    venv.ensure(arguments.system_site_packages)
    venv.log.write_text("", encoding="utf-8")
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    # Setuptools first: without build isolation it must be there, and a new environment has none
    # or an old one. Isolation is off because it would fetch it again for every source package.
    log("installing setuptools")
    venv.pip("installing setuptools", "install", *constraints, "setuptools", "wheel")
    log("installing PyTorch and the other pinned packages (about 5 GB on Linux: minutes)")
    package = f"{ROOT}[{PACKAGE_EXTRAS}]"
    editable = ["--no-build-isolation", "--editable", package]
    venv.pip("installing the pinned packages", "install", *constraints, *editable)
    found = settle_detectron2(venv, wanted)
    line = detectron2_line(found)
    write_json(venv.stamp, {"key": key, "detectron2": line, "path": found["path"]})
    log(f"done in {time.monotonic() - began:.0f} s; {line}")


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Create or refresh the virtual environment of regiondh_d2.",
        epilog="DETECTRON2_SOURCE: a local checkout of Detectron2, a wheel, a pip requirement, or "
        "'registry'; unset keeps an importable one and else takes the registry's copy. "
        "DETECTRON2_BUILD=0: use a checkout's Python files without building.",
    )
    parser.add_argument("--venv", default=str(ROOT / ".venv"), help="folder of the environment")
    parser.add_argument(
        "--system-site-packages",
        action="store_true",
        default=os.environ.get("SYSTEM_SITE_PACKAGES") == "1",
        help="let the environment see the base interpreter's packages, its Detectron2 among them "
        "(also SYSTEM_SITE_PACKAGES=1)",
    )
    parser.add_argument("--force", action="store_true", help="do not believe the stamp")
    arguments = parser.parse_args(argv)
    if sys.version_info < MIN_PYTHON:
        needed = ".".join(str(part) for part in MIN_PYTHON)
        print(
            f"setup: Python {platform.python_version()} is too old: {needed} or newer is needed; "
            "name one with `make setup PYTHON=python3.11`",
            file=sys.stderr,
        )
        return 1
    try:
        set_up(arguments)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"setup: {error}; check that the folder can be written", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run `make setup` again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
