"""The command that moves an index to another network."""

import shutil

import pytest
import torch

from regiondh_cli.main import main
from regiondh_d2.checkpoint.zoo import CONFIGS, FINGERPRINTS
from regiondh_d2.retrieval.index_folder import read_index_folder


@pytest.fixture(scope="module")
def encoded(random_network, tmp_path_factory):
    """Three photos, their codes and an index; and the config and weights of another network."""
    folder = tmp_path_factory.mktemp("reencode")
    (folder / "photos").mkdir()
    for scene in sorted(random_network.scenes.rglob("*.jpg"))[:3]:
        shutil.copy(scene, folder / "photos")
    codes = str(folder / "codes.h5")
    network = ["--config-file", random_network.config]
    images = ["--input", str(folder / "photos"), "--output", codes]
    assert main(["extract-codes", *network, *images, *random_network.opts]) == 0
    index = str(folder / "index")
    assert main(["build-index", codes, "--output", index, "--engine", "numpy"]) == 0
    weights = torch.load(random_network.weights)["model"]
    name = next(key for key in weights if "image_hash" in key and key.endswith("bias"))
    weights[name] = weights[name] + 1
    torch.save({"model": weights}, folder / "other.pth")
    return folder


def test_command(encoded, random_network, tmp_path, monkeypatch, capsys):
    index, photo = str(tmp_path / "index"), str(next((encoded / "photos").iterdir()))
    shutil.copytree(encoded / "index", index)
    other = [*random_network.opts, "MODEL.WEIGHTS", str(encoded / "other.pth")]
    new = ["--config-file", random_network.config, "--batch-size", "2", *other]
    old_print = read_index_folder(index).items.model_fingerprint
    search = ["search", "--index", index, "--query", photo, "--topk", "1"]

    # An index picks its network, if that comes with the package.
    assert main([*search, *random_network.opts]) == 1
    assert "its network doesn't come with the package" in capsys.readouterr().err
    monkeypatch.setitem(FINGERPRINTS, old_print, "some")
    monkeypatch.setitem(CONFIGS, "some", random_network.config)
    assert main([*search, *random_network.opts]) == 0

    capsys.readouterr()
    assert main(["reencode", index, *new]) == 0
    printed = capsys.readouterr().out
    assert f"{index}: 3 photos, encoded by " in printed
    assert read_index_folder(index).items.model_fingerprint != old_print
    assert main([*search, "--config-file", random_network.config, *random_network.opts]) == 1
    assert "was encoded by model" in capsys.readouterr().err
    assert main([*search, "--config-file", random_network.config, *other]) == 0
    first = capsys.readouterr().out.splitlines()[2].split(maxsplit=2)
    assert first == ["1", "0", photo]
    assert main(["reencode", index, *new]) == 0
    assert capsys.readouterr().out.endswith("is of this network already; nothing to do\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "effnetlite0"], "network: 'effnetlite0' isn't one of effnetlite0_voc07_64"),
        (["--config-file", "nothing.yaml"], "nothing.yaml"),
        ([], "nowhere: no index folder"),
    ],
)
def test_what_is_refused(tmp_path, arguments, message, capsys):
    assert main(["reencode", str(tmp_path / "nowhere"), *arguments]) == 1
    errors = [x for x in capsys.readouterr().err.splitlines() if "no CUDA device" not in x]
    assert len(errors) == 1
    assert message in errors[0]
