"""The command that searches for photos by their copies."""

import json
import shutil

import pytest

from regiondh_cli.main import main
from regiondh_d2.data.copies import COPIES
from regiondh_d2.evaluation.copy_recall import ORDERS
from regiondh_d2.retrieval.code_store import read_codes, write_codes


@pytest.fixture(scope="module")
def photos(random_network, tmp_path_factory):
    """Three photos, and one that can't be read."""
    folder = tmp_path_factory.mktemp("photos")
    for i, scene in enumerate(sorted(random_network.scenes.rglob("*.jpg"))[:3]):
        shutil.copy(scene, folder / f"{i}.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return folder


@pytest.fixture
def command(random_network):
    """Runs the command with arguments, and returns its exit status."""

    def run(*words):
        words = ["evaluate-copies", "--config-file", random_network.config, *map(str, words)]
        return main([*words, *random_network.opts])

    return run


def test_a_folder_and_its_code_file(command, photos, random_network, tmp_path, capsys):
    """Both give the same numbers; photos that can't be read are told and left out."""
    out = tmp_path / "out.json"
    assert command("--input", photos, "--topk", 1, 3, "--json", out) == 0
    printed = capsys.readouterr()
    assert "broken.jpg" in printed.err
    lines = printed.out.splitlines()
    assert lines[0] == "3 photos, each with 5 copies, searched among 3 photos"
    found = json.loads(out.read_text())
    assert (found["num_photos"], found["num_database"], found["seed"]) == (3, 3, 0)
    names = ["as_it_is", *COPIES]
    for name in names:
        for order in ORDERS:
            assert 0 <= found[f"{name}/{order}/recall@1"] <= 1
            assert found[f"{name}/{order}/recall@3"] == 1  # of three
    assert found["as_it_is/activations/recall@1"] == 1
    values = [line.split()[-8:] for line in lines[2:]]
    shown = [
        [f"{found[f'{name}/{order}/recall@{k}']:.3f}" for order in ORDERS for k in (1, 3)]
        for name in names
    ]
    assert values == shown

    codes = str(tmp_path / "codes.h5")
    arguments = ["extract-codes", "--config-file", random_network.config, "--skip-bad"]
    arguments += ["--input", str(photos), "--output", codes, "--no-instances"]
    assert main([*arguments, *random_network.opts]) == 0
    assert command("--database", codes, "--topk", 1, 3, "--json", out) == 0
    assert json.loads(out.read_text()) == pytest.approx(found)
    capsys.readouterr()

    # Another photo under a name is not searched for by the code of the first.
    kept = (photos / "1.jpg").read_bytes()
    shutil.copy(photos / "0.jpg", photos / "1.jpg")
    assert command("--database", codes, "--topk", 1) == 0
    printed = capsys.readouterr()
    assert f"left out: {photos / '1.jpg'} has changed since it was encoded\n" in printed.err
    assert printed.out.startswith("2 photos, each with 5 copies, searched among 3 photos")
    (photos / "1.jpg").write_bytes(kept)

    items = read_codes(codes)
    items.activations = None
    write_codes(codes, items)
    assert command("--database", codes) == 1
    assert "no activations in" in capsys.readouterr().err


def test_photos_are_where_they_were(command, tmp_path, capsys):
    assert command("--input", tmp_path) == 1
    assert "no images in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("--input", tmp_path, "--dataset", "some")
    assert "not allowed with" in capsys.readouterr().err
