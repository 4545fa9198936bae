"""Set up `.venv` for regiondh_d2: pinned packages, Detectron2 and this package itself.

It uses only the standard library, since it runs on a bare Python. `make setup` calls it. A file in
the environment, the stamp, records what the environment was made from; if nothing has changed, a
second run takes a fraction of a second. A set-up deletes the stamp at its start and writes it at
its end, so after an interruption the next run continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # nothing is installed yet

from regiondh_cli.detectron2_setup import (  # noqa: E402
    detectron2_line,
    parse_source,
    settle_detectron2,
)
from regiondh_cli.environment import (  # noqa: E402
    Environment,
    SetupError,
    log,
    read_json,
    write_json,
)

MIN_PYTHON = (3, 11)

PACKAGE_EXTRAS = "detectron2-needs,search,demo,web,weights,heic,dev"
STAMP_NAME = "regiondh-setup.json"
# A change of these files changes the environment.
STAMPED = (
    "constraints.txt",
    "setup.py",
    "tools/setup_env.py",
    "regiondh_cli/__init__.py",
    "regiondh_cli/detectron2_setup.py",
    "regiondh_cli/environment.py",
)


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
    for name in STAMPED:
        digest.update(name.encode() + b"\0" + (root / name).read_bytes() + b"\0")
    # With the root, since the environment of a moved checkout is full of old absolute paths.
    facts = [str(root), source.strip(), build, system_site, python]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


class VirtualEnvironment(Environment):
    """The environment in a folder, which may have to be created."""

    def __init__(self, folder: Path):
        windows = os.name == "nt"
        paths = sysconfig.get_paths(
            "nt" if windows else "posix_prefix",
            vars={"base": str(folder), "platbase": str(folder)},
        )
        python = folder / ("Scripts/python.exe" if windows else "bin/python")
        super().__init__(folder, python, Path(paths["purelib"]))
        self.stamp = folder / STAMP_NAME

    def ensure(self, system_site: bool) -> None:
        """Create the environment; replace one that has another Python or is incomplete."""
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


def set_up(arguments: argparse.Namespace) -> None:
    """Bring the environment up to date, or see that it is."""
    source = os.environ.get("DETECTRON2_SOURCE", "")
    build = os.environ.get("DETECTRON2_BUILD", "1") != "0"
    try:
        wanted = parse_source(source, build)
    except SetupError as error:
        raise SetupError(f"DETECTRON2_SOURCE={error}") from error
    # Resolved, since a relative path depends on the current folder.
    named = wanted.value if wanted else ""
    python = f"{platform.python_version()} {sys.base_prefix}"
    key = stamp_key(ROOT, named, build, arguments.system_site_packages, python)
    venv = VirtualEnvironment(Path(os.path.abspath(arguments.venv)))

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
