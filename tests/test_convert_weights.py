"""The command line that converts weights."""

import hashlib
import re

import pytest
import torch
import torchvision

from regiondh_d2 import checkpoint
from regiondh_d2.checkpoint.conversion import ConvertedWeights, torchvision_to_detectron2


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("convert_weights")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A file as torchvision's: a ResNet-50."""
    path = tmp_path_factory.mktemp("source") / "resnet50.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), path)
    return str(path)


def test_a_file_is_written_with_full_names(tool, source, tmp_path, capsys):
    output = tmp_path / "new" / "weights.pth"
    assert tool.main([source, str(output), "--layout", "c4"]) == 0
    out = capsys.readouterr().out
    written = torch.load(output, weights_only=True)["model"]
    expected = torchvision_to_detectron2(torch.load(source, weights_only=True), "c4")
    assert written.keys() == expected.model.keys()
    assert all(torch.equal(written[k], v) for k, v in expected.model.items())
    assert f"{output}: {len(written)} tensors" in out
    assert "left out: " in out
    assert all(name in out for name in ("fc.weight", "fc.bias", "bn1.num_batches_tracked"))
    assert [p.name for p in output.parent.iterdir()] == ["weights.pth"]


def test_a_source_is_converted(tool, tmp_path, monkeypatch):
    weights = ConvertedWeights({"a": torch.ones(2)}, [])
    monkeypatch.setitem(checkpoint.SOURCES, "test/tiny", lambda: weights)
    assert tool.main(["regiondh://test/tiny", str(tmp_path / "w.pth")]) == 0
    assert torch.load(tmp_path / "w.pth")["model"]["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("content", "extra", "message"),
    [
        (None, [], "weights.pth"),
        (b"damaged", [], r"weights\.pth can't be read as weights"),
        ({"a": torch.ones(1)}, [], "differs first in"),
        ({"a": "text"}, [], "holds no state dict"),
        ("regiondh://nothing", [], "known: .*regiondh://torchvision/vgg16"),
        ("regiondh://torchvision/vgg16", ["--layout", "fpn"], "leave the layout 'fpn' out"),
    ],
    ids=["absent", "damaged", "unknown", "other", "source", "layout"],
)
def test_failures_are_one_line_and_write_nothing(tool, tmp_path, capsys, content, extra, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        torch.save(content, path)
    source = content if isinstance(content, str) else str(path)
    before = sorted(tmp_path.iterdir())
    assert tool.main([source, str(tmp_path / "out.pth"), *extra]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_leaves_the_old_file(tool, source, full_disk, tmp_path, capsys):
    output = tmp_path / "weights.pth"
    output.write_bytes(b"old")
    with full_disk(1_000_000):  # of 100 million bytes
        assert tool.main([source, str(output), "--layout", "fpn", "--overwrite"]) == 1
    error = capsys.readouterr().err
    assert error == f"error: {output} can't be written; is the disk full?\n"
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]
    assert output.read_bytes() == b"old"


def test_halving_a_checkpoint(tool, tmp_path, capsys):
    model = {"conv.weight": torch.randn(3, 4, 1, 1), "norm.running_var": torch.tensor([1e-9])}
    torch.save({"model": model, "optimizer": {"state": 1}}, tmp_path / "model_final.pth")
    output = tmp_path / "small.pth"
    arguments = [str(tmp_path / "model_final.pth"), str(output), "--halve"]
    assert tool.main(arguments) == 0
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    assert capsys.readouterr().out == f"{output}: 2 tensors\nsha256: {digest}\n"
    written = torch.load(output, weights_only=True)["model"]
    assert {k: v.dtype for k, v in written.items()} == {
        "conv.weight": torch.float16,
        "norm.running_var": torch.float32,
    }
    # Its own output is replaced, by the same bytes; others' files aren't.
    assert tool.main(arguments) == 0
    assert hashlib.sha256(output.read_bytes()).hexdigest() == digest
    output.write_bytes(b"of others")
    assert tool.main(arguments) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"damaged", r"can't be read as weights"),
        ({"a": torch.ones(1)}, "is no checkpoint of a training"),
        ({"model": {"a": 1}}, "is no checkpoint of a training"),
        ({"model": {"a": torch.full((2, 2), 1e5)}}, "a holds a number that isn't finite in half"),
        (None, "no such file"),
    ],
)
def test_what_cannot_be_halved(tool, tmp_path, capsys, content, message):
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert tool.main([str(path), str(tmp_path / "small.pth"), "--halve"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error, re.IGNORECASE), error
    assert not (tmp_path / "small.pth").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.pth"],
        ["a.pth", "b.pth", "--layout", "c5"],
        ["a.pth", "b.bin"],
        ["a.pth", "b.pth", "--halve", "--layout", "c4"],
    ],
)
def test_wrong_arguments_exit_with_2(tool, arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        tool.main(arguments)
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_help_lists_the_sources(tool):
    text = tool.build_parser().format_help()
    assert [s for s in checkpoint.SOURCES if s not in text] == []
