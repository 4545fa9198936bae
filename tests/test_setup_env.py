"""The set-up script: when a stamp is believed, and what it leaves alone."""

import importlib.util
import re
import sys
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
SetupError = setup_env.SetupError


class TestStampKey:
    @pytest.fixture
    def root(self, tmp_path):
        for name in setup_env.STAMPED:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
        return tmp_path

    def key(self, root, **changes):
        facts = {"source": "", "build": True, "system_site": False, "python": "3.11", **changes}
        return setup_env.stamp_key(root, **facts)

    def test_same_facts_same_key(self, root):
        assert self.key(root) == self.key(root)
        assert self.key(root, source=" x ") == self.key(root, source="x")

    @pytest.mark.parametrize("name", setup_env.STAMPED)
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


class TestEnvironment:
    def test_folder_that_is_no_environment_is_left_alone(self, tmp_path):
        (tmp_path / "precious.txt").write_text("mine")
        with pytest.raises(SetupError, match="not a virtual environment"):
            setup_env.VirtualEnvironment(tmp_path).ensure(system_site=False)
        assert (tmp_path / "precious.txt").is_file()

    def test_failed_set_up_leaves_no_stamp(self, tmp_path, monkeypatch, capsys):
        def fail(self, *arguments, **options):
            raise SetupError("stopped here")

        folder = tmp_path / "venv"
        folder.mkdir()
        venv = setup_env.VirtualEnvironment(folder)
        setup_env.write_json(venv.stamp, {"key": "of another state"})
        monkeypatch.setattr(setup_env.VirtualEnvironment, "ensure", fail)
        monkeypatch.delenv("DETECTRON2_SOURCE", raising=False)
        assert setup_env.main(["--venv", str(folder)]) == 1
        assert not venv.stamp.exists()
        assert capsys.readouterr().err == "setup: stopped here\n"

    def test_a_source_that_cannot_be_one_is_told_with_its_variable(self, monkeypatch, capsys):
        monkeypatch.setenv("DETECTRON2_SOURCE", "./nowhere")
        assert setup_env.main([]) == 1
        assert capsys.readouterr().err.startswith("setup: DETECTRON2_SOURCE=./nowhere: no such ")


class TestSetupFiles:
    def test_setup_py_imports_neither_torch_nor_detectron2(self):
        imports = re.findall(r"^(?:from|import)\s+(\w+)", (ROOT / "setup.py").read_text(), re.M)
        assert set(imports) <= {"pathlib", "re", "setuptools"}

    def test_constraints_are_exact(self):
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", pin) for pin in pins)
        names = [pin.split("==")[0].lower() for pin in pins]
        assert len(names) == len(set(names))
