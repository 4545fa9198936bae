"""Shards of an extraction, merged, are the file of a single run, byte for byte."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from extraction import extract_folder, fake_model
from pictures import save
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.shards import Shard
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.utils.errors import RegionDHError

OPTIONS = {"batch_size": 3, "activations": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two padded sizes in two folders, and one that can't be read."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(23):
        save(folder / "ab"[number % 2] / f"{number:02d}.png", height=20 if number % 3 else 40)
    (folder / "b" / "05.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def inputs(folder):
    return [folder / "b", folder / "a"]


@pytest.fixture(scope="module")
def single(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("single") / "codes.h5"
    extract_folder(inputs, output, skip_bad=True, **OPTIONS)
    return output.read_bytes()


def extract_shards(inputs, folder, count, **options):
    outputs = [folder / f"codes-{i}.h5" for i in range(1, count + 1)]
    for number, output in enumerate(outputs, 1):
        run = {"skip_bad": True, "shard": (number, count), **OPTIONS, **options}
        extract_folder(inputs, output, **run)
    return [str(output) for output in outputs]


@pytest.fixture(scope="module")
def merge(load_tool):
    return load_tool("merge_codes").main


@pytest.mark.parametrize("count", [1, 2, 5])
def test_merged_is_the_single_run(inputs, single, merge, tmp_path, count):
    shards = extract_shards(inputs, tmp_path, count)
    rows = [len(read_codes(path)) for path in shards]
    assert sum(rows) == 22
    assert min(rows) > 0
    assert merge([*shards[::-1], "--output", str(tmp_path / "all.h5")]) == 0
    assert (tmp_path / "all.h5").read_bytes() == single


def test_shards_that_were_interrupted_and_resumed(inputs, single, merge, tmp_path, capsys):
    calls = []

    def dying_model(given):
        calls.append(len(given))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fake_model(given)

    outputs = [tmp_path / f"codes-{i}.h5" for i in (1, 2)]
    for number, output in enumerate(outputs, 1):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            extract_folder(
                inputs, output, shard=(number, 2), skip_bad=True, model=dying_model, **OPTIONS
            )
    command = [*map(str, outputs), "--output", str(tmp_path / "all.h5")]
    assert merge(command) == 1
    assert "codes-1.h5: its extraction was interrupted" in capsys.readouterr().err
    for number, output in enumerate(outputs, 1):
        extract_folder(inputs, output, shard=(number, 2), skip_bad=True, resume=True, **OPTIONS)
    assert merge(command) == 0
    assert (tmp_path / "all.h5").read_bytes() == single


def test_after_photos_came_and_went(tmp_path, merge):
    """Shards that are resumed after a change merge to what the images are now."""
    folder = tmp_path / "images"
    for number in range(9):
        save(folder / f"{number}.png")
    extract_shards([folder], tmp_path, 2)
    os.remove(folder / "3.png")
    save(folder / "22.png")
    shards = extract_shards([folder], tmp_path, 2, resume=True)
    assert merge([*shards, "--output", str(tmp_path / "all.h5")]) == 0
    merged = read_codes(tmp_path / "all.h5")
    names = [os.path.basename(name) for name in merged.file_names]
    # A row of a deleted photo stays, before the others, as without shards.
    assert names == [
        "3.png",
        "0.png",
        "1.png",
        "2.png",
        "22.png",
        *(f"{i}.png" for i in range(4, 9)),
    ]
    extract_folder(folder, tmp_path / "one.h5", **OPTIONS)
    one = read_codes(tmp_path / "one.h5")
    np.testing.assert_array_equal(merged.codes[1:], one.codes)


def test_what_cannot_be_merged_is_told(inputs, merge, tmp_path, capsys):
    shards = extract_shards(inputs, tmp_path, 3)
    (tmp_path / "other").mkdir()
    others = extract_shards(inputs[:1], tmp_path / "other", 3)
    shutil.copy(shards[0], tmp_path / "copy.h5")
    extract_folder(inputs, tmp_path / "whole.h5", skip_bad=True, **OPTIONS)
    for files, message in (
        (shards[:2], "shard 3 of 3 is missing: extract it and name it, too"),
        ([*shards, str(tmp_path / "copy.h5")], "name each shard once"),
        ([*shards[:2], others[2]], "of another list of images than"),
        ([*shards[:2], str(tmp_path / "whole.h5")], "whole.h5: not a shard"),
    ):
        assert merge([*files, "--output", str(tmp_path / "all.h5")]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "all.h5").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_fingerprint": "e" * 64}, "model_fingerprint"),
        ({"settings": "INPUT.FORMAT 'BGR'"}, "settings"),
        ({"activations": False}, "activations"),
    ],
)
def test_the_shard_that_does_not_fit_is_named(inputs, merge, tmp_path, capsys, changes, what):
    shards = extract_shards(inputs, tmp_path, 3)
    os.remove(shards[1])
    extract_folder(inputs, Path(shards[1]), shard=(2, 3), skip_bad=True, **OPTIONS | changes)
    assert merge([*shards, "--output", str(tmp_path / "all.h5")]) == 1
    error = capsys.readouterr().err
    assert re.search(rf"codes-2\.h5: does not fit .*codes-1\.h5 .*{what}.*extract it again", error)
    assert error.count("\n") == 1


def test_a_merge_loses_no_codes(inputs, merge, tmp_path, capsys):
    shards = extract_shards(inputs, tmp_path, 2)
    other = save(tmp_path / "other" / "1.png").parent
    extract_folder(other, tmp_path / "all.h5", **OPTIONS)
    before = (tmp_path / "all.h5").read_bytes()
    command = [*shards, "--output", str(tmp_path / "all.h5")]
    assert merge(command) == 1
    assert "holds codes of 1 images that the new file lacks" in capsys.readouterr().err
    assert (tmp_path / "all.h5").read_bytes() == before
    assert merge([*command, "--overwrite"]) == 0
    assert merge(command) == 0


def test_more_shards_than_batches(inputs, tmp_path):
    with pytest.raises(RegionDHError, match="shard 40/40 has no images: the 23 images make"):
        extract_folder(inputs, tmp_path / "codes.h5", shard=(40, 40), skip_bad=True, **OPTIONS)


def test_the_text_of_a_shard():
    shard = Shard(2, 4, 4000, "0f" * 32)
    assert Shard.parse(str(shard)) == shard
    with pytest.raises(CodeFileError, match="extract the shard again"):
        Shard.parse("2 of 4")


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/", "a/b", "-1/4", "1/4/2", "1/9999999999"])
def test_wrong_words(text, load_tool, capsys):
    words = ["--config-file", "c", "--input", "x", "--output", "o", "--shard", text]
    with pytest.raises(SystemExit) as ended:
        load_tool("extract_codes").main(words)
    assert ended.value.code == 2
    assert "--shard" in capsys.readouterr().err


def test_the_job_in_the_documents_is_understood(load_tool):
    """The command in the YAML of docs/scaling.md, as a pod would run it."""
    text = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    (job,) = re.findall(
        r"exec regiondh extract-codes (.*?--resume)$", text, re.DOTALL | re.MULTILINE
    )
    args = load_tool("extract_codes").build_parser().parse_args(job.replace("$i", "64").split())
    assert args.shard == (64, 64)
    assert args.output == "/shared/codes-64.h5"
