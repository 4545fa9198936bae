"""The set-up script: which Detectron2 is chosen, when a stamp is believed, what errors say."""

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_script():
    """Import the script by its path: a package called `tools` may belong to anyone."""
    path = ROOT / "tools" / "setup_env.py"
    spec = importlib.util.spec_from_file_location("regiondh_setup_env", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


setup_env = load_script()
Source = setup_env.Source
SetupError = setup_env.SetupError

ABSENT = {"path": None, "version": None, "compiled": False, "error": None}
WORKS = {**ABSENT, "path": "/somewhere/detectron2/__init__.py", "version": "0.6"}
BROKEN = {**WORKS, "error": "AttributeError: module 'PIL.Image' has no attribute 'LINEAR'"}
KEEP = Source("keep")
GIT = Source("requirement", "git+https://example.org/detectron2.git")


@pytest.fixture
def checkout(tmp_path):
    """The least that counts as a checkout of Detectron2."""
    package = tmp_path / "checkout" / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    return package.parent


class TestParseSource:
    @pytest.mark.parametrize("text", ["", "  "])
    def test_empty_is_no_opinion(self, text):
        assert setup_env.parse_source(text) is None

    def test_word_for_the_registry(self):
        assert setup_env.parse_source("registry") == setup_env.REGISTRY

    def test_checkout_is_built_or_used_as_it_is(self, checkout):
        assert setup_env.parse_source(str(checkout)) == Source("checkout", str(checkout))
        as_it_is = setup_env.parse_source(str(checkout), build=False)
        assert as_it_is == Source("python-files", str(checkout))

    def test_relative_checkout_becomes_absolute(self, checkout, monkeypatch):
        monkeypatch.chdir(checkout.parent)
        assert setup_env.parse_source("checkout").value == str(checkout)

    def test_wheel_file(self, tmp_path):
        wheel = tmp_path / "detectron2-0.6-py3-none-any.whl"
        wheel.write_bytes(b"")
        assert setup_env.parse_source(str(wheel)) == Source("requirement", str(wheel))

    @pytest.mark.parametrize(
        "text",
        ["detectron2==0.6", GIT.value, "detectron2 @ git+https://example.org/detectron2.git"],
    )
    def test_pip_requirement(self, text):
        assert setup_env.parse_source(text) == Source("requirement", text)

    @pytest.mark.parametrize("text", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b"])
    def test_missing_path_is_told(self, text):
        with pytest.raises(SetupError, match="no such file or folder"):
            setup_env.parse_source(text)

    def test_folder_without_detectron2_is_told(self, tmp_path):
        with pytest.raises(SetupError, match=r"no detectron2/__init__\.py"):
            setup_env.parse_source(str(tmp_path))


class TestChooseSource:
    def test_importable_one_is_kept(self):
        assert setup_env.choose_source(None, WORKS, None) == KEEP
        assert setup_env.choose_source(None, WORKS, GIT) == KEEP
        assert setup_env.choose_source(None, WORKS, setup_env.REGISTRY) == KEEP

    def test_registry_is_the_fallback(self):
        assert setup_env.choose_source(None, ABSENT, None) == setup_env.REGISTRY
        # Ours, but torn: it is put right without asking.
        assert setup_env.choose_source(None, BROKEN, setup_env.REGISTRY) == setup_env.REGISTRY

    def test_changed_pin_is_followed(self):
        old = Source("registry", "an older pin")
        assert setup_env.choose_source(None, WORKS, old) == setup_env.REGISTRY

    @pytest.mark.parametrize("found", [ABSENT, WORKS, BROKEN])
    @pytest.mark.parametrize("recorded", [None, setup_env.REGISTRY])
    def test_wish_wins(self, found, recorded):
        assert setup_env.choose_source(GIT, found, recorded) == GIT

    def test_fulfilled_wish_is_not_built_again(self):
        assert setup_env.choose_source(GIT, WORKS, GIT) == KEEP
        assert setup_env.choose_source(GIT, BROKEN, GIT) == GIT

    def test_way_back_to_the_registry(self):
        assert setup_env.choose_source(setup_env.REGISTRY, WORKS, GIT) == setup_env.REGISTRY

    def test_foreign_broken_one_is_told_and_not_replaced(self):
        with pytest.raises(SetupError) as told:
            setup_env.choose_source(None, BROKEN, None)
        assert "\n" not in str(told.value)
        assert "too old for this Pillow" in str(told.value)
        assert "DETECTRON2_SOURCE=registry" in str(told.value)


class TestStampKey:
    @pytest.fixture
    def root(self, tmp_path):
        (tmp_path / "tools").mkdir()
        for name in ("constraints.txt", "setup.py", "tools/setup_env.py"):
            (tmp_path / name).write_text(name)
        return tmp_path

    def key(self, root, **changes):
        facts = {"source": "", "build": True, "system_site": False, "python": "3.11", **changes}
        return setup_env.stamp_key(root, **facts)

    def test_same_facts_same_key(self, root):
        assert self.key(root) == self.key(root)
        assert self.key(root, source=" x ") == self.key(root, source="x")

    @pytest.mark.parametrize("name", ["constraints.txt", "setup.py", "tools/setup_env.py"])
    def test_every_file_counts(self, root, name):
        before = self.key(root)
        (root / name).write_text("changed")
        assert self.key(root) != before

    @pytest.mark.parametrize(
        "change",
        [{"source": "x"}, {"build": False}, {"system_site": True}, {"python": "3.12"}],
    )
    def test_every_fact_counts(self, root, change):
        assert self.key(root, **change) != self.key(root)


def make_wheel(folder: Path) -> None:
    """A wheel of the registry copy's name, with other content than the pinned one."""
    name, version = setup_env.REGISTRY_REQUIREMENT.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-cp310-none-any.whl", "w") as wheel:
        wheel.writestr("detectron2/__init__.py", "")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: cp310-none-any\n")
        wheel.writestr(
            f"{stem}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        )
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


class TestRegistryCopy:
    def test_line_holds_version_and_hash(self):
        line = setup_env.registry_line()
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}\n", line)

    def test_other_file_of_the_same_name_is_refused(self, tmp_path, monkeypatch):
        make_wheel(tmp_path)
        # Only the folder is asked, so the test needs no network.
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        venv = setup_env.Environment(tmp_path)
        venv.python = Path(sys.executable)
        with pytest.raises(SetupError, match="not the pinned file"):
            setup_env.stage_detectron2(venv, setup_env.REGISTRY, tmp_path)

    def test_stray_packages_stay_out(self):
        assert setup_env.is_detectron2("detectron2")
        assert setup_env.is_detectron2("sal_detectron2-0.7.2.dist-info")
        assert not setup_env.is_detectron2("tools")
        record = "detectron2/__init__.py,,\ntools/train_net.py,,\ndetectron2-0.6.dist-info/RECORD,,"
        kept = setup_env.without_stray_rows(record)
        assert kept == "detectron2/__init__.py,,\ndetectron2-0.6.dist-info/RECORD,,\n"


class TestPythonFiles:
    def test_checkout_is_staged_without_a_build(self, checkout, tmp_path):
        (checkout / "detectron2" / "layers" / "csrc").mkdir(parents=True)
        (checkout / "detectron2" / "layers" / "nms.py").write_text("")
        (checkout / "tools").mkdir()
        venv = setup_env.Environment(tmp_path / "venv")
        source = Source("python-files", str(checkout))
        staged = setup_env.stage_detectron2(venv, source, tmp_path / "work")
        assert [path.name for path in staged.iterdir()] == ["detectron2"]
        assert (staged / "detectron2" / "layers" / "nms.py").is_file()
        assert not (staged / "detectron2" / "layers" / "csrc").exists()


class TestErrorLines:
    @pytest.mark.parametrize(
        ("output", "words"),
        [
            ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "not the pinned file"),
            ("ModuleNotFoundError: No module named 'torch'", "isolation"),
            ("OSError: [Errno 28] No space left on device", "disk is full"),
            ("NewConnectionError: Failed to establish a new connection", "registry"),
            ("error: command 'g++' failed: No such file or directory", "DETECTRON2_BUILD=0"),
            ("fine\nERROR: something new\nbye", "ERROR: something new"),
            ("", "no output"),
        ],
    )
    def test_one_line_with_the_fix(self, output, words):
        line = setup_env.explain_failure("Detectron2 from x", output, Path("setup.log"))
        assert words in line
        assert "setup.log" in line
        assert "\n" not in line

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            ("AttributeError: module 'PIL.Image' has no attribute 'LINEAR'", "Pillow"),
            ("AttributeError: module 'numpy' has no attribute 'bool'", "numpy"),
            ("ModuleNotFoundError: No module named 'pkg_resources'", "setuptools"),
            ("ImportError: cannot import name '_C' from 'detectron2'", "rebuild"),
            ("ValueError: new", "ValueError: new"),
        ],
    )
    def test_known_import_errors(self, error, words):
        assert words in setup_env.fix_for(error)

    def test_line_about_the_one_in_use(self):
        line = setup_env.detectron2_line({**WORKS, "source": "found already installed"})
        assert "0.6" in line
        assert "/somewhere/detectron2" in line
        assert "without compiled part" in line


class TestEnvironment:
    def test_folder_that_is_no_environment_is_left_alone(self, tmp_path):
        (tmp_path / "precious.txt").write_text("mine")
        with pytest.raises(SetupError, match="not a virtual environment"):
            setup_env.Environment(tmp_path).ensure(system_site=False)
        assert (tmp_path / "precious.txt").is_file()

    def test_failed_command_is_logged_and_told(self, tmp_path):
        venv = setup_env.Environment(tmp_path)
        command = [sys.executable, "-c", "import sys; print('ERROR: no luck'); sys.exit(3)"]
        with pytest.raises(SetupError, match="a step failed: ERROR: no luck"):
            venv.run("a step", command)
        assert "no luck" in venv.log.read_text()

    def test_torn_note_is_no_note(self, tmp_path):
        note = tmp_path / "note.json"
        note.write_text('{"key": ')
        assert setup_env.read_json(note) == {}
        setup_env.write_json(note, {"key": "x"})
        assert setup_env.read_json(note) == {"key": "x"}
        assert [path.name for path in tmp_path.iterdir()] == ["note.json"]

    def test_failed_set_up_leaves_no_stamp(self, tmp_path, monkeypatch, capsys):
        def fail(self, *arguments, **options):
            raise SetupError("stopped here")

        folder = tmp_path / "venv"
        folder.mkdir()
        venv = setup_env.Environment(folder)
        setup_env.write_json(venv.stamp, {"key": "of another state"})
        monkeypatch.setattr(setup_env.Environment, "ensure", fail)
        monkeypatch.delenv("DETECTRON2_SOURCE", raising=False)
        assert setup_env.main(["--venv", str(folder)]) == 1
        assert not venv.stamp.exists()
        assert capsys.readouterr().err == "setup: stopped here\n"

    def test_probe_answers_without_detectron2(self):
        # -S hides every installed package, so the answer is the one of a bare environment.
        command = [sys.executable, "-S", "-P", "-c", setup_env.PROBE]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
        assert json.loads(done.stdout) == ABSENT


class TestSetupFiles:
    def test_setup_py_imports_neither_torch_nor_detectron2(self):
        imports = re.findall(r"^(?:from|import)\s+(\w+)", (ROOT / "setup.py").read_text(), re.M)
        assert set(imports) <= {"pathlib", "setuptools"}

    def test_constraints_are_exact(self):
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", pin) for pin in pins)
        names = [pin.split("==")[0].lower() for pin in pins]
        assert len(names) == len(set(names))
