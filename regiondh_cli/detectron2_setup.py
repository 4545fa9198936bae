"""Finds and installs Detectron2.

Detectron2 has no official release on the package registry, so it is no requirement of this package:
``regiondh setup-detectron2`` installs it into the environment that runs it, ``make setup`` into
``.venv``. Both use this module, which needs only the standard library.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
from pathlib import Path

from .environment import Environment, SetupError, log, read_json, write_json
from .requirements import missing, requirements

__all__ = [
    "Source",
    "choose_source",
    "detectron2_line",
    "explain_import_error",
    "install_needs",
    "parse_source",
    "recorded_source",
    "settle_detectron2",
]

# This wheel is an unofficial republish of Detectron2's main branch. It is tagged for CPython 3.10,
# but its Python files run on any newer one; the compiled part does not, and nothing here needs it
# (torchvision brings RoIAlign and NMS).
REGISTRY_REQUIREMENT = "sal-detectron2==0.7.2"
REGISTRY_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
REGISTRY_PYTHON = "3.10"
REGISTRY_WORD = "registry"

NEEDS = "detectron2-needs"  # the extra of this package with what Detectron2's Python files import


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
    if text.startswith((".", "~", os.sep, "-")) or ("/" in text and ":" not in text):
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


def without_stray_rows(record: str) -> str:
    """The rows of a wheel's RECORD to keep: those of `detectron2` and its metadata."""
    keep = [row for row in record.splitlines() if is_detectron2(row.split("/")[0])]
    return "".join(f"{row}\n" for row in keep)


def is_detectron2(top: str) -> bool:
    """Whether a top-level name of a staged wheel is Detectron2's own.

    Every Detectron2 wheel also carries a top-level package `tools`, which would shadow ours.
    """
    return top == "detectron2" or (top.endswith(".dist-info") and "detectron2" in top)


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


def check_staged(environment: Environment, source: Source, staged: Path) -> None:
    """Check that a staged Detectron2 imports here, before it replaces one that may work.

    Raises:
        SetupError: it doesn't.
    """
    found = environment.probe(staged)
    if found["error"]:
        raise SetupError(
            f"Detectron2 ({source.describe()}) does not import, and nothing was replaced: "
            f"{explain_import_error(found['error'])}"
        )


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

    Raises:
        SetupError: it can't be installed, or doesn't import; one that was there before stays.
    """
    recorded = recorded_source(environment)
    found = environment.probe()
    choice = choose_source(wanted, found, recorded)
    if choice.kind != "keep":
        log(f"Detectron2: {choice.describe()}")
        with environment.work_folder() as work:
            staged = stage_detectron2(environment, choice, work)
            check_staged(environment, choice, staged)
            adopt_detectron2(environment, staged)
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
