"""Code files: what is written comes back, and whatever is wrong is one line that names the file."""

import contextlib
import os

import h5py
import numpy as np
import pytest

from regiondh_d2.retrieval import code_store
from regiondh_d2.retrieval.code_store import (
    CodeFileError,
    CodeSet,
    InstanceCodes,
    check_comparable,
    pack_codes,
    read_codes,
    unpack_codes,
    write_codes,
    write_json,
)


def make_code_set(rows=5, bits=12, instances=True, **changes):
    rng = np.random.default_rng(0)
    values = {
        "codes": pack_codes(rng.random((rows, bits)) < 0.5),
        "bits": bits,
        "image_ids": [f"{i:06d}" for i in range(rows)],
        "file_names": [f"images/größe {i}.jpg" for i in range(rows)],
        "labels": (rng.random((rows, 3)) < 0.5).astype(np.uint8),
        "class_names": ["cat", "dog", "vögel"],
        "dataset": "some_val",
        "config": "some.yaml",
        "count_difficult": False,
        "model_fingerprint": "ab" * 32,
        "activations": rng.random((rows, bits)).astype(np.float16),
        "features": rng.random((rows, 7)).astype(np.float16),
    }
    if instances:
        values["instances"] = InstanceCodes(
            codes=pack_codes(rng.random((4, 9)) < 0.5),
            bits=9,
            image_index=np.array([0, 0, 2, rows - 1]),
            boxes=rng.random((4, 4)).astype(np.float32),
            scores=rng.random(4).astype(np.float32),
            classes=np.array([0, 2, 1, 1]),
        )
    return CodeSet(**(values | changes))


def assert_same(a, b):
    for name, value in vars(a).items():
        other = getattr(b, name)
        if name == "instances" and value is not None:
            assert_same(value, other)
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other)
            assert value.dtype == other.dtype, name
        else:
            assert value == other, name


@pytest.mark.parametrize("bits", [1, 8, 12, 48, 64, 65])
def test_pack_and_unpack(bits):
    codes = np.random.default_rng(bits).random((6, bits)) < 0.5
    packed = pack_codes(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == (6, -(-bits // 8))
    np.testing.assert_array_equal(unpack_codes(packed, bits), codes)


@pytest.mark.parametrize(
    "code_set",
    [
        make_code_set(),
        make_code_set(
            instances=False, labels=None, class_names=[], activations=None, features=None
        ),
        make_code_set(rows=0, instances=False, labels=None, activations=None, features=None),
    ],
    ids=["full", "minimal", "empty"],
)
def test_round_trip(tmp_path, code_set):
    path = tmp_path / "new folder" / "codes.h5"
    write_codes(path, code_set)
    assert_same(code_set, read_codes(path))
    assert os.listdir(path.parent) == ["codes.h5"]


def test_layout_is_the_documented_one(tmp_path):
    write_codes(tmp_path / "codes.h5", make_code_set())
    with h5py.File(tmp_path / "codes.h5") as file:
        assert file.attrs["format"] == b"regiondh-codes"
        assert file.attrs["version"] == 1
        assert file.attrs["bits"] == 12
        assert [name.decode() for name in file.attrs["class_names"]] == ["cat", "dog", "vögel"]
        assert file["codes"].dtype == np.uint8
        assert file["activations"].dtype == np.float16
        assert file["instances"].attrs["bits"] == 9
        assert file["instances/image_index"].dtype == np.int64
        assert file["instances/boxes"].dtype == np.float32


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "codes.h5"
    old = make_code_set()
    write_codes(path, old)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(code_store.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_codes(path, make_code_set(rows=9))
    assert os.listdir(tmp_path) == ["codes.h5"]
    assert_same(old, read_codes(path))


def test_inconsistent_code_sets_are_not_written(tmp_path):
    path = tmp_path / "codes.h5"
    with pytest.raises(CodeFileError, match="image_ids must be 5 strings"):
        write_codes(path, make_code_set(image_ids=["a"]))
    assert not path.exists()


def read_error(path):
    with pytest.raises(CodeFileError) as error:
        read_codes(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_missing_foreign_and_truncated_files(tmp_path):
    assert "no such file" in read_error(tmp_path / "absent.h5")
    assert "no such file" in read_error(tmp_path)

    text = tmp_path / "text.h5"
    text.write_text("not HDF5")
    assert "not a readable HDF5 code file" in read_error(text)
    text.write_bytes(b"")
    read_error(text)

    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["codes"] = np.zeros((3, 2), np.uint8)
    assert "not of format 'regiondh-codes'" in read_error(foreign)

    whole = tmp_path / "whole.h5"
    write_codes(whole, make_code_set(rows=200))
    content = whole.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        whole.write_bytes(content[: int(len(content) * share)])
        read_error(whole)


def test_flipped_bytes_never_escape_as_another_error(tmp_path):
    path = tmp_path / "codes.h5"
    write_codes(path, make_code_set())
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), 8):
            damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with contextlib.suppress(CodeFileError):
            read_codes(path)


def replace(name, value):
    def edit(file):
        del file[name]
        file[name] = value

    return edit


def set_attribute(name, value, group="/"):
    def edit(file):
        file[group].attrs[name] = value

    return edit


def declare_huge(file):
    del file["codes"]
    file.create_dataset("codes", (1 << 40, 2), np.uint8, chunks=(1 << 10, 2))


def link_elsewhere(file):
    del file["codes"]
    file["codes"] = h5py.ExternalLink("/etc/passwd", "codes")


def store_elsewhere(file):
    del file["codes"]
    file.create_dataset("codes", (5, 2), np.uint8, external=[("/etc/passwd", 0, 10)])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (declare_huge, "declares shape"),
        (link_elsewhere, "codes is a link"),
        (store_elsewhere, "stored elsewhere"),
        (set_attribute("version", 2), "format version 2"),
        (set_attribute("version", "1"), "'version' is str, not int"),
        (set_attribute("bits", 64), "64 bits need"),
        (set_attribute("bits", 11), "beyond the declared 11"),
        (set_attribute("bits", -1), "positive integer"),
        (lambda file: file.attrs.pop("model_fingerprint"), "'model_fingerprint' is missing"),
        (lambda file: file.pop("image_ids"), "image_ids is missing"),
        (replace("image_ids", ["a", "b"]), "image_ids must be 5 strings"),
        (replace("image_ids", np.arange(5)), "not the expected type"),
        (replace("codes", np.zeros((5, 2), np.float32)), "not the expected type"),
        (replace("codes", np.zeros((5, 2), np.uint16)), "packed uint8"),
        (replace("codes", "text"), "holds text"),
        (replace("codes", np.zeros(5, np.uint8)), "of shape"),
        (replace("labels", np.zeros((4, 3), np.uint8)), "labels are of shape"),
        (replace("labels", np.zeros((5, 2), np.uint8)), "2 columns for 3 class names"),
        (replace("labels", np.full((5, 3), 2, np.uint8)), "multi-hot"),
        (replace("activations", np.zeros((5, 3), np.float16)), "activations are of shape"),
        (replace("instances/image_index", np.array([0, 1, 2, 5])), "outside the 5 images"),
        (replace("instances/image_index", np.array([0, 1, 2, -1])), "outside the 5 images"),
        (replace("instances/classes", np.array([0, 1, 2, 3])), "outside the 3 class names"),
        (replace("instances/boxes", np.zeros((4, 5), np.float32)), "instances/boxes is of shape"),
        (set_attribute("bits", 30, "instances"), "30 bits need"),
    ],
)
def test_inconsistent_files(tmp_path, edit, message):
    path = tmp_path / "codes.h5"
    write_codes(path, make_code_set())
    with h5py.File(path, "r+") as file:
        edit(file)
    assert message in read_error(path)


def test_variable_length_text_of_other_writers_is_read(tmp_path):
    path = tmp_path / "codes.h5"
    write_codes(path, make_code_set())
    with h5py.File(path, "r+") as file:
        replace("image_ids", ["a", "b", "c", "d", "é"])(file)
        set_attribute("class_names", ["x", "y", "z"])(file)
        set_attribute("format", "regiondh-codes")(file)
    assert read_codes(path).image_ids == ["a", "b", "c", "d", "é"]
    assert read_codes(path).class_names == ["x", "y", "z"]


def test_check_comparable():
    ours = make_code_set()
    assert check_comparable(ours, make_code_set(rows=9)) == []
    for changes, message in (
        ({"bits": 16}, "12 bits and the database 16"),
        ({"class_names": ["dog", "cat", "vögel"]}, "labels of different classes"),
        ({"model_fingerprint": "cd" * 32}, "code both with the same model"),
    ):
        with pytest.raises(CodeFileError, match=message):
            check_comparable(ours, make_code_set(**changes))
    (note,) = check_comparable(ours, make_code_set(model_fingerprint=""))
    assert "fingerprint is missing" in note
    (note,) = check_comparable(ours, make_code_set(count_difficult=True))
    assert "difficult" in note


def test_write_json_is_complete_or_absent(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1.5})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1.5\n}\n'
    assert os.listdir(tmp_path) == ["metrics.json"]
