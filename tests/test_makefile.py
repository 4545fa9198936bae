"""make demo PHOTOS=...: the folder reaches the command as it was given."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Tells its arguments, each behind a mark.
PYTHON = """#!/bin/sh
for argument in "$@"; do printf '<%s>' "$argument"; done
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def make(tmp_path):
    """A function that runs make demo where python is a script that tells its arguments."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(*arguments, **environment):
        env = {**os.environ, **environment}
        env.pop("MAKEFLAGS", None)
        command = ["make", "-s", "PYTHON=true", "demo", *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr
        return os.fsdecode(result.stdout)

    return run


@pytest.mark.parametrize(
    "folder",
    [
        "photos",
        "../relative folder/",
        "/a  b/",
        "-x",
        "--query",
        "a$b $$ ${c} $(d) $(e",
        'it\'s "quoted" `id` \\ \\n ; & | > < * ? # !',
        "世界 \udce9",
        "~user",
        "a=b",
        "a\nb",
    ],
)
def test_photos_reach_the_command_as_given(make, folder):
    expected = f"<tools/search_photos.py><--><{folder}>"
    assert make(f"PHOTOS={folder}") == expected
    assert make(PHOTOS=folder) == expected


@pytest.mark.parametrize("arguments", [(), ("PHOTOS=",)])
def test_without_photos_the_demo_runs(make, arguments):
    assert make(*arguments) == "<tools/demo.py>"


def test_the_words_of_make_are_read_by_the_command(load_tool):
    args = load_tool("search_photos").build_parser().parse_args(["--", "-x $y"])
    assert str(args.photos) == "-x $y"
