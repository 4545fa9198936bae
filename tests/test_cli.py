"""The command regiondh: quick help, one line where something is missing, and shell completion."""

import ast
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import regiondh_cli
import regiondh_d2
from programs import run_program
from regiondh_cli import environment, legal_values
from regiondh_cli import main as cli
from regiondh_cli.completion import SHELLS, completion_script
from regiondh_cli.requirements import Requirement
from regiondh_cli.subcommands import NAMES, doctor, load, module_name
from regiondh_d2.checkpoint import SOURCES
from regiondh_d2.checkpoint.conversion import LAYOUTS, RESNETS
from regiondh_d2.evaluation.reference_codes import REFERENCES
from regiondh_d2.retrieval.blend import MOST_WEIGHT
from regiondh_d2.retrieval.engines import ENGINES
from regiondh_d2.retrieval.exchange import FORMATS
from regiondh_d2.retrieval.index_folder import GRANULARITIES
from regiondh_d2.retrieval.second_stage import RERANKINGS

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "detectron2", "regiondh_d2")

# Every --help in one process, with the time of the slowest; then what was imported.
HELP = f"""
import io, json, sys, time
from contextlib import redirect_stdout
from regiondh_cli.main import main
from regiondh_cli.subcommands import NAMES
seconds = {{}}
for words in ([], *([name] for name in NAMES)):
    start = time.perf_counter()
    with redirect_stdout(io.StringIO()) as out:
        try:
            main([*words, "--help"])
        except SystemExit as end:
            assert end.code == 0
    assert "usage: regiondh" in out.getvalue()
    seconds[" ".join(words)] = time.perf_counter() - start
print(json.dumps([seconds, [m for m in {HEAVY!r} if m in sys.modules]]))
"""


def python(*words, **environment):
    """A new process with this checkout's packages; it sees no other of the same names."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=env
    )


class TestHelp:
    def test_every_help_imports_nothing_and_is_quick(self):
        done = python("-c", HELP)
        assert done.returncode == 0, done.stderr
        seconds, imported = json.loads(done.stdout)
        assert imported == []
        assert len(seconds) == len(NAMES) + 1
        # Of a second; without what Python itself needs to start.
        assert max(seconds.values()) < 0.7, seconds

    def test_the_package_imports_only_the_standard_library_and_itself(self):
        files = list((ROOT / "regiondh_cli").rglob("*.py"))
        assert len(files) > 25
        for file in files:
            for node in ast.walk(ast.parse(file.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module]
                for name in names:
                    assert name.split(".")[0] in sys.stdlib_module_names, (file, name)

    def test_there_is_a_body_for_every_parser(self):
        bodies = {path.stem for path in (ROOT / "regiondh_d2/commands").glob("*.py")} - {"__init__"}
        here = {module_name(name) for name in NAMES if hasattr(load(name), "run")}
        assert bodies | here == {module_name(name) for name in NAMES}
        assert not bodies & here
        for name in bodies:
            assert callable(importlib.import_module(f"regiondh_d2.commands.{name}").run)

    def test_scripts_of_a_checkout_are_shims(self):
        files = [*ROOT.glob("tools/*.py"), *ROOT.glob("datasets/*.py")]
        shims = [path for path in files if "run_script(" in path.read_text()]
        assert len(shims) == 16
        for path in shims:
            assert len(path.read_text().splitlines()) < 12, path

    def test_modules_and_a_script_are_the_command_too(self):
        assert python("-m", "regiondh_cli", "--version").stdout == "regiondh 0.1.0\n"
        script = ROOT / "tools/build_index.py"
        done = python(str(script), "codes.h5")
        assert done.returncode == 2
        assert done.stderr.endswith("--output (see build_index.py --help)\n")

    def test_the_package_itself_is_the_command_too(self, tmp_path):
        words = ["build-index", "absent.h5", "--output", "x", "--nprobe", "3"]
        done = run_program(["-m", "regiondh_d2", *words], cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.endswith("--nprobe needs --nlist (see regiondh build-index --help)\n")

    def test_there_is_one_version(self):
        assert regiondh_d2.__version__ == regiondh_cli.__version__
        files = [ROOT / "setup.py", *ROOT.glob("regiondh_*/**/*.py")]
        having = [f for f in files if f'"{regiondh_cli.__version__}"' in f.read_text()]
        assert having == [ROOT / "regiondh_cli/__init__.py"]


class TestLegalValues:
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("ENGINES", list(ENGINES)),
            ("MEMORY_ENGINES", [name for name in ENGINES if not ENGINES[name].is_stored]),
            ("EXPORT_FORMATS", FORMATS),
            ("GRANULARITIES", GRANULARITIES),
            ("RERANKINGS", RERANKINGS),
            ("REFERENCES", REFERENCES),
            ("LAYOUTS", LAYOUTS),
            ("RESNETS", RESNETS),
            ("WEIGHT_SOURCES", sorted(SOURCES)),
        ],
    )
    def test_those_of_the_library(self, name, values):
        assert getattr(legal_values, name) == tuple(values)

    def test_the_largest_weight_of_a_blend(self):
        assert legal_values.MOST_WEIGHT == MOST_WEIGHT

    def test_those_of_commands(self, load_tool):
        assert tuple(load_tool("analyze_model").TASKS) == legal_values.ANALYSES
        benchmarks = cli.subparsers_of(cli.subcommand_parser("benchmark"))
        assert list(benchmarks) == list(load_tool("benchmark").BENCHMARKS)


class TestMissing:
    """Where a package is missing a command tells in one line what installs it."""

    @pytest.mark.parametrize(
        "words",
        [
            ["search-photos", "x"],
            ["build-index", "c.h5", "--output", "index"],
            ["evaluate-codes", "--query", "q.h5", "--database", "d.h5"],
            ["report", "--query", "q.h5", "--database", "d.h5"],
            ["check-dataset"],
            ["demo"],
        ],
    )
    def test_detectron2_is_missing(self, words, monkeypatch, capsys):
        def find_spec(package):
            return None if package == "detectron2" else True

        monkeypatch.setattr(cli.importlib.util, "find_spec", find_spec)
        monkeypatch.delitem(sys.modules, "detectron2")
        assert cli.main(words) == 1
        line = "error: Detectron2 isn't installed: `regiondh setup-detectron2` installs it\n"
        assert capsys.readouterr() == ("", line)

    def test_in_a_process_of_its_own(self):
        """With Detectron2 hidden: also where an override asks for the config's keys."""
        hide = "import sys; sys.modules['detectron2'] = None; from regiondh_cli.main import main; "
        for words in (["search-photos", "x"], ["train", "MODEL.DEVICE", "cpu"]):
            done = python("-c", f"{hide} sys.exit(main({words!r}))")
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1
            assert "`regiondh setup-detectron2`" in done.stderr

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (
                ModuleNotFoundError("No module named 'torch'", name="torch"),
                "error: PyTorch isn't installed: `pip install torch torchvision`, then `regiondh "
                "doctor`\n",
            ),
            (
                ModuleNotFoundError("No module named 'fvcore'", name="fvcore"),
                "error: No module named 'fvcore': `regiondh doctor` tells what to install\n",
            ),
        ],
    )
    def test_other_packages(self, error, line, capsys):
        def start():
            raise error

        assert cli._print_missing(start) == 1
        assert capsys.readouterr().err == line

    def test_a_detectron2_that_does_not_import(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "detectron2").mkdir()
        file = tmp_path / "detectron2/structures.py"
        code = compile("from PIL import Image; Image.LINEAR", file, "exec")
        assert cli._print_missing(lambda: exec(code)) == 1
        line = capsys.readouterr().err
        assert "use the main branch" in line
        assert "regiondh setup-detectron2 registry" in line
        assert line.count("\n") == 1

    def test_a_defect_of_ours_is_not_taken_for_a_missing_package(self):
        def start():
            raise ImportError("cannot import name 'x'", name="regiondh_d2.utils.text")

        with pytest.raises(ImportError):
            cli._print_missing(start)


class TestDoctor:
    @pytest.fixture
    def found(self, monkeypatch, tmp_path):
        """What the other process finds; all is well until a test changes it."""
        found = [
            {
                "path": "/d/detectron2/__init__.py",
                "version": "0.6",
                "compiled": True,
                "error": None,
            },
            {"devices": ["cpu (2 threads)"], "error": None, "package": None},
        ]
        monkeypatch.setattr(doctor, "_probe", lambda: found)
        known = [Requirement("numpy", ">=1"), Requirement("t-absent", ">=3", "search")]
        known.append(Requirement("t-quiet", "", "dev"))
        monkeypatch.setattr(doctor, "requirements", lambda: known)
        folder = environment.Environment(tmp_path, Path(sys.executable), tmp_path)
        monkeypatch.setattr(environment.Environment, "current", lambda: folder)
        return found

    def test_all_is_well(self, found, capsys):
        assert cli.main(["doctor"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == "all that is required is here"
        assert "devices: cpu (2 threads)" in lines
        assert "extra search: missing; `pip install 't-absent>=3'`" in lines
        assert not any("t-quiet" in line for line in lines)
        (line,) = [line for line in lines if line.startswith("Detectron2: ")]
        assert "found already installed; says version 0.6" in line
        assert "with compiled part" in line

    @pytest.mark.parametrize(
        ("part", "changes", "problem"),
        [
            (0, {"path": None}, "missing: Detectron2: `regiondh setup-detectron2`"),
            (
                0,
                {"error": "ModuleNotFoundError: No module named 'pkg_resources'"},
                "missing: a Detectron2 that imports (ModuleNotFoundError: No module named "
                "'pkg_resources'; it needs setuptools below 82: use the main branch): `regiondh "
                "setup-detectron2`",
            ),
            (1, {"error": "OSError: libcudart"}, "missing: a PyTorch that imports (OSError: "),
            (1, {"package": "ImportError: timm"}, "missing: an import of regiondh_d2 (ImportErr"),
        ],
    )
    def test_what_is_missing(self, found, capsys, part, changes, problem):
        found[part] |= changes
        assert cli.main(["doctor"]) == 1
        assert any(x.startswith(problem) for x in capsys.readouterr().out.splitlines())

    def test_a_package_is_missing_or_too_old(self, found, monkeypatch, capsys):
        known = [Requirement("t-absent", ">=2"), Requirement("numpy", ">=999")]
        monkeypatch.setattr(doctor, "requirements", lambda: known)
        assert cli.main(["doctor"]) == 1
        out = capsys.readouterr().out
        assert "missing: t-absent>=2: `pip install 't-absent>=2'`" in out
        assert " is here): `pip install 'numpy>=999'`" in out

    def test_a_folder_without_installation(self, found, monkeypatch, capsys):
        monkeypatch.setattr(doctor, "requirements", lambda: None)
        assert cli.main(["doctor"]) == 1
        assert "missing: regiondh_d2 is not installed" in capsys.readouterr().out

    def test_a_bare_python(self, found, capsys):
        """Without any package, as -S hides them."""
        done = python("-S", "-P", "-c", doctor.PROBE + doctor.DEVICES)
        assert done.stderr == ""
        found[:] = map(json.loads, done.stdout.splitlines())
        assert cli.main(["doctor"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert "missing: Detectron2: `regiondh setup-detectron2`" in lines
        assert "devices: unknown (ModuleNotFoundError: No module named 'torch')" in lines

    def test_a_process_that_crashes_is_told(self, monkeypatch, capsys):
        monkeypatch.setattr(doctor, "PROBE", "import os; os._exit(3)\n")
        found, torch = doctor._probe()
        assert found is None
        assert torch["error"] == "it ended with status 3"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_one_line():
    words = [sys.executable, "-m", "regiondh_cli", "completion", "bash"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "error: standard output: No space left on device\n",
    )


class TestCompletion:
    @pytest.mark.parametrize("shell", SHELLS)
    def test_scripts_name_everything(self, shell, capsys):
        assert cli.main(["completion", shell]) == 0
        script = capsys.readouterr().out
        for word in (
            *NAMES,
            "config-file",
            "rerank-by",
            "activations features classes both",
            "evaluation",
        ):
            assert word in script
        program = shutil.which(shell)
        if program:
            done = subprocess.run([program, "-n"], input=script, text=True, capture_output=True)
            assert done.returncode == 0, done.stderr

    @pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ("regiondh sea", {"search-photos", "search"}),
            ("regiondh search --rerank-by ", {"activations", "features", "classes", "both"}),
            ("regiondh build-index codes.h5 --eng", {"--engine"}),
            ("regiondh build-index codes.h5 --engine n", {"numpy"}),
            ("regiondh benchmark ev", {"evaluation"}),
            ("regiondh benchmark search --bat", {"--batches"}),
            ("regiondh completion z", {"zsh"}),
            # A photo that is called as a subcommand is no subcommand of another.
            ("regiondh search --query report --to", {"--topk"}),
        ],
    )
    def test_bash_completes(self, words, expected):
        script = completion_script(cli.build_parser(), "bash")
        given = words.split(" ")
        array = " ".join(f"'{word}'" for word in given)
        ask = f"\nCOMP_WORDS=({array}); COMP_CWORD={len(given) - 1}\n_regiondh\n"
        ask += "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
        done = subprocess.run(
            ["bash"], input=script + ask, capture_output=True, text=True, check=True
        )
        assert set(done.stdout.split()) == expected
