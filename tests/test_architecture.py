"""The plan of the house holds: contracts of pyproject.toml, and the table of CONTRIBUTING.md."""

import ast
import os
import re
import shutil
import subprocess
import sys

import grimp

import architecture

ROOT = architecture.ROOT
# A line that breaks each contract, and the module that it is added to.
BROKEN = {
    "Imports go down": ("utils/errors.py", "from ..engine import defaults"),
    "No circles": ("utils/display.py", "from .file_io import replace_when_complete"),
    "The library knows no scripts": ("engine/trainer.py", "import tools"),
    "The ground floor": ("structures/packed.py", "import torch"),
    "Networks know no files": ("modeling/losses.py", "from PIL import Image"),
    "Metrics are numpy and scipy": ("evaluation/ranking_metrics.py", "import torch"),
    "Pictures are drawn": ("retrieval/code_store.py", "import matplotlib"),
}


def lint(folder):
    """The exit status of import-linter in a folder, and whether each contract is kept, by name."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports as run\n"]
    command[-1] += "raise SystemExit(run(no_cache=True))"
    env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    result = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    verdicts = re.findall(r"^(.+) (KEPT|BROKEN)(?: \(.*\))?$", result.stdout, re.MULTILINE)
    assert verdicts, result.stdout + result.stderr
    return result.returncode, {name: verdict == "KEPT" for name, verdict in verdicts}, result.stdout


def test_contracts_hold():
    code, kept, output = lint(ROOT)
    assert code == 0, output
    assert all(kept.values())


def test_each_contract_can_break(tmp_path):
    package = tmp_path / architecture.PACKAGE
    shutil.copytree(
        ROOT / architecture.PACKAGE,
        package,
        ignore=lambda _, names: [name for name in names if name.endswith((".pth", ".pyc"))],
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, line in BROKEN.values():
        with open(package / name, "a") as file:
            file.write(f"\n{line}\n")
    code, kept, output = lint(tmp_path)
    assert code == 1
    assert len(kept) == len(BROKEN)
    for start in BROKEN:
        assert [v for name, v in kept.items() if name.startswith(start)] == [False], output


def test_arrows_are_those_that_the_linter_sees():
    graph = grimp.build_graph(*architecture.PACKAGES, cache_dir=None)
    expected = {
        (module, target)
        for module in graph.modules
        for target in graph.find_modules_directly_imported_by(module)
        if None not in (rooms := [architecture.room_of(name) for name in (module, target)])
        and rooms[0] != rooms[1]
    }
    rooms = architecture.count_rooms(architecture.working_tree())
    assert set().union(*(room.arrows for room in rooms.values())) == expected
    assert not any(room.not_down for room in rooms.values())


def test_modules_that_are_imported_are_there():
    """Also those that only a function imports, which no test may call."""
    library = architecture.working_tree()
    files = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in ("tools", "datasets", "tests", "experiments")
        for path in (ROOT / folder).rglob("*.py")
    }
    modules = {architecture.module_of(name) for name in library}
    absent = []
    for name, text in {**library, **files}.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ImportFrom):
                continue
            source = architecture.source_of(node, architecture.package_of(name))
            if source.split(".")[0] in architecture.PACKAGES and source not in modules:
                absent.append(f"{name}:{node.lineno}: {source}")
    assert absent == []


def test_arrows_up_are_counted():
    rooms = architecture.count_rooms(
        {
            "regiondh_d2/__init__.py": "from . import engine\n",
            "regiondh_d2/engine/__init__.py": "from .a import x\n",
            "regiondh_d2/engine/a.py": "from ..data import b\nfrom ..data.b import y\n",
            "regiondh_d2/data/__init__.py": "",
            "regiondh_d2/data/b.py": "def f():\n    import regiondh_d2.engine.a\n",
            "regiondh_d2/modeling/__init__.py": "from ..data.b import f\n",
        }
    )
    engine, data, modeling = (rooms[name] for name in ("engine", "data", "modeling"))
    assert (engine.files, engine.lines) == (2, 3)
    assert engine.arrows == {("regiondh_d2.engine.a", "regiondh_d2.data.b")}
    assert engine.not_down == set()
    assert data.not_down == {("regiondh_d2.data.b", "regiondh_d2.engine.a")}
    assert modeling.not_down == {("regiondh_d2.modeling", "regiondh_d2.data.b")}  # one floor


def test_the_document_has_the_rooms_that_are_there():
    """Its numbers are as old as they say; its rooms are those of today."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (shown,) = re.findall(
        f"{re.escape(architecture.BEGIN)}(.*?){re.escape(architecture.END)}", text, re.DOTALL
    )
    rooms = set(re.findall(r"^\| `(\w+)`", shown, re.MULTILINE))
    assert rooms == set(architecture.count_rooms(architecture.working_tree()))
    for line in re.findall(r"^\| `?\w+`? \|.*", shown, re.MULTILINE):
        assert line.endswith(" 0 |") or "not down" in line, line
