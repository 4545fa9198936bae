"""The strict VOC reader: what it returns, and one clear line for every defect."""

import os
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances
from detectron2.structures import BoxMode

from builders import registered
from regiondh_d2.data.datasets.builtin import VOC_DETECTION, SplitByIdDigest, register_builtin
from regiondh_d2.data.voc import (
    VOC_CLASSES,
    VOCFormatError,
    VOCNotFoundError,
    load_voc,
    register_voc,
)

CLASSES = ("cat", "dog", "cow")


def object_xml(name="cat", box=(1, 1, 10, 10), extra="<difficult>0</difficult>"):
    corners = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def image_xml(*objects, size="<size><width>60</width><height>40</height></size>"):
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def write_tree(root, xmls, split="train"):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for image_id, xml in xmls.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(xml)
        (root / "JPEGImages" / f"{image_id}.jpg").write_bytes(b"")
    (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in xmls))
    return root


@pytest.fixture
def catalogs():
    """Removes what a test registers."""
    with registered():
        yield


def test_dict_of_one_image(tmp_path):
    hard = "<difficult>1</difficult>"
    xml = image_xml(
        object_xml("dog", (3, 4, 60, 40)),
        object_xml("cat", extra=hard),
        object_xml("dog", extra=hard),
        object_xml("cow", (5, 5, 5, 5), extra=""),
    )
    (record,) = load_voc(write_tree(tmp_path, {"000012": xml}), "train", CLASSES)
    assert record["file_name"] == str(tmp_path / "JPEGImages" / "000012.jpg")
    assert (record["image_id"], record["width"], record["height"]) == ("000012", 60, 40)
    assert record["image_labels"] == [0, 1, 2]
    assert record["difficult_labels"] == [0]  # dog occurs as an easy object, too
    assert [a["difficult"] for a in record["annotations"]] == [False, True, True, False]
    assert record["annotations"][0] == {
        "bbox": [2.0, 3.0, 60.0, 40.0],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 1,
        "difficult": False,
    }


def test_agrees_with_detectron2(tmp_path):
    xmls = {
        "b": image_xml(object_xml("dog", (3, 4, 30, 40)), object_xml("cat", (1, 2, 60, 9))),
        "a": image_xml(),
        "c": image_xml(object_xml("cow", (45.7, 18.1, 50, 20))),
    }
    root = write_tree(tmp_path, xmls)
    ours = load_voc(root, "train", CLASSES)
    for record in ours:
        del record["image_labels"], record["difficult_labels"]
        for annotation in record["annotations"]:
            del annotation["difficult"]
    assert ours == load_voc_instances(str(root), "train", CLASSES)
    assert list(VOC_CLASSES) == list(CLASS_NAMES)


def test_ids_in_place_of_a_list(tmp_path):
    root = write_tree(tmp_path, {i: image_xml() for i in "abc"})
    assert [r["image_id"] for r in load_voc(root, ["c", "a"], CLASSES)] == ["c", "a"]
    kept = load_voc(root, "train", CLASSES, subset=lambda image_id: image_id != "b")
    assert [r["image_id"] for r in kept] == ["a", "c"]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (image_xml(object_xml(), object_xml("cta")), r"object 1 \(cta\): unknown class 'cta'"),
        (image_xml(object_xml(box=(9, 1, 3, 4))), r"object 0 \(cat\): box .* inverted"),
        (image_xml(object_xml(box=(1, 9, 3, 4))), r"object 0 \(cat\): box .* inverted"),
        (image_xml(object_xml(box=(61, 1, 70, 4))), r"object 0 \(cat\): box .* outside .* 60 x 40"),
        (image_xml(object_xml(box=(1, 41, 60, 41))), r"object 0 \(cat\): box .* outside"),
        (image_xml(object_xml(box=(-9, 1, 0, 5))), r"object 0 \(cat\): box .* outside"),
        (image_xml(object_xml(box=(0, 0, 0, 0))), r"object 0 \(cat\): box .* outside"),
        (image_xml(object_xml(box=("nan", 1, 5, 5))), r"object 0 \(cat\): box .* not finite"),
        (image_xml(object_xml(box=(1, 1, "inf", 5))), r"object 0 \(cat\): box .* not finite"),
        (image_xml(object_xml("Cat")), r"unknown class 'Cat', did you mean 'cat'\?"),
        (image_xml(object_xml("c a t")), r"unknown class 'c a t', did you mean 'cat'\?"),
        (image_xml(object_xml("dogs")), r"unknown class 'dogs', did you mean 'dog'\?"),
        (image_xml(object_xml("lorry")), r"unknown class 'lorry': correct the name"),
        (image_xml(size="<size><width>1.5</width><height>4</height></size>"), r"no usable <size>"),
        (image_xml(object_xml(box=("", 1, 5, 5))), r"object 0 \(cat\): <bndbox> needs four"),
        (image_xml("<object><name>cat</name></object>"), r"object 0 \(cat\): <bndbox> needs four"),
        (image_xml(object_xml(extra="<difficult>x</difficult>")), r"<difficult> must be 0 or 1"),
        (image_xml(size=""), r"no usable <size>"),
        (image_xml(size="<size><width>0</width><height>4</height></size>"), r"no usable <size>"),
        ("<annotation>", r"not well-formed XML"),
        ("", r"not well-formed XML"),
    ],
)
def test_defective_annotation(tmp_path, xml, message):
    root = write_tree(tmp_path, {"fine": image_xml(), "bad": xml})
    with pytest.raises(VOCFormatError, match=message) as error:
        load_voc(root, "train", CLASSES)
    assert str(error.value).startswith(str(root / "Annotations" / "bad.xml") + ": ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("written", "difficult"),
    [("True", True), ("true", True), (" 1 ", True), ("False", False), ("", False), ("\n ", False)],
)
def test_difficult_as_tools_write_it(tmp_path, written, difficult):
    extra = f"<difficult>{written}</difficult>"
    root = write_tree(tmp_path, {"a": image_xml(object_xml(extra=extra))})
    (record,) = load_voc(root, "train", CLASSES)
    assert record["annotations"][0]["difficult"] is difficult


def test_missing_files_are_named(tmp_path):
    root = write_tree(tmp_path, {"a": image_xml(), "b": image_xml()})
    (root / "JPEGImages/a.jpg").unlink()
    with pytest.raises(VOCFormatError, match=r"JPEGImages/a\.jpg: image missing.*train\.txt"):
        load_voc(root, "train", CLASSES)
    (root / "Annotations/a.xml").unlink()
    with pytest.raises(VOCFormatError, match=r"Annotations/a\.xml: missing.*train\.txt"):
        load_voc(root, "train", CLASSES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na\n", "line 3: a is listed twice"),
        ("a 1\n", "line 1: expected one image id, got 'a 1'"),
        ("a\nb -1\n", "line 2: expected one image id, got 'b -1'"),
        ("# my list\na\n", "line 1: expected one image id, got '# my list'"),
        ('a\n"a"\n', "line 2: a is listed twice"),
        ("a\na.jpg\n", "line 2: a is listed twice"),
        ("\n", "the list is empty"),
    ],
)
def test_defective_list(tmp_path, text, message):
    root = write_tree(tmp_path, {"a": image_xml(), "b": image_xml()})
    (root / "ImageSets/Main/train.txt").write_text(text)
    with pytest.raises(VOCFormatError, match=message):
        load_voc(root, "train", CLASSES)


def test_missing_folder_and_list(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_voc(tmp_path / "VOC2007", "train", CLASSES)
    message = str(error.value)
    assert str(tmp_path / "VOC2007") in message
    assert "VOC2007/{Annotations,ImageSets/Main,JPEGImages}" in message
    assert "$DETECTRON2_DATASETS" in message
    assert "\n" not in message
    with pytest.raises(FileNotFoundError):
        load_voc(tmp_path / "VOC2007", ["a"], CLASSES)
    root = write_tree(tmp_path, {"a": image_xml()}, split="val")
    with pytest.raises(VOCNotFoundError, match=r"test\.txt: no such image list; .* has val"):
        load_voc(root, "test", CLASSES)


def test_problems_collects_everything(tmp_path):
    xmls = {
        "a": image_xml(object_xml("cta"), object_xml("dog"), object_xml(box=(5, 5, 1, 1))),
        "b": "<annotation>",
        "c": image_xml(object_xml()),
    }
    problems = []
    records = load_voc(write_tree(tmp_path, xmls), "train", CLASSES, problems=problems)
    assert len(problems) == 3
    assert [r["image_id"] for r in records] == ["a", "c"]
    assert records[0]["image_labels"] == [1]
    problems.clear()
    assert load_voc(tmp_path / "nowhere", "train", CLASSES, problems=problems) == []
    assert len(problems) == 1


def test_registration(tmp_path, catalogs):
    register_voc("t_voc", tmp_path, "train", CLASSES, year=2007)  # nothing is there yet
    metadata = MetadataCatalog.get("t_voc")
    assert metadata.thing_classes == list(CLASSES)
    assert (metadata.dirname, metadata.year, metadata.split) == (str(tmp_path), 2007, "train")
    assert metadata.evaluator_type == "pascal_voc"
    write_tree(tmp_path, {"a": image_xml(object_xml())})
    assert len(DatasetCatalog.get("t_voc")) == 1

    register_voc("t_voc", str(tmp_path), "train", list(CLASSES), year=2007)  # the same: no-op
    with pytest.raises(ValueError, match="'t_voc' is already registered"):
        register_voc("t_voc", tmp_path, "val", CLASSES, year=2007)
    with pytest.raises(ValueError, match="'voc_2007_train' is already registered"):
        register_voc("voc_2007_train", tmp_path, "train", CLASSES)
    with pytest.raises(ValueError, match="year must be"):
        register_voc("t_other", tmp_path, "train", CLASSES, year=2008)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \r\n", "\r"])
def test_lists_of_any_encoding(tmp_path, encoding, end):
    root = write_tree(tmp_path, {"a": image_xml(), "kätzchen": image_xml()})
    text = end.join(["a", "kätzchen", "", ""])
    (root / "ImageSets/Main/train.txt").write_bytes(text.encode(encoding))
    assert [r["image_id"] for r in load_voc(root, "train", CLASSES)] == ["a", "kätzchen"]


def test_a_list_that_is_no_text(tmp_path):
    root = write_tree(tmp_path, {"a": image_xml()})
    (root / "ImageSets/Main/train.txt").write_bytes(b"a\nk\xe4tzchen\n")
    with pytest.raises(VOCFormatError, match=r"train\.txt: byte 3 isn't text in utf-8: save it"):
        load_voc(root, "train", CLASSES)


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", ""),
        ("utf-8-sig", "utf-8"),
        ("utf-8", "utf-16"),  # what .NET's writers to a text declare, whatever is saved
        ("utf-16", "utf-16"),
        ("utf-16", ""),
        ("utf-16-le", "utf-16"),
        ("latin-1", "iso-8859-1"),
        ("cp1252", "Windows-1252"),
        ("gb18030", "GB2312"),  # expat alone reads no encoding of several bytes
    ],
)
def test_annotations_of_any_encoding(tmp_path, encoding, declared):
    name = "猫" if declared == "GB2312" else "chaton né"
    root = write_tree(tmp_path, {"a": image_xml()})
    head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    xml = head + image_xml(object_xml(name))
    (root / "Annotations/a.xml").write_bytes(xml.encode(encoding))
    (record,) = load_voc(root, "train", ["dog", name])
    assert record["image_labels"] == [1]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b'<?xml version="1.0" encoding="x-none"?>', r"a\.xml: its encoding 'x-none' isn't known"),
        (b'<?xml version="1.0" encoding="undefined"?>', r"a\.xml: its encoding 'undefined' isn't"),
        (b'<?xml version="1.0" encoding="utf-8"?>\xe9', r"a\.xml: byte 38 isn't text in utf-8"),
    ],
)
def test_an_annotation_that_is_no_text(tmp_path, head, message):
    root = write_tree(tmp_path, {"a": image_xml()})
    (root / "Annotations/a.xml").write_bytes(head + image_xml().encode())
    with pytest.raises(VOCFormatError, match=message):
        load_voc(root, "train", CLASSES)


def named(filename):
    return image_xml(f"<filename>{filename}</filename>")


@pytest.mark.parametrize(
    ("image_id", "filename", "there"),
    [
        ("a", "a.png", "a.png"),
        ("a", "photo.png", "photo.png"),  # not named as the id
        ("a", "photo", "photo.jpeg"),  # without ending
        ("a", "", "a.PNG"),
        ("a", "a.jpg", "a.JPG"),
        ("a", "a.jpg", "a.webp"),  # converted later
        ("a", "C:\\set\\photos\\p.jpg", "p.jpg"),
        ("a", "/home/me/p.jpg", "p.jpg"),
        ("a", "day1/p.jpg", "day1/p.jpg"),
        ("a", "my%20photo.jpg", "my photo.jpg"),
        ("a", "my%20photo.jpg", "my%20photo.jpg"),
        ("day1/a", "a.jpg", "day1/a.jpg"),
        ("day1/a", "gone.jpg", "day1/a.Jpeg"),
        ("my photo (1)", "my photo (1).jpg", "my photo (1).jpg"),
        ("naïve", "", "nai\u0308ve.jpg"),  # as a file system of macOS writes it
    ],
)
def test_the_image_of_an_id(tmp_path, image_id, filename, there):
    (tmp_path / "Annotations" / image_id).parent.mkdir(parents=True)
    (tmp_path / "JPEGImages/day1").mkdir(parents=True)
    root = write_tree(tmp_path, {image_id: named(filename)})
    (root / "JPEGImages" / f"{image_id}.jpg").unlink()
    (root / "JPEGImages" / there).write_bytes(b"")
    (record,) = load_voc(root, "train", CLASSES)
    assert record["image_id"] == image_id
    assert os.path.samefile(record["file_name"], root / "JPEGImages" / there)


def test_the_folder_of_the_id_comes_before_the_name_alone(tmp_path):
    (tmp_path / "Annotations/day1").mkdir(parents=True)
    (tmp_path / "JPEGImages/day1").mkdir(parents=True)
    root = write_tree(tmp_path, {"a": named("a.jpg"), "day1/a": named("a.jpg")})
    files = [r["file_name"] for r in load_voc(root, "train", CLASSES)]
    assert files == [str(root / "JPEGImages/a.jpg"), str(root / "JPEGImages/day1/a.jpg")]


@pytest.mark.parametrize(
    "line",
    [
        '"my photo"',
        "my photo.jpg",
        "my photo ",
        '"my photo.JPG"',
        "JPEGImages/my photo.jpg",
        "/home/me/VOC2007/JPEGImages/my photo.jpg",
        "..\\Annotations\\my photo.xml",
    ],
)
def test_lines_as_tools_write_them(tmp_path, line):
    root = write_tree(tmp_path, {"my photo": image_xml()})
    (root / "ImageSets/Main/train.txt").write_text(f"{line}\n")
    assert [r["image_id"] for r in load_voc(root, "train", CLASSES)] == ["my photo"]


def test_a_folder_of_windows_in_a_list(tmp_path):
    (tmp_path / "Annotations/day1").mkdir(parents=True)
    (tmp_path / "JPEGImages/day1").mkdir(parents=True)
    root = write_tree(tmp_path, {"day1/a": image_xml()})
    (root / "ImageSets/Main/train.txt").write_text("day1\\a\n")
    assert [r["image_id"] for r in load_voc(root, "train", CLASSES)] == ["day1/a"]


def test_two_ids_of_one_image_are_refused(tmp_path):
    root = write_tree(tmp_path, {"a": named("a.jpg"), "b": named("a.jpg")})
    message = r"b\.xml: its image .*a\.jpg is also that of id a: correct <filename> or drop"
    with pytest.raises(VOCFormatError, match=message):
        load_voc(root, "train", CLASSES)
    # Where large and small letters are the same to the file system, one file answers to both ids.
    for name in ("B.xml", "b.xml"):
        (root / "Annotations" / name).write_text(image_xml())
    with pytest.raises(VOCFormatError, match=r"B\.xml: its image .*b\.jpg is also that of id b"):
        load_voc(root, ["b", "B"], CLASSES)


def test_boxes_beyond_the_image_are_clipped_and_counted(tmp_path, caplog):
    xmls = {
        "fine": image_xml(object_xml(box=(1, 1, 60, 40))),
        "zero": image_xml(object_xml(box=(0, 5, 9, 9)), object_xml("dog", (5, 0, 9, 9))),
        "far": image_xml(object_xml(box=(50.5, 1, 75, 41))),
        "rounded": image_xml(object_xml(box=(1, 1, 60.05, 40))),
    }
    root = write_tree(tmp_path, xmls)
    notes, problems = [], []
    records = load_voc(root, "train", CLASSES, problems=problems, notes=notes)
    assert problems == []
    assert [[a["bbox"] for a in r["annotations"]] for r in records] == [
        [[0, 0, 60, 40]],
        [[0, 4, 9, 9], [4, 0, 9, 9]],
        [[49.5, 0, 60, 40]],
        [[0, 0, 60, 40]],
    ]
    where = root / "Annotations/zero.xml"
    assert notes == [
        f"3 boxes reach beyond the image and are clipped to it; first {where}: object 0 (cat)"
    ]
    assert not caplog.records
    load_voc(root, "train", CLASSES)
    load_voc(root, "train", CLASSES)
    assert [record.getMessage() for record in caplog.records] == notes  # once a process


def test_subset_has_no_split(tmp_path, catalogs):
    register_voc("t_voc_part", tmp_path, "train", CLASSES, subset=SplitByIdDigest(2, (0,)))
    register_voc("t_voc_part", tmp_path, "train", CLASSES, subset=SplitByIdDigest(2, (0,)))
    metadata = MetadataCatalog.get("t_voc_part")
    assert metadata.get("split") is None
    assert metadata.parent_split == "train"


def test_hash_subsets_partition_and_stay():
    image_ids = [f"{number:06d}" for number in range(1, 5001)]
    parts = [[i for i in image_ids if SplitByIdDigest(5, (part,))(i)] for part in range(5)]
    assert sorted(sum(parts, [])) == image_ids
    assert all(900 < len(part) < 1100 for part in parts)
    # A change here would silently change the dev split under published numbers.
    assert [i for i in image_ids[:40] if SplitByIdDigest(5, (3,))(i)] == [
        "000008",
        "000015",
        "000016",
        "000018",
        "000022",
        "000031",
        "000035",
    ]


def test_shipped_names():
    register_builtin()  # a second time
    for name, folder, split, year, _ in VOC_DETECTION:
        metadata = MetadataCatalog.get(name)
        assert name in DatasetCatalog.list()
        assert metadata.thing_classes == list(VOC_CLASSES)
        assert os.path.basename(metadata.dirname) == folder
        assert split in (metadata.get("split"), metadata.get("parent_split"))
        assert metadata.year == year


@pytest.mark.parametrize("name", [row[0] for row in VOC_DETECTION])
def test_real_data(name):
    metadata = MetadataCatalog.get(name)
    split = metadata.get("split") or metadata.get("parent_split")
    if not os.path.isfile(f"{metadata.dirname}/ImageSets/Main/{split}.txt"):
        pytest.skip(f"{metadata.dirname} has no {split} list; set $DETECTRON2_DATASETS")
    records = DatasetCatalog.get(name)
    assert len({r["image_id"] for r in records}) == len(records) > 0
    assert {label for r in records for label in r["image_labels"]} == set(range(20))
    assert all(re.fullmatch(r"\d{6}|\d{4}_\d{6}", r["image_id"]) for r in records)
