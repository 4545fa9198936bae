"""Code files: what is written comes back, and whatever is wrong is one line that names the file."""

import contextlib
import errno
import os

import h5py
import numpy as np
import pytest

from builders import code_set
from code_sets import assert_same, make_code_set, make_photo_set
from extraction import held_open
from regiondh_d2.retrieval import code_store
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.utils.locks import FileInUseError


@pytest.mark.parametrize(
    "code_set",
    [
        make_code_set(),
        make_code_set(
            instances=False, labels=None, class_names=[], activations=None, features=None
        ),
        make_code_set(rows=0, instances=False, labels=None, activations=None, features=None),
        make_photo_set(),
    ],
    ids=["full", "minimal", "empty", "photos"],
)
def test_round_trip(tmp_path, code_set):
    path = tmp_path / "new folder" / "codes.h5"
    write_codes(path, code_set)
    assert_same(code_set, read_codes(path))
    assert os.listdir(path.parent) == ["codes.h5"]


def test_layout_is_the_documented_one(tmp_path):
    write_codes(tmp_path / "codes.h5", make_photo_set())
    with h5py.File(tmp_path / "codes.h5") as file:
        assert file.attrs["format"] == b"regiondh-codes"
        assert file.attrs["version"] == 2
        assert file.attrs["bits"] == 12
        assert [name.decode() for name in file.attrs["class_names"]] == ["cat", "dog", "vögel"]
        assert file["codes"].dtype == np.uint8
        assert file["activations"].dtype == np.float16
        assert file["instances"].attrs["bits"] == 9
        assert file["instances/image_index"].dtype == np.int64
        assert file["instances/boxes"].dtype == np.float32
        assert file.attrs["roots"].tolist() == [b"/photos", "/mnt/größe ".encode() + b"\xe9"]
        for name, dtype in (("root_index", "u2"), ("size", "i8"), ("mtime_ns", "i8")):
            assert file[name].dtype == dtype
        assert file["content_sha256"].shape == (5, 32)
        assert file["class_weights"].dtype == np.float32
        text = file["relative_paths"]
        assert (text["bytes"].dtype, text["offsets"].dtype) == (np.uint8, np.int64)
        assert text["bytes"][()].tobytes() == b"".join(b"sub/%d.jpg" % i for i in range(5))
        assert text["offsets"][()].tolist() == [0, 9, 18, 27, 36, 45]


NAMES = ["", "plain.jpg", "日本/größe 🦊.jpg", "new\nline \x1b[31m", "\udcff\udce9.jpg", "a" * 5000]


def test_any_file_name_comes_back(tmp_path):
    names = [f"/{name}" for name in NAMES]
    code_set = make_code_set(rows=6, file_names=names, roots=["/"], image_ids=NAMES)
    write_codes(tmp_path / "codes.h5", code_set)
    found = read_codes(tmp_path / "codes.h5")
    assert (found.file_names, found.relative_paths, found.image_ids) == (names, NAMES, NAMES)
    assert [os.fsencode(name) for name in found.file_names] == [os.fsencode(n) for n in names]


def test_a_text_that_is_no_name_is_not_written(tmp_path):
    with pytest.raises(CodeFileError, match=r"codes\.h5: not written, .* cannot be stored"):
        write_codes(tmp_path / "codes.h5", make_code_set(image_ids=["\ud800", *"abcd"]))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("column", ["image_ids", "file_names"])
def test_one_long_name_costs_its_own_length(tmp_path, column):
    names = [f"{i}.jpg" for i in range(20_000)]
    sizes = []
    for last in ("short.jpg", "x" * 2000):
        changes = {column: [*names[:-1], last]}
        codes = code_set(np.zeros((20_000, 6), np.uint8), names=names, **changes)
        write_codes(tmp_path / "codes.h5", codes)
        sizes.append((tmp_path / "codes.h5").stat().st_size)
    assert sizes[0] < sizes[1] < sizes[0] + 10_000 < 1_500_000


def test_unknown_columns_and_attributes_are_ignored(tmp_path):
    path = tmp_path / "codes.h5"
    write_codes(path, make_photo_set())
    with h5py.File(path, "r+") as file:
        file["of_later"] = np.arange(3)
        file.create_group("more")["thumbnails"] = np.arange(3)
        file["instances/words"] = np.arange(3)
        file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "x")
        file.attrs["color"] = "blue"
    assert_same(make_photo_set(), read_codes(path))


def test_a_file_that_another_program_writes(tmp_path):
    path = tmp_path / "codes.h5"
    write_codes(path, make_code_set())
    with held_open(path, "r+"), pytest.raises(FileInUseError) as error:
        read_codes(path)
    assert str(error.value).startswith(f"{path}: in use by another program")
    assert "extract the codes again" not in str(error.value)
    assert_same(make_code_set(), read_codes(path))


def test_a_file_that_another_program_reads(tmp_path):
    path = tmp_path / "codes.h5"
    write_codes(path, make_code_set())
    with held_open(path, "r"):
        assert_same(make_code_set(), read_codes(path))
        write_codes(path, make_code_set(rows=7))
    assert len(read_codes(path)) == 7


def test_a_file_that_a_crashed_writer_left_open(tmp_path):
    path = tmp_path / "codes.h5"
    write_codes(path, make_code_set())
    with held_open(path, "r+") as process:
        process.kill()
        process.wait()
        try:
            read_codes(path)
        except FileInUseError as error:
            assert "left half written by one that crashed" in str(error)  # noqa: PT017


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = tmp_path / "codes.h5"
    write_codes(path, make_code_set())

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(code_store, "open", refuse, raising=False)
    with pytest.raises(PermissionError, match="Permission denied"):
        read_codes(path)


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


def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "codes.h5"
    old = make_code_set()
    write_codes(path, old)
    with full_disk(1 << 14), pytest.raises(OSError) as error:
        write_codes(path, make_code_set(rows=2000))
    assert error.value.filename == str(path)
    assert os.listdir(tmp_path) == ["codes.h5"]
    assert_same(old, read_codes(path))


def test_files_of_before_settings_are_read(tmp_path):
    path = tmp_path / "codes.h5"
    write_codes(path, make_code_set())
    with h5py.File(path, "r+") as file:
        del file.attrs["settings"]
    assert_same(make_code_set(settings=""), read_codes(path))


def test_inconsistent_code_sets_are_not_written(tmp_path):
    path = tmp_path / "codes.h5"
    for changes, message in (
        ({"image_ids": ["a"]}, "image_ids must be 5 strings"),
        ({"image_ids": ["a", "b\0", "c", "d", "e"]}, "cannot be stored .it holds a zero byte"),
        ({"dataset": "a\0"}, "cannot be stored"),
        ({"activations": np.full((5, 12), np.nan, np.float16)}, "activations hold values that"),
    ):
        with pytest.raises(CodeFileError, match=message):
            write_codes(path, make_code_set(**changes))
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
    assert "is a folder; name a code file in it" in read_error(tmp_path)

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
        if name in file:
            del file[name]
        file[name] = value

    return edit


def set_attribute(name, value, group="/"):
    def edit(file):
        file[group].attrs[name] = value

    return edit


def declare_huge_text(file):
    del file["relative_paths/bytes"]
    file["relative_paths"].create_dataset("bytes", (1 << 40,), np.uint8, chunks=(1 << 10,))


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
        (declare_huge_text, "relative_paths/bytes declares shape"),
        (link_elsewhere, "codes is a link"),
        (store_elsewhere, "stored elsewhere"),
        (set_attribute("version", 3), "format version 3; this release reads 2; update"),
        (set_attribute("version", 0), "format version 0"),
        (set_attribute("version", "1"), "'version' is str, not int"),
        (set_attribute("bits", 64), "for 64 bits"),
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
        (set_attribute("bits", 30, "instances"), "for 30 bits"),
        (lambda file: file.pop("relative_paths"), "relative_paths is missing"),
        (lambda file: file.pop("size"), "size is missing"),
        (lambda file: file.pop("mtime_ns"), "mtime_ns is missing"),
        (lambda file: file.attrs.pop("roots"), "'roots' is missing"),
        (lambda file: file["image_ids"].pop("offsets"), "image_ids/offsets is missing"),
        (replace("relative_paths/offsets", [0, 3, 2, 4, 5, 100]), "relative_paths/offsets decr"),
        (replace("relative_paths/offsets", [0, 9, 18, 27, 36, 1 << 40]), "don't span the 100 by"),
        (replace("relative_paths/offsets", [-1, 9, 18, 27, 36, 100]), "don't span the 100 bytes"),
        (replace("relative_paths/offsets", [0, 9, 18, 27, 36, 114]), "don't span the 100 bytes"),
        (replace("relative_paths/offsets", [0, 100]), "root_index is of shape (5,), not (1,)"),
        (replace("relative_paths/offsets", [0.0, 100]), "not the expected type"),
        (replace("relative_paths/offsets", np.zeros((2, 2), int)), "relative_paths is no text col"),
        (replace("relative_paths/bytes", np.zeros(100, np.uint8)), "holds a zero byte"),
        (replace("image_ids/offsets", [0, 12, 30]), "image_ids must be 5 strings"),
        (replace("root_index", np.full(5, 1, np.uint16)), "root_index points outside the 1 roots"),
        (replace("root_index", np.zeros(4, np.uint16)), "root_index is of shape (4,), not (5,)"),
        (replace("size", np.zeros(4, np.int64)), "size must be integers of shape (5,)"),
        (replace("size", np.full(5, -7)), "size holds -7"),
        (replace("mtime_ns", np.zeros(5)), "not the expected type"),
        (replace("content_sha256", np.zeros((5, 31), np.uint8)), "content_sha256 must be"),
        (replace("thumbnails", np.zeros((5, 143), np.uint8)), "thumbnails must be"),
        (replace("class_weights", np.zeros((12, 3), "f4")), "class_weights are of shape (12, 3)"),
        (replace("class_weights", np.zeros((13, 4), "f4")), "not (13, 3)"),
        (replace("class_weights", np.full((13, 3), np.nan, "f4")), "class_weights hold values"),
        (replace("activations", np.full((5, 12), np.nan, "f2")), "activations hold values"),
        (replace("features", np.full((5, 7), np.inf, "f2")), "features hold values that are not"),
        (replace("instances/boxes", np.full((4, 4), np.nan, "f4")), "instances/boxes hold values"),
        (replace("instances/scores", np.full(4, -np.inf, "f4")), "instances/scores hold values"),
    ],
)
def test_inconsistent_files(tmp_path, edit, message):
    path = tmp_path / "codes.h5"
    write_codes(path, make_code_set())
    with h5py.File(path, "r+") as file:
        edit(file)
    assert message in read_error(path)


def test_a_relative_path_does_not_lead_out_of_its_root(tmp_path):
    path = tmp_path / "codes.h5"
    write_codes(path, make_photo_set())
    with h5py.File(path, "r+") as file:
        text = np.frombuffer(b"/etc/pass" * 5, np.uint8)
        replace("relative_paths/bytes", text)(file)
    assert "/etc/pass is not below /photos" in read_error(path)


def test_variable_length_text_of_other_writers_is_read(tmp_path):
    path = tmp_path / "codes.h5"
    write_codes(path, make_code_set())
    with h5py.File(path, "r+") as file:
        replace("image_ids", ["a", "b", "c", "d", "é"])(file)
        set_attribute("class_names", ["x", "y", "z"])(file)
        set_attribute("format", "regiondh-codes")(file)
    assert read_codes(path).image_ids == ["a", "b", "c", "d", "é"]
    assert read_codes(path).class_names == ["x", "y", "z"]
