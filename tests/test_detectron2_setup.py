"""Detectron2: which one is chosen and how it is installed, and what errors say."""

import re
import sys
import zipfile
from pathlib import Path

import pytest

from regiondh_cli import detectron2_setup, requirements
from regiondh_cli.detectron2_setup import REGISTRY, Source
from regiondh_cli.environment import Environment, SetupError
from regiondh_cli.main import main
from regiondh_cli.requirements import Requirement

ABSENT = {"path": None, "version": None, "compiled": False, "error": None}
WORKS = {**ABSENT, "path": "/somewhere/detectron2/__init__.py", "version": "0.6"}
BROKEN = {**WORKS, "error": "AttributeError: module 'PIL.Image' has no attribute 'LINEAR'"}
KEEP = Source("keep")
GIT = Source("requirement", "git+https://example.org/detectron2.git")


def environment(folder):
    """One in a folder, with the interpreter of the tests."""
    return Environment(folder, Path(sys.executable), folder / "packages")


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
        assert detectron2_setup.parse_source(text) is None

    def test_word_for_the_registry(self):
        assert detectron2_setup.parse_source("registry") == REGISTRY

    def test_checkout_is_built_or_used_as_it_is(self, checkout):
        assert detectron2_setup.parse_source(str(checkout)) == Source("checkout", str(checkout))
        as_it_is = detectron2_setup.parse_source(str(checkout), build=False)
        assert as_it_is == Source("python-files", str(checkout))

    def test_relative_checkout_becomes_absolute(self, checkout, monkeypatch):
        monkeypatch.chdir(checkout.parent)
        assert detectron2_setup.parse_source("checkout").value == str(checkout)

    def test_wheel_file(self, tmp_path):
        wheel = tmp_path / "detectron2-0.6-py3-none-any.whl"
        wheel.write_bytes(b"")
        assert detectron2_setup.parse_source(str(wheel)) == Source("requirement", str(wheel))

    @pytest.mark.parametrize(
        "text",
        ["detectron2==0.6", GIT.value, "detectron2 @ git+https://example.org/detectron2.git"],
    )
    def test_pip_requirement(self, text):
        assert detectron2_setup.parse_source(text) == Source("requirement", text)

    @pytest.mark.parametrize("text", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b"])
    def test_missing_path_is_told(self, text):
        with pytest.raises(SetupError, match="no such file or folder"):
            detectron2_setup.parse_source(text)

    def test_folder_without_detectron2_is_told(self, tmp_path):
        with pytest.raises(SetupError, match=r"no detectron2/__init__\.py"):
            detectron2_setup.parse_source(str(tmp_path))


class TestChooseSource:
    def test_importable_one_is_kept(self):
        assert detectron2_setup.choose_source(None, WORKS, None) == KEEP
        assert detectron2_setup.choose_source(None, WORKS, GIT) == KEEP
        assert detectron2_setup.choose_source(None, WORKS, REGISTRY) == KEEP

    def test_registry_is_the_fallback(self):
        assert detectron2_setup.choose_source(None, ABSENT, None) == REGISTRY
        # Ours, but torn: it is put right without asking.
        assert detectron2_setup.choose_source(None, BROKEN, REGISTRY) == REGISTRY

    def test_changed_pin_is_followed(self):
        old = Source("registry", "an older pin")
        assert detectron2_setup.choose_source(None, WORKS, old) == REGISTRY

    @pytest.mark.parametrize("found", [ABSENT, WORKS, BROKEN])
    @pytest.mark.parametrize("recorded", [None, REGISTRY])
    def test_wish_wins(self, found, recorded):
        assert detectron2_setup.choose_source(GIT, found, recorded) == GIT

    def test_fulfilled_wish_is_not_built_again(self):
        assert detectron2_setup.choose_source(GIT, WORKS, GIT) == KEEP
        assert detectron2_setup.choose_source(GIT, BROKEN, GIT) == GIT

    def test_way_back_to_the_registry(self):
        assert detectron2_setup.choose_source(REGISTRY, WORKS, GIT) == REGISTRY

    def test_foreign_broken_one_is_told_and_not_replaced(self):
        with pytest.raises(SetupError) as told:
            detectron2_setup.choose_source(None, BROKEN, None)
        assert "\n" not in str(told.value)
        assert "too old for this Pillow" in str(told.value)
        assert "regiondh setup-detectron2 registry" in str(told.value)
        assert "DETECTRON2_SOURCE=registry" in str(told.value)


def make_wheel(folder: Path) -> None:
    """A wheel of the registry copy's name, with other content than the pinned one."""
    name, version = detectron2_setup.REGISTRY_REQUIREMENT.split("==")
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
        line = detectron2_setup.registry_line()
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}\n", line)

    def test_other_file_of_the_same_name_is_refused(self, tmp_path, monkeypatch):
        make_wheel(tmp_path)
        # Only the folder is asked, so the test needs no network.
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        venv = environment(tmp_path)
        with pytest.raises(SetupError, match="not the pinned file"):
            detectron2_setup.stage_detectron2(venv, REGISTRY, tmp_path)

    def test_stray_packages_stay_out(self):
        assert detectron2_setup.is_detectron2("detectron2")
        assert detectron2_setup.is_detectron2("sal_detectron2-0.7.2.dist-info")
        assert not detectron2_setup.is_detectron2("tools")
        record = "detectron2/__init__.py,,\ntools/train_net.py,,\ndetectron2-0.6.dist-info/RECORD,,"
        kept = detectron2_setup.without_stray_rows(record)
        assert kept == "detectron2/__init__.py,,\ndetectron2-0.6.dist-info/RECORD,,\n"


class TestPythonFiles:
    def test_checkout_is_staged_without_a_build(self, checkout, tmp_path):
        (checkout / "detectron2" / "layers" / "csrc").mkdir(parents=True)
        (checkout / "detectron2" / "layers" / "nms.py").write_text("")
        (checkout / "tools").mkdir()
        venv = environment(tmp_path / "venv")
        source = Source("python-files", str(checkout))
        staged = detectron2_setup.stage_detectron2(venv, source, tmp_path / "work")
        assert [path.name for path in staged.iterdir()] == ["detectron2"]
        assert (staged / "detectron2" / "layers" / "nms.py").is_file()
        assert not (staged / "detectron2" / "layers" / "csrc").exists()


class TestErrorLines:
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
        assert words in detectron2_setup.explain_import_error(error)

    def test_line_about_the_one_in_use(self):
        line = detectron2_setup.detectron2_line({**WORKS, "source": "found already installed"})
        assert "0.6" in line
        assert "/somewhere/detectron2" in line
        assert "without compiled part" in line


class Installed:
    """An environment in which pip installs what it is asked for, and Detectron2 is found after."""

    def __init__(self, folder, monkeypatch, lacking=()):
        self.folder = folder
        self.asked = []
        self.found = ABSENT
        self.staged = WORKS  # the answer about one that isn't installed yet
        monkeypatch.setattr(Environment, "current", lambda: environment(folder))
        monkeypatch.setattr(Environment, "probe", lambda env, first=None: self.probe(first))
        monkeypatch.setattr(Environment, "pip", self.pip)
        lines = [Requirement(name, ">=1", "detectron2-needs") for name in lacking]
        lines.append(Requirement("numpy"))
        monkeypatch.setattr(detectron2_setup, "requirements", lambda: lines)

    def pip(self, step, *arguments, env=None):
        self.asked.append(arguments)
        if "--target" in arguments:
            package = Path(arguments[arguments.index("--target") + 1]) / "detectron2"
            package.mkdir(parents=True)
            (package / "__init__.py").write_text("")
        return ""

    def probe(self, first):
        if first is not None:
            assert (first / "detectron2/__init__.py").is_file()
            return self.staged
        return WORKS if (self.folder / "packages/detectron2").is_dir() else self.found


class TestCommand:
    @pytest.fixture(autouse=True)
    def no_wish(self, monkeypatch):
        monkeypatch.delenv("DETECTRON2_SOURCE", raising=False)
        monkeypatch.delenv("DETECTRON2_BUILD", raising=False)

    def test_the_registry_copy_is_installed_where_there_is_none(
        self, tmp_path, monkeypatch, capsys
    ):
        (tmp_path / "packages").mkdir()
        installed = Installed(tmp_path, monkeypatch, ["t-no-such-package"])
        assert main(["setup-detectron2"]) == 0
        assert installed.asked[0] == ("install", "t-no-such-package>=1")
        assert (tmp_path / "packages/detectron2/__init__.py").is_file()
        assert capsys.readouterr().out.splitlines()[-1].startswith("[setup] Detectron2: registry")
        assert detectron2_setup.recorded_source(environment(tmp_path)) == REGISTRY

    def test_one_that_works_is_kept(self, tmp_path, monkeypatch, capsys):
        installed = Installed(tmp_path, monkeypatch)
        installed.found = WORKS
        assert main(["setup-detectron2"]) == 0
        assert installed.asked == []
        assert "found already installed" in capsys.readouterr().out

    def test_a_checkout_is_used_without_a_build(self, checkout, tmp_path, monkeypatch, capsys):
        (tmp_path / "packages").mkdir()
        installed = Installed(tmp_path, monkeypatch)
        assert main(["setup-detectron2", "--no-build", str(checkout)]) == 0
        assert not any("--target" in words for words in installed.asked)
        source = Source("python-files", str(checkout))
        assert detectron2_setup.recorded_source(environment(tmp_path)) == source

    def test_the_variable_names_a_source_too(self, tmp_path, monkeypatch, capsys):
        Installed(tmp_path, monkeypatch)
        monkeypatch.setenv("DETECTRON2_SOURCE", "./nowhere")
        assert main(["setup-detectron2"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ./nowhere: no such file or folder; name a checkout")
        assert error.count("\n") == 1

    def test_one_that_does_not_import_replaces_none(self, checkout, tmp_path, monkeypatch, capsys):
        old = tmp_path / "packages/detectron2/__init__.py"
        old.parent.mkdir(parents=True)
        old.write_text("# works")
        installed = Installed(tmp_path, monkeypatch)
        installed.staged = BROKEN
        assert main(["setup-detectron2", "--no-build", str(checkout)]) == 1
        error = capsys.readouterr().err
        assert "nothing was replaced" in error and error.count("\n") == 1
        assert old.read_text() == "# works"
        assert installed.asked == []  # nothing was uninstalled
        assert not list(tmp_path.glob("regiondh-setup-work-*"))

    def test_an_option_is_no_source(self, tmp_path, monkeypatch, capsys):
        installed = Installed(tmp_path, monkeypatch)
        monkeypatch.setenv("DETECTRON2_SOURCE", "--editable=/tmp")
        assert main(["setup-detectron2"]) == 1
        assert capsys.readouterr().err.startswith("error: --editable=/tmp: no such file")
        assert installed.asked == []

    def test_a_failed_step_is_one_line(self, tmp_path, monkeypatch, capsys):
        installed = Installed(tmp_path, monkeypatch)

        def fail(self, *arguments, **options):
            raise SetupError("Detectron2 from x failed: no luck")

        monkeypatch.setattr(Environment, "pip", fail)
        assert main(["setup-detectron2", "some-package"]) == 1
        assert capsys.readouterr().err == "error: Detectron2 from x failed: no luck\n"
        assert installed.asked == []


class TestRequirements:
    def test_lines_of_metadata(self):
        lines = [
            "torch>=2.4",
            "fvcore<0.1.6,>=0.1.5",
            "plain",
            'faiss-cpu>=1.9; extra == "search"',
            "pi-heif (>=1.0) ; extra == 'heic'",
            'colorama; sys_platform == "win32"',
        ]
        assert requirements.requirements(lines) == [
            Requirement("torch", ">=2.4"),
            Requirement("fvcore", "<0.1.6,>=0.1.5"),
            Requirement("plain"),
            Requirement("faiss-cpu", ">=1.9", "search"),
            Requirement("pi-heif", ">=1.0", "heic"),
        ]

    @pytest.mark.parametrize(
        ("version", "bounds"),
        [
            ("2.14.1+cu128", ">=2.4"),
            ("2.4", ">=2.4.0"),
            ("0.1.5.post20221221", ">=0.1.5,<0.1.6"),
            ("1.0", ""),
            ("1.10", ">1.9,!=1.11"),
            ("1.4.7", "~=1.4.2"),
            ("1.4.7", "==1.4.*"),
            ("1!2.0", ">=1.5"),
        ],
    )
    def test_within(self, version, bounds):
        assert requirements.satisfies(version, bounds)

    @pytest.mark.parametrize(
        ("version", "bounds"),
        [("2.3.9", ">=2.4"), ("0.1.6", ">=0.1.5,<0.1.6"), ("1.0", ">1.0"), ("1.5", "~=1.4.2")]
        + [("1.0.1", "==1.0"), ("1.0", "!=1.0.0")],
    )
    def test_outside(self, version, bounds):
        assert not requirements.satisfies(version, bounds)

    def test_bounds_agree_with_packaging(self):
        from packaging.specifiers import SpecifierSet

        versions = ["0.9", "1.0", "1.0.1", "1.2", "1.10", "2.0"]
        for bounds in (">=1.0", "<1.2", ">1.0,<=1.10", "!=1.2", "~=1.0", "~=1.0.0", "==1.0.1"):
            for version in versions:
                expected = version in SpecifierSet(bounds)
                assert requirements.satisfies(version, bounds) == expected, (version, bounds)
