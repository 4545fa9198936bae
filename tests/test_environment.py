"""An environment: its commands are logged and told, and its notes are whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from regiondh_cli import environment
from regiondh_cli.environment import PROBE, Environment, SetupError, read_json, write_json


@pytest.fixture
def venv(tmp_path):
    """One in a folder, with the interpreter of the tests."""
    return Environment(tmp_path, Path(sys.executable), tmp_path / "packages")


def test_failed_command_is_logged_and_told(venv):
    command = [sys.executable, "-c", "import sys; print('ERROR: no luck'); sys.exit(3)"]
    with pytest.raises(SetupError, match="a step failed: ERROR: no luck"):
        venv.run("a step", command)
    assert "no luck" in venv.log.read_text()


def test_torn_note_is_no_note(tmp_path):
    note = tmp_path / "note.json"
    note.write_text('{"key": ')
    assert read_json(note) == {}
    write_json(note, {"key": "x"})
    assert read_json(note) == {"key": "x"}
    assert [path.name for path in tmp_path.iterdir()] == ["note.json"]


def test_probe_answers_without_detectron2():
    # -S hides every installed package, so the answer is the one of a bare environment.
    command = [sys.executable, "-S", "-P", "-c", PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert json.loads(done.stdout) == {
        "path": None,
        "version": None,
        "compiled": False,
        "error": None,
    }


def test_packages_that_come_first(venv):
    package = venv.folder / "first/detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('no luck')")
    found = venv.probe(package.parent)
    assert found["path"] == str(package / "__init__.py")
    assert found["error"] == "RuntimeError: no luck"


def test_a_work_folder_is_for_one_process_and_goes_after_a_kill(venv):
    left = venv.folder / f"{environment.WORK_PREFIX}of-a-killed-one"
    left.mkdir()
    (left / "file").touch()
    with venv.work_folder() as work:
        assert not left.exists()
        with (
            pytest.raises(SetupError, match="another process installs Detectron2"),
            venv.work_folder(),
        ):
            pass
        assert work.is_dir()
    assert not work.exists()


def test_what_takes_long_tells_that_it_lives(venv, monkeypatch, capsys):
    monkeypatch.setattr(environment, "HEARTBEAT_S", 0.0)
    command = [sys.executable, "-c", "print('building', flush=True); print('done')"]
    assert venv.run("a step", command) == "building\ndone\n"
    assert "[setup]     0 s: " in capsys.readouterr().out


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
def test_one_line_with_a_fix(output, words):
    line = environment.explain_failure("Detectron2 from x", output, Path("setup.log"))
    assert words in line
    assert "setup.log" in line
    assert "\n" not in line
