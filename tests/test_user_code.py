"""Modules of users: how they are found, in which process, and what is told where they fail."""

import argparse
import os
import sys
from pathlib import Path

import pytest

from commands import subcommand_of
from regiondh_cli.main import subparsers_of
from regiondh_cli.options import add_import_option
from regiondh_d2.engine import user_code
from regiondh_d2.engine.command import run_workers
from regiondh_d2.engine.user_code import VARIABLE, import_user_code
from regiondh_d2.utils.errors import RegionDHError

ROOT = Path(__file__).parents[1]
SEEN = "import sys\nsys.seen_by_test_user_code.append(__file__)\n"


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """A current folder of its own; what is imported and registered there is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "seen_by_test_user_code", [], raising=False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def seen():
    """File names of what was imported."""
    return lambda: [Path(file).name for file in sys.seen_by_test_user_code]


def write(path, text=SEEN):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def refused(*names):
    with pytest.raises(RegionDHError) as error:
        import_user_code(names)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_a_module_and_a_module_in_a_package(tmp_path, seen):
    write("t_uc_file.py")
    write("t_uc_module.py")
    write("t_uc_package/__init__.py", "")
    write("t_uc_package/inner.py", "from . import other\n" + SEEN)
    write("t_uc_package/other.py", "")
    write("elsewhere/my-zoo.py", "import t_uc_neighbor\n" + SEEN)
    write("elsewhere/t_uc_neighbor.py")
    import_user_code(["t_uc_file.py", "t_uc_module", "t_uc_package.inner", "elsewhere/my-zoo.py"])
    expected = ["t_uc_file.py", "t_uc_module.py", "inner.py", "t_uc_neighbor.py", "my-zoo.py"]
    assert seen() == expected
    # Once each, however they are named.
    import_user_code([str(tmp_path / "t_uc_file.py"), "./t_uc_module.py", "t_uc_package.inner"])
    assert seen() == expected


def test_the_environment_names_them_too_and_hears_of_the_others(tmp_path, monkeypatch, seen):
    write("t_uc_first.py")
    write("t_uc_second.py")
    monkeypatch.setenv(VARIABLE, f"{os.pathsep}t_uc_first{os.pathsep}")
    import_user_code(["t_uc_second.py"])
    assert seen() == ["t_uc_first.py", "t_uc_second.py"]
    # Another process may run elsewhere.
    assert os.environ[VARIABLE] == os.pathsep.join(["t_uc_first", str(tmp_path / "t_uc_second.py")])


def test_a_file_hides_no_module_of_a_library(seen):
    """A file named as a module that is imported already, and one beside it named as another."""
    write("elsewhere/json.py")
    write("elsewhere/shelve.py", "raise RuntimeError('hidden')")
    import json

    import_user_code(["elsewhere/json.py"])
    assert seen() == ["json.py"]
    assert sys.modules["json"] is json
    sys.modules.pop("shelve", None)
    import shelve

    assert "elsewhere" not in shelve.__file__


def worker(folder):
    import t_uc_for_workers

    Path(folder, f"{os.getpid()}.txt").write_text(t_uc_for_workers.VALUE)


def test_worker_processes_import_the_same(tmp_path, monkeypatch, forked):
    write("elsewhere/t_uc_for_workers.py", "VALUE = 'here'\n")
    import_user_code(["elsewhere/t_uc_for_workers.py"])
    # New processes know nothing of it.
    del sys.modules["t_uc_for_workers"]
    monkeypatch.setattr(user_code, "_FILES", {})
    with forked():
        run_workers(worker, 2, (str(tmp_path),))
    found = list(tmp_path.glob("*.txt"))
    assert [path.read_text() for path in found] == ["here"] * 2
    assert f"{os.getpid()}.txt" not in [path.name for path in found]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t_uc_nowhere", "no such module in"),
        ("t_uc_nowhere.inner", "no such module in"),
        ("os.t_uc_nowhere", "no such module in"),
        ("t_uc_nowhere.py", "no such file; name a Python file"),
        ("./t_uc_nowhere", "no such file; name a Python file"),
        ("folder/", "a folder; name a Python file"),
        ("folder/notes.txt", "not the name of a Python file"),
        ("", "no such module in"),
        (".t_uc_nowhere", "no such module in"),
        (f"a{os.pathsep}b.py", f"a name with {os.pathsep!r} in it cannot be handed on"),
    ],
)
def test_what_is_not_there(name, message):
    write("folder/notes.txt", "x = 1\n")
    line = refused(name)
    assert line.startswith(f"--import {name}: {message}")


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("x = 1\n\n1 / 0\n", "line 3: ", "ZeroDivisionError: division by zero"),
        ("def f():\n    raise KeyError('a')\n\nf()\n", "line 2: ", "KeyError: 'a'"),
        ("import t_uc_absent\n", "line 1: ", "ModuleNotFoundError: No module named 't_uc_absent'"),
        ("x = (\n", "line 1: ", "SyntaxError: '(' was never closed"),
        ("import json\njson.loads('{')\n", "line 2: ", "JSONDecodeError: Expecting property name"),
        ("raise SystemExit(3)\n", "line 1: ", "it ends the program"),
        (
            "from regiondh_d2.data import register_retrieval_dataset as r\n"
            "r('t_uc', database='t_uc_no', queries='t_uc_no')\n",
            "line 2: ",
            "RegionDHError: retrieval dataset 't_uc': 't_uc_no' is not a registered dataset",
        ),
    ],
)
def test_what_fails_inside_is_told_with_file_and_line(tmp_path, monkeypatch, text, where, message):
    write("t_uc_bad.py", text)
    for name in ("t_uc_bad.py", "t_uc_bad"):
        line = refused(name)
        place = f"--import {name}: {tmp_path / 't_uc_bad.py'}, {where}"
        assert line.startswith(place + message), line
        assert "t_uc_bad" not in sys.modules
    monkeypatch.setenv(VARIABLE, "t_uc_bad")
    assert refused().startswith(f"{VARIABLE} t_uc_bad: {tmp_path / 't_uc_bad.py'}, {where}")


def test_a_file_that_fails_can_be_imported_when_it_is_repaired(seen):
    write("t_uc_later.py", "1 / 0\n")
    refused("t_uc_later.py")
    write("t_uc_later.py", SEEN + "# repaired\n")
    import_user_code(["t_uc_later.py"])
    assert seen() == ["t_uc_later.py"]


def test_the_option_may_be_repeated():
    parser = argparse.ArgumentParser()
    add_import_option(parser)
    assert parser.parse_args([]).imports == []
    assert parser.parse_args(["--import", "a", "--import", "b.py"]).imports == ["a", "b.py"]


TOOLS = [path.stem for path in (ROOT / "tools").glob("*.py") if path.stem not in ("setup_env",)]


@pytest.mark.parametrize("name", sorted([*TOOLS, "check_datasets"]))
def test_every_command_that_takes_a_dataset_or_a_config_takes_the_option(load_tool, name):
    module = load_tool(name)
    parser = module.build_parser()
    actions = [a for p in (parser, *subparsers_of(parser).values()) for a in p._actions]
    dests = {a.dest for a in actions}
    fixed = {"demo"}  # it makes its own dataset
    if dests & {"dataset", "config_file", "opts"} and name not in fixed:
        assert "imports" in dests
    file = module.__file__ if subcommand_of(name) else ROOT / f"tools/{name}.py"
    assert ("imports" in dests) == ("import_user_code(args.imports)" in Path(file).read_text())
