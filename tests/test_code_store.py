"""Code files: what is written comes back, and whatever is wrong is one line that names the file."""

import contextlib
import dataclasses
import errno
import os

import h5py
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from builders import code_set, random_code_set, random_objects
from extraction import held_open
from regiondh_d2.retrieval import code_store
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.structures.codes import (
    CodeFileError,
    check_code_set,
    check_comparable,
    check_holds,
    codes_from_outputs,
    join_code_sets,
    move_root,
    take_rows,
)
from regiondh_d2.structures.packed import unpack_codes
from regiondh_d2.utils.locks import FileInUseError


def make_code_set(rows=5, bits=12, instances=True, **changes):
    """Codes with all that a file of them can hold."""
    rng = np.random.default_rng(0)
    values = {
        "image_ids": [f"{i:06d}" for i in range(rows)],
        "file_names": [f"images/größe {i}.jpg" for i in range(rows)],
        "class_names": ["cat", "dog", "vögel"],
        "dataset": "some_val",
        "config": "some.yaml",
        "count_difficult": False,
        "settings": "INPUT.FORMAT 'RGB'\ninstances True",
        "activations": rng.random((rows, bits)).astype(np.float16),
        "features": rng.random((rows, 7)).astype(np.float16),
    }
    if instances:
        classes = np.array([0, 2, 1, 1])
        values["instances"] = random_objects(rng, [0, 0, 2, rows - 1], 9, classes=classes)
    return random_code_set(rng, rows, bits, **(values | changes))


def make_photo_set(rows=5, **changes):
    """As :func:`make_code_set`, with all that is known of the files of photos in two folders."""
    rng = np.random.default_rng(1)
    roots = ["/photos", "/mnt/größe \udce9"]
    root_index = np.arange(rows, dtype=np.uint16) % 2
    names = [f"{roots[root]}/sub/{i}.jpg" for i, root in enumerate(root_index)]
    known = {
        "image_ids": names,
        "file_names": names,
        "roots": roots,
        "root_index": root_index,
        "size": rng.integers(0, 1 << 40, rows),
        "mtime_ns": rng.integers(-1, 1 << 62, rows),
        "content_sha256": rng.integers(0, 256, (rows, 32), dtype=np.uint8),
        "class_weights": rng.random((13, 3)).astype(np.float32),
    }
    return make_code_set(rows, **known | changes)


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
        (replace("class_weights", np.zeros((12, 3), "f4")), "class_weights are of shape (12, 3)"),
        (replace("class_weights", np.zeros((13, 4), "f4")), "not (13, 3)"),
        (replace("class_weights", np.full((13, 3), np.nan, "f4")), "class_weights hold values"),
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


def test_check_comparable():
    ours = make_code_set()
    assert check_comparable(ours, make_code_set(rows=9)) == []
    for changes, message in (
        ({"bits": 16}, "12 bits and the database 16"),
        ({"class_names": ["dog", "cat", "vögel"]}, "labels of different classes"),
        ({"model_fingerprint": "cd" * 32}, "encode both with the same model"),
    ):
        with pytest.raises(CodeFileError, match=message):
            check_comparable(ours, make_code_set(**changes))
    first, second = (make_photo_set(class_weights=np.full((13, 3), x, "f4")) for x in (1, 2))
    assert check_comparable(ours, first) == check_comparable(first, first) == []
    with pytest.raises(CodeFileError, match="other class_weights than the database, so two models"):
        check_comparable(first, second)
    (note,) = check_comparable(ours, make_code_set(model_fingerprint=""))
    assert "fingerprint is missing" in note
    (note,) = check_comparable(ours, make_code_set(count_difficult=True))
    assert "difficult" in note


@pytest.mark.parametrize(
    ("lacking", "line"),
    [
        ("labels", "no labels in d.h5: extract the codes from a labeled dataset"),
        ("activations", "no activations in d.h5: extract the codes with --activations"),
        ("features", "no features in d.h5: extract the codes with --features"),
        ("instances", "no detected objects in d.h5: extract the codes with objects"),
    ],
)
def test_check_holds(lacking, line):
    names = ("labels", "activations", "features", "instances")
    check_holds(make_code_set(), "d.h5", *names)
    code_set = make_code_set(**{lacking: None})
    check_holds(code_set, "d.h5", *(name for name in names if name != lacking))
    with pytest.raises(CodeFileError) as error:
        check_holds(code_set, "d.h5", *names)
    assert str(error.value) == line


@pytest.mark.parametrize("name", ["labels", "activations", "features"])
def test_a_column_is_there_or_an_error(name):
    code_set = make_code_set()
    assert code_set.column(name) is getattr(code_set, name)
    setattr(code_set, name, None)
    with pytest.raises(CodeFileError, match=f"^no {name} in the codes: extract the codes "):
        code_set.column(name)


def test_objects_are_there_or_an_error():
    code_set = make_code_set()
    assert code_set.objects() is code_set.instances
    code_set.instances = None
    with pytest.raises(CodeFileError, match="^no detected objects in the codes: extract "):
        code_set.objects()


def make_output(image_code, scores=None):
    """A model's output with detections of these scores, the r-th of class r at (r, 0, 9, 9)."""
    code = torch.tensor(image_code, dtype=torch.bool)
    output = {"image_code": code, "image_activation": code * 0.5 + 0.25}
    if scores is not None:
        rows = torch.arange(len(scores))
        instances = Instances((9, 9))
        instances.pred_boxes = Boxes([[float(r), 0.0, 9.0, 9.0] for r in rows])
        instances.scores = torch.tensor(scores)
        instances.pred_classes = rows
        instances.pred_codes = rows[:, None] == torch.arange(3)
        output["instances"] = instances
    return output


def test_codes_from_outputs():
    codes = codes_from_outputs(
        [make_output([1, 0, 1], [0.9, 0.2, 0.3]), make_output([0, 0, 1], [0.1, 0.8])],
        image_ids=["a", "b"],
        file_names=["a.jpg", "b.jpg"],
        labels=[[2, 0], []],
        class_names=["x", "y", "z"],
        instance_min_score=0.3,
        dataset="some",
    )
    assert (codes.bits, codes.image_ids, codes.dataset) == (3, ["a", "b"], "some")
    np.testing.assert_array_equal(unpack_codes(codes.codes, 3), [[1, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(codes.activations, [[0.75, 0.25, 0.75], [0.25, 0.25, 0.75]])
    assert codes.activations.dtype == np.float16
    np.testing.assert_array_equal(codes.labels, [[1, 0, 1], [0, 0, 0]])
    found = codes.instances
    np.testing.assert_array_equal(found.image_index, [0, 0, 1])
    np.testing.assert_array_equal(found.classes, [0, 2, 1])
    np.testing.assert_array_equal(found.boxes[:, 0], [0, 2, 1])
    np.testing.assert_array_equal(unpack_codes(found.codes, 3), np.eye(3)[[0, 2, 1]])
    np.testing.assert_allclose(found.scores, [0.9, 0.3, 0.8])


def test_a_region_has_one_row_with_its_best_class():
    output = make_output([1], [0.4, 0.9, 0.5, 0.9, 0.35, 0.2])
    # Regions 7 (detections 0, 1 and 3), 2 (detections 2 and 4) and 5, which is below the score.
    output["instances"].pred_regions = torch.tensor([7, 7, 2, 7, 2, 5])
    output["instances"].pred_codes = torch.tensor([[1, 0], [1, 0], [0, 0], [1, 0], [0, 0], [1, 1]])
    named = {"image_ids": ["a"], "file_names": ["a.jpg"]}
    found = codes_from_outputs([output], **named).objects()
    np.testing.assert_array_equal(found.classes, [1, 2])
    np.testing.assert_allclose(found.scores, [0.9, 0.5])
    np.testing.assert_array_equal(found.boxes[:, 0], [1, 2])
    np.testing.assert_array_equal(unpack_codes(found.codes, 2), [[1, 0], [0, 0]])
    # Codes of classes, as IAH makes them: all of a region stay.
    output["instances"].pred_codes = torch.tensor([[1, 0], [0, 1], [0, 0], [0, 1], [0, 0], [1, 1]])
    found = codes_from_outputs([output], **named).objects()
    np.testing.assert_array_equal(found.classes, [0, 1, 2])


def test_codes_from_outputs_of_image_codes_alone():
    outputs = [make_output([1, 1])]
    names = {"image_ids": ["a"], "file_names": ["a.jpg"]}
    codes = codes_from_outputs(outputs, **names, activations=False)
    assert codes.instances is codes.labels is codes.activations is None
    with pytest.raises(ValueError, match="no image_code"):
        codes_from_outputs([{"instances": 1}], **names)


def test_features_are_kept_where_they_are_wanted():
    outputs = [{**make_output([1, 1]), "image_feature": torch.tensor([0.1, v])} for v in (1.5, 2)]
    names = {"image_ids": ["a", "b"], "file_names": ["a.jpg", "b.jpg"]}
    assert codes_from_outputs(outputs, **names).features is None
    features = codes_from_outputs(outputs, **names, features=True).features
    assert features.dtype == np.float16
    np.testing.assert_array_equal(features, np.array([[0.1, 1.5], [0.1, 2]], np.float16))
    del outputs[1]["image_feature"]
    with pytest.raises(ValueError, match="gave no image_feature: use a model that has features"):
        codes_from_outputs(outputs, **names, features=True)


def test_join_and_take_rows_are_inverse(tmp_path):
    """Rows taken one by one and joined in another order are those rows, instances and all."""
    whole = make_code_set()
    order = [3, 0, 4, 2, 1]
    joined = join_code_sets([take_rows(whole, [row]) for row in order])
    assert joined.image_ids == [f"{row:06d}" for row in order]
    for name in ("codes", "labels", "activations", "features"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name)[order])
    # Of instances 0 to 3, in rows 0, 0, 2 and 4 of the whole.
    np.testing.assert_array_equal(joined.instances.image_index, [1, 1, 2, 3])
    np.testing.assert_array_equal(joined.instances.boxes, whole.instances.boxes[[0, 1, 3, 2]])
    assert_same(whole, take_rows(joined, np.argsort(order)))


def test_a_row_can_be_taken_twice(tmp_path):
    taken = take_rows(make_photo_set(), [0, 2, 0])
    write_codes(tmp_path / "codes.h5", taken)
    np.testing.assert_array_equal(taken.instances.image_index, [0, 0, 1, 2, 2])
    boxes = make_photo_set().instances.boxes
    np.testing.assert_array_equal(taken.instances.boxes, boxes[[0, 1, 2, 0, 1]])
    assert taken.roots == ["/photos"]


def test_roots_are_joined_and_those_of_no_image_go():
    photos = make_photo_set()
    other = make_photo_set(roots=["/mnt/größe \udce9", "/photos"], root_index=1 - photos.root_index)
    joined = join_code_sets([photos, other])
    assert joined.roots == photos.roots
    assert joined.relative_paths == photos.relative_paths * 2
    assert take_rows(joined, [1, 3]).roots == photos.roots[1:]
    codes = code_set(np.zeros((1, 1), np.uint8), roots=["a"] * 65537)
    with pytest.raises(CodeFileError, match="65537 roots"):
        check_code_set(codes)


def test_codes_with_a_content_join_those_without():
    photos = make_photo_set()
    joined = join_code_sets([dataclasses.replace(photos, content_sha256=None), photos])
    assert not joined.content_sha256[:5].any()
    np.testing.assert_array_equal(joined.content_sha256[5:], photos.content_sha256)


@pytest.mark.parametrize(
    ("old", "new", "names", "roots"),
    [
        ("/a/b", "/new", ["/new/c/1", "/new/2", "/a/3", "/x/4"], ["/new", "/a", ""]),
        ("/a", "/new", ["/new/b/c/1", "/new/b/2", "/new/3", "/x/4"], ["/new/b", "/new", ""]),
        ("/a/b/c", "/new", ["/new/1", "/a/b/2", "/a/3", "/x/4"], ["/a/b", "/a", "", "/new"]),
        ("/x", "/new", ["/a/b/c/1", "/a/b/2", "/a/3", "/new/4"], ["/a/b", "/a", ""]),
    ],
)
def test_move_root(old, new, names, roots):
    before = ["/a/b/c/1", "/a/b/2", "/a/3", "/x/4"]
    codes = code_set(
        np.zeros((4, 1), np.uint8),
        image_ids=[*before[:3], "an id"],
        file_names=before,
        roots=["/a/b", "/a", ""],
        root_index=np.array([0, 0, 1, 2], np.uint16),
    )
    moved = move_root(codes, old, new)
    check_code_set(moved)
    assert (moved.file_names, moved.roots) == (names, roots)
    assert moved.image_ids == [*names[:3], "an id"]
    with pytest.raises(CodeFileError, match=r"no image is in /other; the roots are: /a/b, /a"):
        move_root(codes, "/other", new)


def test_take_rows_leaves_out_the_instances_of_other_rows():
    taken = take_rows(make_code_set(), [2, 1])
    np.testing.assert_array_equal(taken.instances.image_index, [0])
    np.testing.assert_array_equal(taken.instances.classes, [1])


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 11, "codes": np.zeros((5, 2), np.uint8), "activations": None},
        {"dataset": "other"},
        {"class_names": ["a", "b", "c"]},
        {"model_fingerprint": ""},
        {"settings": ""},
        {"activations": None},
        {"instances": dataclasses.replace(make_code_set().instances, bits=10)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_codes_that_do_not_belong_together_are_not_joined(changes):
    with pytest.raises(CodeFileError, match=next(iter(changes))):
        join_code_sets([make_code_set(), dataclasses.replace(make_code_set(), **changes)])


def test_a_classifier_is_kept_by_what_changes_rows_and_never_mixed_with_another():
    with_it, without = make_photo_set(), make_photo_set(class_weights=None)
    weights = with_it.class_weights
    for found in (
        take_rows(with_it, [1, 3]),
        join_code_sets([without, with_it]),
        join_code_sets([with_it, with_it]),
        move_root(with_it, "/photos", "/elsewhere"),
    ):
        assert found.class_weights is weights
    other = dataclasses.replace(with_it, class_weights=weights + 1)
    with pytest.raises(CodeFileError, match="different class_weights cannot be joined"):
        join_code_sets([without, with_it, other])
