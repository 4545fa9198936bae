"""tools/search_photos.py: a folder of photos becomes searchable, with the shipped network."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders import code_set
from programs import run_program
from regiondh_d2.checkpoint.zoo import FINGERPRINTS
from regiondh_d2.data import generate_scenes
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.utils.file_io import carries_mark

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("search_photos")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    generate_scenes(folder / "all", num_database=6, num_queries=1)
    return sorted((folder / "all").rglob("*.jpg"))


@pytest.fixture
def place(scenes, tmp_path, monkeypatch):
    """A working directory with two folders of photos, "mine" and "yours"."""
    for folder, photos in (("mine", scenes[:3]), ("yours", scenes[3:6])):
        (tmp_path / folder).mkdir()
        for name, photo in zip(("a.jpg", "b.jpg", "c.jpg"), photos, strict=True):
            shutil.copy(photo, tmp_path / folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def steps(tool, monkeypatch):
    """The steps are only noted, and succeed; a list of their arguments."""
    seen = []

    def load(name):
        def main(words):
            seen.append([name, *words])
            return 0

        return main

    monkeypatch.setattr(tool, "subcommand", load)
    return seen


def answers_of(printed):
    """The names in the table of answers."""
    lines = printed.split("rank  distance  image\n")[1].split("\n\n")[0].splitlines()
    return [line.split(maxsplit=2)[2] for line in lines]


def test_as_a_program(place):
    """Encoded, indexed, searched and drawn in one process, and a broken photo is left out."""
    (place / "mine" / "broken.jpg").write_bytes(b"no image")
    result = run_program([ROOT / "tools/search_photos.py", "mine"], cwd=place)
    assert result.returncode == 0, result.stderr
    assert "unreadable" in result.stderr
    assert result.stdout.count("$ regiondh ") == 3
    codes = read_codes(place / "output/photos/photos.h5")
    assert (len(codes), codes.bits) == (3, 64)
    record = json.loads((place / "output/photos/index/index.json").read_text())
    assert record["network"] == "effnetlite_voc07_64"
    with Image.open(place / "output/photos/answers.png") as picture:
        assert picture.width > 300
    assert carries_mark(place / "output/photos")
    assert len(answers_of(result.stdout)) == 3


def test_again_with_changes_and_with_another_folder(tool, place, scenes, monkeypatch, capsys):
    """What was encoded stays; answers come from the folder that is named, as it is now."""
    monkeypatch.setattr(tool, "CONFIG", "voc07/regiondh_effnetlite0_64")  # is faster
    assert tool.main(["mine", "--output", "mine/out"]) == 0
    assert tool.main(["yours", "--output", "mine/out", "--query", "mine/b.jpg"]) == 0
    printed = capsys.readouterr()
    assert sorted(answers_of(printed.out.split("$ regiondh search ")[2])) == [
        str(place / "yours" / name) for name in ("a.jpg", "b.jpg", "c.jpg")
    ]
    assert len(read_codes("mine/out/photos.h5")) == 6

    (place / "mine" / "a.jpg").unlink()
    shutil.copy(scenes[6], place / "mine" / "b.jpg")
    shutil.copy(place / "mine/out/answers.png", place / "mine" / "grid.png")
    shutil.copy(scenes[6], place / "query.jpg")
    capsys.readouterr()
    assert tool.main(["mine", "--output", "mine/out", "--query", "query.jpg"]) == 0
    printed = capsys.readouterr()
    assert "1 of them encoded now" in printed.out
    found = answers_of(printed.out)
    assert found == [str(place / "mine" / name) for name in ("b.jpg", "c.jpg")]
    table = printed.out.split("rank  distance  image\n")[1]
    assert table.split()[:2] == ["1", "0"]


def test_the_commands_that_are_printed_do_the_same(tool, steps, place, monkeypatch, capsys):
    monkeypatch.setattr(tool, "choose_query", lambda codes, photos: "chosen 'one'.jpg")
    assert tool.main(["mine", "--output", "out put"]) == 0
    network = ["--config-file", str(tool.CONFIG)]
    codes, index, picture = (f"out put/{name}" for name in ("photos.h5", "index", "answers.png"))
    assert steps == [
        ["extract-codes", *network, "--resume", "--skip-bad", "--input", "mine", "--output", codes],
        ["build-index", codes, "--output", index],
        ["search", *network, "--index", index, "--within", "mine"]
        + ["--query", "chosen 'one'.jpg", "--save", picture],
    ]
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith("$ regiondh ")]
    assert len(lines) == 3
    (page,) = (x for x in printed if x.startswith("click through the photos: "))
    assert page.endswith("regiondh serve --index 'out put/index'")
    for line, step in zip(lines, steps, strict=True):
        words = subprocess.run(
            ["sh", "-c", f'for word in {line[len("$ regiondh ") :]}; do echo "$word"; done'],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert words == step


@pytest.mark.parametrize("finished", [True, False])
def test_an_output_stays_with_the_network_it_was_begun_with(
    tool, steps, place, monkeypatch, capsys, finished
):
    monkeypatch.setattr(tool, "choose_query", lambda codes, photos: "a.jpg")
    (old,) = (print_ for print_, name in FINGERPRINTS.items() if name == "effnetlite0_voc07_64")
    codes = place / ("out/photos.h5" if finished else "out/photos.h5.parts/part-1.h5")
    codes.parent.mkdir(parents=True)
    write_codes(codes, code_set(np.zeros((1, 8), np.uint8), model_fingerprint=old))
    if finished:
        (place / "out/index").mkdir()
    assert tool.main(["mine", "--output", "out"]) == 0
    config = ["--config-file", "voc07/regiondh_effnetlite0_64"]
    assert [step[1:3] for step in steps] == [config, ["out/photos.h5", "--output"], config]
    note = "out/photos.h5 is by the network effnetlite0_voc07_64 and stays with it"
    move = "; `regiondh reencode out/index` moves it to effnetlite_voc07_64"
    assert capsys.readouterr().out.splitlines()[0] == note + (move if finished else "")


def test_patterns_are_handed_on(tool, steps, place, monkeypatch):
    monkeypatch.setattr(tool, "choose_query", lambda codes, photos: "a.jpg")
    assert tool.main(["mine", "--exclude", "raw*", "--exclude", "-x", "--output", "out"]) == 0
    assert steps[0][5:8] == ["--exclude=raw*", "--exclude=-x", "--input"]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_step_that_fails_ends_the_command(tool, steps, place, monkeypatch, failing):
    monkeypatch.setattr(tool, "choose_query", lambda codes, photos: "q.jpg")
    load, statuses = tool.subcommand, [0, 0, 0]
    statuses[failing] = 1

    def load_failing(name):
        main = load(name)
        return lambda words: main(words) or statuses[len(steps) - 1]

    monkeypatch.setattr(tool, "subcommand", load_failing)
    assert tool.main(["mine"]) == 1
    assert len(steps) == failing + 1


@pytest.mark.parametrize("output", ["new/out", "out"])
def test_a_folder_in_which_nothing_was_written_stays_as_it_was(tool, place, capsys, output):
    (place / "empty").mkdir()
    (place / "out").mkdir()
    (place / "out" / "photos.h5").write_bytes(b"codes of another program")
    before = sorted(place.rglob("*"))
    assert tool.main(["empty" if output == "new/out" else "mine", "--output", output]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert sorted(place.rglob("*")) == before


def test_an_interrupted_step_is_told_how_to_go_on(tool, steps, place, monkeypatch, capsys):
    def load(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "subcommand", load)
    assert tool.main(["mine"]) == 130
    assert capsys.readouterr().err == "interrupted: run it again to continue\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder of photos"),
        (["mine/a.jpg"], "mine/a.jpg: is no folder: name the folder of photos"),
        (["mine", "--query", "typo.jpg"], "typo.jpg: No such file"),
        (["mine", "--query", "notes.txt"], "notes.txt: "),
        (["mine", "--query", "mine"], "mine: Is a directory"),
        (["mine", "--output", "notes.txt"], "notes.txt: is a file; name a folder"),
        (["mine", "--output", "notes.txt/out"], "notes.txt"),
        (["mine", "--output", "mine"], "mine: the photos are in this folder"),
        (["mine", "--output", "."], ".: the photos are in this folder"),
        (["mine", "--output", "yours"], "yours: holds a.jpg, which isn't of this program"),
        (["mine", "--output", "broken"], "broken/index: holds files but no index"),
        (["mine", "--output", "drawn"], "drawn/answers.png: exists, and this program did not"),
    ],
)
def test_what_would_fail_later_is_told_first(tool, steps, place, capsys, arguments, message):
    (place / "notes.txt").write_text("mine")
    for folder in ("broken/index", "drawn"):
        (place / folder).mkdir(parents=True)
    (place / "broken/index/notes.txt").write_text("mine")
    (place / "drawn/answers.png").write_bytes(b"of another program")

    def contents():
        return {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}

    before = contents()
    assert tool.main(arguments) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if "no CUDA device" not in line]
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert message in error[0]
    assert "--overwrite" not in error[0]  # which this command does not have
    assert steps == []
    assert contents() == before


def test_an_output_of_version_0_1_goes_on(tool, steps, place, monkeypatch):
    """It has no mark."""
    monkeypatch.setattr(tool, "choose_query", lambda codes, photos: "q.jpg")
    old = place / "out"
    old.mkdir()
    for name in ("photos.h5", ".DS_Store"):
        (old / name).write_bytes(b"")
    assert tool.main(["mine", "--output", "out"]) == 0
    assert len(steps) == 3
    assert carries_mark(old)


def test_the_default_query_is_one_that_was_encoded_and_is_there(tool, place):
    names = [str(place / folder / f"{name}.jpg") for folder in ("yours", "mine") for name in "abc"]
    names.append(str(place / "mine too" / "b.jpg"))
    items = code_set(
        np.zeros((7, 1), np.uint8),
        names=names,
        roots=[str(place)],
        size=np.array([os.stat(name).st_size if os.path.exists(name) else 1 for name in names]),
    )
    write_codes(place / "codes.h5", items)
    (place / "link").symlink_to(place / "mine")

    def chosen(folder):
        return os.path.relpath(tool.choose_query(place / "codes.h5", Path(folder)), place)

    assert chosen("mine") == chosen("link") == "mine/b.jpg"
    (place / "mine/b.jpg").write_bytes(b"changed meanwhile")
    assert chosen("mine") == "mine/c.jpg"
    (place / "mine/c.jpg").unlink()
    assert chosen("mine") == "mine/a.jpg"
    (place / "mine/a.jpg").unlink()
    with pytest.raises(ValueError, match="mine: no photo in it can be read"):
        chosen("mine")
