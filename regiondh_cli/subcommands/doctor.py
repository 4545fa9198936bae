"""Print what is installed, which Detectron2 is used, and how to install missing parts."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from .. import __version__
from ..arguments import CommandParser
from ..detectron2_setup import (
    NEEDS,
    detectron2_line,
    explain_import_error,
    recorded_source,
)
from ..display import print_line
from ..environment import PROBE, Environment
from ..requirements import Requirement, missing, requirements

PARSER = {"epilog": "Exit status: 0 if nothing required is missing, else 1."}

MIN_PYTHON = (3, 11)
# Extras that are not for people who only use the package.
QUIET_EXTRAS = (NEEDS, "dev")
# Enough to import PyTorch from a slow disk.
PROBE_TIMEOUT_S = 300

# Runs after PROBE, in the same process, and prints a line of its own.
DEVICES = r"""
found = {"devices": [], "error": None, "package": None}
try:
    import torch
    found["devices"].append(f"cpu ({torch.get_num_threads()} threads)")
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found["devices"].append(f"cuda:{number} ({torch.cuda.get_device_name(number)})")
    if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
        found["devices"].append("mps")
except BaseException as exc:
    found["error"] = type(exc).__name__ + ": " + (str(exc).strip().splitlines() or [""])[0]
else:
    try:
        import regiondh_d2
    except BaseException as exc:
        found["package"] = type(exc).__name__ + ": " + (str(exc).strip().splitlines() or [""])[0]
print(json.dumps(found))
"""


def add_arguments(parser: CommandParser) -> None:
    """It has no options of its own."""


def run(args: argparse.Namespace) -> int:
    problems: list[str] = []
    print_line(f"regiondh_d2 {__version__}: {Path(__file__).parents[2]}")
    print_line(f"Python {platform.python_version()}: {sys.executable}")
    if sys.version_info < MIN_PYTHON:
        needed = ".".join(map(str, MIN_PYTHON))
        problems.append(f"Python {needed} or newer: install it, and this package with it")
    print_line(f"system: {platform.platform()}")
    known = requirements()
    if known is None:
        problems.append("regiondh_d2 is not installed: `pip install -e .` in its folder")
    _print_packages(known or [], problems)
    _print_libraries(known or [], problems)
    _print_extras(known or [])
    print()
    for problem in problems:
        print_line(f"missing: {problem}")
    if not problems:
        print_line("all that is required is here")
    return 1 if problems else 0


def _print_packages(known: list[Requirement], problems: list[str]) -> None:
    """The requirements of the package itself."""
    for requirement in known:
        if not requirement.extra:
            print_line(f"  {requirement.name} {requirement.version() or 'missing'}")
    lacking = missing(x for x in known if not x.extra)
    problems += [_line(requirement) for requirement in lacking]


def _print_libraries(known: list[Requirement], problems: list[str]) -> None:
    """Detectron2, what it imports, and the devices that PyTorch sees."""
    detectron2, torch = _probe()
    if detectron2 is None:
        problems.append(f"an answer of this Python: {torch['error']}")
        return
    if detectron2["path"] is None:
        print_line("Detectron2: missing")
        problems.append("Detectron2: `regiondh setup-detectron2`")
    elif detectron2["error"]:
        print_line(f"Detectron2: {Path(detectron2['path']).parent}, which does not import")
        fix = "`regiondh setup-detectron2`"
        lacking = missing(x for x in known if x.extra == NEEDS)
        if lacking and "No module named" in detectron2["error"]:
            fix += f" installs {', '.join(x.name for x in lacking)}"
        problems.append(
            f"a Detectron2 that imports ({explain_import_error(detectron2['error'])}): {fix}"
        )
    else:
        recorded = recorded_source(Environment.current())
        source = recorded.describe() if recorded else "found already installed"
        print_line(detectron2_line({**detectron2, "source": source}))
    if torch["error"]:
        print_line(f"devices: unknown ({torch['error']})")
        if not torch["error"].startswith("ModuleNotFoundError: No module named 'torch'"):
            problems.append(f"a PyTorch that imports ({torch['error']}): install it again")
    else:
        print_line(f"devices: {', '.join(torch['devices'])}")
        if torch["package"] and detectron2["path"] and not detectron2["error"]:
            problems.append(f"an import of regiondh_d2 ({torch['package']})")


def _probe() -> tuple[dict | None, dict]:
    """Import Detectron2 and PyTorch in another process, which may crash, and return its answers."""
    # It imports the same package as this process, even from a folder without installation.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.getenv("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE + DEVICES],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONPATH": path},
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, {"error": f"importing PyTorch took more than {PROBE_TIMEOUT_S} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if len(lines) < 2:
        last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        return None, {"error": last}
    return json.loads(lines[0]), json.loads(lines[1])


def _print_extras(known: list[Requirement]) -> None:
    """The extras; a missing one is no problem."""
    extras = dict.fromkeys(x.extra for x in known if x.extra and x.extra not in QUIET_EXTRAS)
    for extra in extras:
        parts = [x for x in known if x.extra == extra]
        lacking = missing(parts)
        if lacking:
            print_line(f"extra {extra}: missing; {_fix(lacking)}")
        else:
            versions = ", ".join(f"{x.name} {x.version()}" for x in parts)
            print_line(f"extra {extra}: {versions}")


def _fix(lacking: list[Requirement]) -> str:
    return f"`pip install {' '.join(repr(str(x)) for x in lacking)}`"


def _line(requirement: Requirement) -> str:
    version = requirement.version()
    here = f" ({version} is here)" if version else ""
    return f"{requirement}{here}: {_fix([requirement])}"
