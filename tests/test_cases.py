"""Inputs that users have reported, through the commands, from end to end.

Each test runs over two folders of one form, and expects the same of both. ``twin`` is written here,
with small pictures; ``cases`` is the folder that the environment variable REGIONDH_CASES names.
"""

import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageDraw, PngImagePlugin

from builders import random_code_set, registered
from regiondh_d2.commands import extract_codes
from regiondh_d2.commands import train as train_command
from regiondh_d2.data import image_reader, photo_files
from regiondh_d2.data.training import build_train_loader
from regiondh_d2.engine import build_cfg, command, searcher
from regiondh_d2.engine.command import run_command
from regiondh_d2.engine.user_code import VARIABLE
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.utils.errors import RegionDHError

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
CLASSES = ("bicycle", "car", "horse", "person")
VOC_KINDS = ("bom", "png", "spaces", "sub", "upper", "zero")
ORIENTATION = 0x0112
SHIPPED = str(ROOT / "configs/voc07/regiondh_effnetlite0_64.yaml")


# --- The twins -----------------------------------------------------------------------------------

SIZES = {"000012": (150, 100), "000017": (144, 110), "000023": (100, 150), "000026": (150, 100)}
# Image, class, and the corners of the box, which count from 1.
OBJECTS = [
    ("000012", "car", (47, 30, 105, 80)),
    ("000017", "person", (55, 18, 83, 60)),
    ("000017", "horse", (27, 23, 120, 100)),
    ("000023", "bicycle", (3, 69, 73, 150)),
    ("000023", "bicycle", (69, 66, 100, 150)),
    ("000023", "bicycle", (1, 53, 27, 150)),
    ("000023", "person", (1, 1, 35, 110)),
    ("000023", "person", (1, 1, 72, 138)),
    ("000023", "person", (67, 1, 100, 145)),
    ("000026", "car", (27, 37, 101, 63)),
]
DRAWINGS = {
    "bicycle": lambda pen: [
        pen.ellipse((x, 90, x + 90, 180), outline="black", width=8) for x in (30, 190)
    ],
    "house": lambda pen: [
        pen.rectangle((90, 110, 230, 220), fill="black"),
        pen.polygon([(70, 110), (250, 110), (160, 30)], fill="black"),
    ],
    "text": lambda pen: [
        pen.rectangle((20 + 30 * i, 60 + 40 * line, 40 + 30 * i, 80 + 40 * line), fill="black")
        for line in range(3)
        for i in range(9)
    ],
}


def scenery(name, size=(150, 100)):
    """A picture of a few soft colors, always the same for a name."""
    rng = np.random.default_rng(list(name.encode()))
    few = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(few).resize(size, Image.Resampling.BICUBIC)


def save(picture, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_photo_folders(folder):
    for name in ("000005", "000007", "000009"):
        save(scenery(name), folder / "photos" / f"{name}.jpg")
    save(scenery("a"), folder / "mostly_heic/a.jpg")
    heic = (DATA / "heic/plain.heic").read_bytes()
    write(folder / "mostly_heic/IMG_0100.HEIC", heic)
    write(folder / "mostly_heic/IMG_0101.HEIC", heic[: len(heic) // 2])
    save(scenery("a"), folder / "default_query_bad/a.jpg")
    write(folder / "default_query_bad/m.jpg", b"")
    save(scenery("z"), folder / "default_query_bad/z.jpg")
    for name, draw in DRAWINGS.items():
        drawing = Image.new("RGBA", (320, 240), (0, 0, 0, 0))
        draw(ImageDraw.Draw(drawing))
        save(drawing, folder / "transparent" / f"{name}.png")
        white = Image.new("RGB", drawing.size, "white")
        white.paste(drawing, mask=drawing.getchannel("A"))
        save(white, folder / "transparent" / f"{name}_on_white.jpg", quality=95)
    photo = scenery("photo", (300, 200))
    save(photo, folder / "transparent2/photo.jpg", quality=95)
    photo.putalpha(255)
    save(photo, folder / "transparent2/opaque_alpha.png")
    photo.putalpha(0)
    save(photo, folder / "transparent2/wholly_invisible.png")


def voc_xml(filename, size, objects):
    """An annotation as an XML text."""
    parts = [f"<annotation><filename>{filename}</filename><size>"]
    parts.append(f"<width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>")
    for name, corners in objects:
        keys = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{key}>{value}</{key}>" for key, value in keys)
        parts.append(
            f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>0</difficult><bndbox>{box}</bndbox></object>"
        )
    return "".join([*parts, "</annotation>"])


def write_voc(folder, kind):
    ids = list(SIZES)
    names = [f"my photo ({i})" for i in range(4)] if kind == "spaces" else ids
    below = "day1/" if kind == "sub" else ""
    ending = {"png": ".png", "upper": ".JPG"}.get(kind, ".jpg")
    for image_id, name in zip(ids, names, strict=True):
        save(scenery(image_id, SIZES[image_id]), folder / f"JPEGImages/{below}{name}{ending}")
        objects = [(label, box) for image, label, box in OBJECTS if image == image_id]
        if kind == "zero" and image_id == ids[0]:  # counted from 0
            objects[0] = (objects[0][0], (0, *objects[0][1][1:]))
        text = voc_xml(name + ending, SIZES[image_id], objects)
        write(folder / f"Annotations/{below}{name}.xml", text.encode())
    end = "\r\n" if kind == "bom" else "\n"
    text = "".join(f"{below}{name}{end}" for name in names)
    start = b"\xef\xbb\xbf" if kind == "bom" else b""
    for split in ("train", "val") if kind == "sub" else ("train",):
        write(folder / f"ImageSets/Main/{split}.txt", start + text.encode())


def coco_content(ending=".jpg"):
    """A sound file."""
    ids = {name: number for number, name in enumerate(SIZES)}
    annotations = [
        {
            "id": number,
            "image_id": ids[image],
            "category_id": CLASSES.index(label) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "segmentation": [],
        }
        for number, (image, label, (x1, y1, x2, y2)) in enumerate(OBJECTS, 1)
    ]
    images = [
        {"id": ids[name], "file_name": name + ending, "width": width, "height": height}
        for name, (width, height) in SIZES.items()
    ]
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(CLASSES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def without(key, part="annotations"):
    return lambda content: [entry.pop(key) for entry in content[part]]


def with_box(*box):
    return lambda content: content["annotations"][0].update(bbox=list(box))


def every(part, change):
    return lambda content: [entry.update(change(entry)) for entry in content[part]]


def with_text_ids(content):
    every("images", lambda image: {"id": str(image["id"])})(content)
    every("annotations", lambda a: {"image_id": str(a["image_id"])})(content)


def with_category_0(content):
    every("categories", lambda category: {"supercategory": "objects"})(content)
    content["categories"].insert(0, {"id": 0, "name": "objects", "supercategory": "none"})


# Sound in spite of what they lack: what is done to a sound file.
COCO_GOOD = {
    "good": lambda content: None,
    "backslash": every("images", lambda i: {"file_name": rf"..\images\{i['file_name']}"}),
    "bom": lambda content: None,
    "no_area": without("area"),
    "no_iscrowd": without("iscrowd"),
    "no_segm": without("segmentation"),
    "roboflow_category0": with_category_0,
    "segm_null": every("annotations", lambda a: {"segmentation": None}),
    "string_ids": with_text_ids,
}
# What is done to a sound file, and the image and the field that the error names.
COCO_BAD = {
    "double_ann_id": (lambda c: c["annotations"][1].update(id=1), "000017.jpg", "id"),
    "double_category_name": (lambda c: c["categories"][1].update(name="bicycle"), "", "name"),
    "empty": (None, "", "empty"),
    "empty_box": (with_box(), "000012.jpg", "bbox"),
    "list": (None, "", "images, annotations and categories"),
    "missing_image": (
        lambda c: c["images"][0].update(file_name="gone.jpg"),
        "gone.jpg",
        "file_nam",
    ),
    "nan_box": (with_box(*[float("nan")] * 4), "000012.jpg", "bbox"),
    "negative_width": (with_box(40, 30, -20, 30), "000012.jpg", "bbox"),
    "no_ann_id": (without("id"), "000012.jpg", "id"),
    "no_annotations_key": (lambda c: c.pop("annotations"), "", "annotations is missing"),
    "no_width": (without("width", "images"), "000012.jpg", "width"),
    "same_file_twice": (
        lambda c: c["images"][1].update(file_name="000012.jpg"),
        "000012.jpg",
        "file_name",
    ),
    "same_image_id_twice": (
        lambda c: c["images"].append(dict(c["images"][0])),
        "000012.jpg",
        "id 0",
    ),
    "string_box": (with_box("40", "30", "20", "30"), "000012.jpg", "bbox"),
    "truncated": (None, "", "line 1"),
    "unknown_category": (
        lambda c: c["annotations"][0].update(category_id=99),
        "000012.jpg",
        "category_id 99",
    ),
    "zero_width": (with_box(40, 30, 0, 30), "000012.jpg", "bbox"),
}


def coco_bytes(kind, change):
    content = coco_content()
    if change:
        change(content)
    text = json.dumps(content)
    text = {"empty": "", "list": "[]", "truncated": text[:400]}.get(kind, text)
    return (b"\xef\xbb\xbf" if kind == "bom" else b"") + text.encode()


def write_coco(folder):
    for name, size in SIZES.items():
        picture = scenery(name, size)
        save(picture, folder / f"coco/images/{name}.jpg")
        gray = np.asarray(picture.convert("L")).astype(np.uint16) * 200 + 77
        save(Image.fromarray(gray), folder / f"coco16/images/{name}.png")
        exif = Image.Exif()
        exif[ORIENTATION] = {"000012": 3, "000017": 6}.get(name, 1)
        save(picture, folder / f"cocoexif/images/{name}.jpg", exif=exif)
    changes = COCO_GOOD | {kind: change for kind, (change, *_) in COCO_BAD.items()}
    for kind, change in changes.items():
        write(folder / f"coco/{kind}.json", coco_bytes(kind, change))
    for name, ending in (("coco16", ".png"), ("cocoexif", ".jpg")):
        write(folder / name / "all.json", json.dumps(coco_content(ending)).encode())


def write_code_file(path, count=40, bits=32):
    rng = np.random.default_rng(0)
    path.parent.mkdir()
    names = [f"/photos/im{i:04d}.jpg" for i in range(count)]
    labels = np.eye(5)[rng.integers(0, 5, count)]
    write_codes(
        path,
        random_code_set(rng, count, bits, labels=labels, class_names="abcde", file_names=names),
    )


@pytest.fixture(scope="module", params=["twin", "cases"])
def cases(request, tmp_path_factory):
    """The folder of inputs, which stays as it is."""
    if request.param == "cases":
        if not os.environ.get("REGIONDH_CASES"):
            pytest.skip("REGIONDH_CASES does not name the folder of reported inputs")
        return Path(os.environ["REGIONDH_CASES"])
    folder = tmp_path_factory.mktemp("twin")
    write_photo_folders(folder)
    for kind in VOC_KINDS:
        write_voc(folder / "voc" / kind, kind)
    write_coco(folder)
    write_code_file(folder / "codes/all.h5")
    return folder


# --- Commands ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mains(networks, load_tool):
    """The function of each command by its name."""
    names = ("search_photos", "search", "extract_codes", "build_index", "evaluate_codes")
    functions = {name: load_tool(name).main for name in names}
    check = load_tool("check_datasets")
    train = load_tool("train_net")

    def train_net(words):
        return run_command(lambda: train.run(train.build_parser().parse_args(words)))

    return functions | {"check_datasets": check.main, "train_net": train_net}


@pytest.fixture
def run(mains, capsys, monkeypatch, tmp_path):
    """A function from a command's name and arguments to its status, output and lines of errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "")

    def run(name, *words):
        capsys.readouterr()
        status = mains[name]([str(word) for word in words])
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err.splitlines())

    return run


@pytest.fixture(autouse=True)
def loggers(plain_loggers):
    """Loggers stay as they are, for the tests of other modules that read them."""


@pytest.fixture(scope="module", autouse=True)
def networks():
    """Each network is built once, for all commands."""
    built = {}
    build = command.load_trained_model

    def load(cfg, **options):
        key = object() if options else (cfg.dump(), os.path.abspath(cfg.MODEL.WEIGHTS))
        if key not in built:
            built[key] = build(cfg, **options)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (command, searcher, extract_codes, train_command):
            patch.setattr(module, "load_trained_model", load)
        yield


@pytest.fixture(scope="module")
def small_network(random_network, tmp_path_factory):
    """The config of a network of random weights, which loads fast."""
    content = {"_BASE_": random_network.config}
    for key, value in zip(random_network.opts[::2], random_network.opts[1::2], strict=True):
        *nodes, name = key.split(".")
        node = content
        for part in nodes:
            node = node.setdefault(part, {})
        node[name] = value
    path = tmp_path_factory.mktemp("small_network") / "small.yaml"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def search_photos(run, small_network, monkeypatch):
    """A function that searches a folder of photos with the small network."""
    monkeypatch.setattr("regiondh_d2.commands.search_photos.CONFIG", small_network)

    def search_photos(*words):
        ran = run("search_photos", *words)
        ran.answers = answers_of(ran.out)
        return ran

    return search_photos


@pytest.fixture
def photos(cases, tmp_path):
    """Three photos in a folder of their own."""
    return Path(shutil.copytree(cases / "photos", tmp_path / "photos"))


def answers_of(printed):
    """The table of answers: distances and names."""
    _, found, table = printed.rpartition("rank  distance  image\n")
    if not found:
        return []
    lines = [line.split(maxsplit=2) for line in table.split("\n\n")[0].splitlines()]
    return [(int(distance), name) for _, distance, name in lines]


def names_of(ran):
    return sorted(os.path.basename(name) for _, name in ran.answers)


def files_of(folder):
    """What a folder holds, with all contents."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other_picture(path, name="other"):
    save(scenery(name, (90, 120)), path)
    return path


def colors_of(path):
    with Image.open(path) as picture:
        return {color for _, color in picture.convert("RGB").getcolors(1 << 24)}


# --- Folders of photos ---------------------------------------------------------------------------

GRAY = (203, 207, 212)  # of the tile in place of a picture that is missing


def test_a_deleted_photo_is_no_answer_and_stops_no_picture(
    run, search_photos, small_network, photos, tmp_path
):
    query = other_picture(tmp_path / "query.jpg")
    first = search_photos(photos, "--query", query)
    assert (first.status, len(first.answers)) == (0, 3)
    assert GRAY not in colors_of("output/photos/answers.png")
    Path(first.answers[0][1]).unlink()

    index = tmp_path / "output/photos/index"
    words = ["--config-file", small_network, "--index", index, "--query", query]
    shown = run("search", *words, "--no-file-check", "--save", "grid.png")
    assert (shown.status, answers_of(shown.out)) == (0, first.answers)
    assert GRAY in colors_of("grid.png")
    left_out = run("search", *words)
    assert answers_of(left_out.out) == first.answers[1:]
    (line,) = left_out.err
    assert line.startswith("warning: 1 photo has gone or changed since")

    again = search_photos(photos, "--query", query)
    assert (again.status, again.answers) == (0, first.answers[1:])


def test_an_overwritten_photo_is_found_by_its_new_content(search_photos, photos, tmp_path):
    assert search_photos(photos).status == 0
    changed = sorted(photos.iterdir())[1]
    query = other_picture(tmp_path / "query.jpg")
    shutil.copy(query, changed)
    ran = search_photos(photos, "--query", query)
    assert (ran.status, len(ran.answers), ran.answers[0]) == (0, 3, (0, str(changed)))
    assert "3 rows, 1 of them encoded now" in ran.out


def test_answers_are_from_the_folder_that_was_named(search_photos, photos, tmp_path):
    other = other_picture(tmp_path / "others/x.jpg").parent
    assert search_photos(photos).status == 0
    query = sorted(photos.iterdir())[0]
    ran = search_photos(other, "--query", query)
    assert (ran.status, names_of(ran)) == (0, ["x.jpg"])
    assert names_of(search_photos(photos, "--query", other / "x.jpg")) == sorted(os.listdir(photos))


def test_own_output_is_never_an_answer(search_photos, photos):
    names = sorted(os.listdir(photos))
    for _ in range(2):
        ran = search_photos(photos, "--output", photos / "out")
        assert (ran.status, names_of(ran)) == (0, names)
        assert (photos / "out/answers.png").exists()
    shutil.copy(photos / "out/answers.png", photos / "copy of the answers.png")
    assert names_of(search_photos(photos, "--output", photos / "out")) == names


def test_links_are_followed_and_each_photo_is_there_once(search_photos, photos, tmp_path):
    other = other_picture(tmp_path / "others/x.jpg").parent
    names = sorted([*os.listdir(photos), "x.jpg"])
    (photos / "linked").symlink_to(other)
    (photos / "loop").symlink_to(photos)
    (tmp_path / "by link").symlink_to(photos)
    for folder in (photos, tmp_path / "by link"):
        ran = search_photos(folder)
        assert (ran.status, names_of(ran)) == (0, names)
        assert "4 rows" in ran.out


def test_a_folder_without_permission_is_listed(search_photos, photos, monkeypatch):
    closed = other_picture(photos / "closed/x.jpg").parent
    real = os.scandir

    def scandir(path="."):
        if path == str(closed):  # chmod keeps nothing from root
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    ran = search_photos(photos)
    assert (ran.status, len(ran.answers)) == (0, 3)
    assert f"folders that can't be read: {closed}" in ran.out


def test_what_systems_leave_is_ignored(search_photos, photos):
    names = sorted(os.listdir(photos))
    other_picture(photos / "drafts/x.jpg")

    def leave(folder):
        for name in (".DS_Store", "Thumbs.db"):
            write(folder / name, b"\0\0\0\1Bud1")
        other_picture(folder / "@eaDir/a.jpg/SYNOFILE_THUMB_M.jpg")

    leave(photos)
    for _ in range(2):
        ran = search_photos(photos, "--exclude", "drafts", "--output", "out")
        assert (ran.status, names_of(ran), ran.err) == (0, names, [])
        leave(Path("out/index"))
        leave(Path("out"))


def test_names_that_are_no_utf8_or_hold_escapes(run, search_photos, small_network, photos):
    names = [b"caf\xe9.jpg", b"red\x1b[31m.jpg", b"two\nlines.jpg"]
    shown = [r"caf\xe9.jpg", r"red\x1b[31m.jpg", r"two\nlines.jpg"]
    for photo, name in zip(sorted(photos.iterdir()), names, strict=True):
        photo.rename(os.fsdecode(bytes(photos) + b"/" + name))
    write(photos / "bad\x1b]0;title\x07.jpg", b"no image")
    for name in names:
        ran = search_photos(photos, "--query", os.fsdecode(bytes(photos) + b"/" + name))
        assert (ran.status, names_of(ran)) == (0, shown)
        assert r"bad\x1b]0;title\x07.jpg" in "".join(ran.err)
        assert "\x1b" not in ran.out + "".join(ran.err)
    assert Path("output/photos/answers.png").stat().st_size > 1000
    stored = read_codes("output/photos/photos.h5").file_names
    assert sorted(os.fsencode(os.path.basename(name)) for name in stored) == sorted(names)

    ran = run(
        *["search", "--config-file", small_network, "--index", "output/photos/index"],
        *["--query", os.fsdecode(bytes(photos) + b"/" + names[0])],
        *["--json", "answers.json", "--save", "grid.png"],
    )
    assert (ran.status, ran.err) == (0, [])
    written = json.loads(Path("answers.json").read_text())["answers"]
    found = [os.fsencode(os.path.basename(answer["file_name"])) for answer in written]
    assert sorted(found) == sorted(names)


@pytest.mark.parametrize("decoder", [False, True])
def test_heic_is_read_or_counted(search_photos, cases, monkeypatch, decoder):
    pi_heif = pytest.importorskip("pi_heif") if decoder else None
    for module in (photo_files, image_reader):
        monkeypatch.setattr(module, "can_read_heif", lambda: decoder)
    ran = search_photos(cases / "mostly_heic")
    line = "passed over: 2 .heic (needs pi-heif: pip install pi-heif)"
    assert (ran.status, line in ran.out) == (0, not decoder)
    sound, damaged = ["a.jpg"], []
    for path in sorted((cases / "mostly_heic").glob("*.HEIC")) if decoder else ():
        try:
            pi_heif.open_heif(path).to_pillow()
            sound.append(path.name)
        except Exception:
            damaged.append(path.name)
    assert names_of(ran) == sorted(sound)
    for name, line in zip(damaged, ran.err, strict=True):
        assert f"{name}: damaged" in line


def test_the_default_query_is_one_that_was_coded(search_photos, cases):
    ran = search_photos(cases / "default_query_bad")
    assert (ran.status, names_of(ran)) == (0, ["a.jpg", "z.jpg"])
    (line,) = ran.err
    assert line.endswith("m.jpg: the file is empty")
    distance, name = ran.answers[0]
    assert distance == 0
    assert f"{name}: nearest of 2 images" in ran.out


def test_a_query_that_is_not_there_is_told_first(search_photos, photos, tmp_path):
    ran = search_photos(photos, "--query", "typo.jpg")
    assert (ran.status, ran.err) == (1, ["error: typo.jpg: No such file or directory"])
    assert os.listdir(tmp_path) == ["photos"]


def test_a_query_is_never_replaced(run, search_photos, small_network, photos):
    assert search_photos(photos).status == 0
    query, indexed, _ = sorted(photos.iterdir())
    before = files_of(photos)
    words = ["--config-file", small_network, "--index", "output/photos/index", "--query", query]
    for path in (query, indexed):
        ran = run("search", *words, "--save", path, "--overwrite")
        assert (ran.status, len(ran.err)) == (1, 1)
        assert ran.err[0].startswith(f"error: {path}: ")
    assert files_of(photos) == before


# --- Pixels --------------------------------------------------------------------------------------

NEAR = 3  # of 64 bits


@pytest.fixture(scope="module")
def drawings(cases, mains, tmp_path_factory):
    """The transparent pictures and a white one, with an index by the shipped network."""
    folder = tmp_path_factory.mktemp("drawings")
    for name in ("transparent", "transparent2"):
        shutil.copytree(cases / name, folder / "photos" / name)
    save(Image.new("RGB", (300, 200), "white"), folder / "photos/white.png")
    words = ["--config-file", SHIPPED, "--output", str(folder / "codes.h5"), "--no-instances"]
    assert mains["extract_codes"]([*words, "--input", str(folder / "photos")]) == 0
    words = [str(folder / "codes.h5"), "--output", str(folder / "index"), "--engine", "numpy"]
    assert mains["build_index"](words) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "on_white"),
    [
        ("transparent/bicycle.png", "transparent/bicycle_on_white.jpg"),
        ("transparent/house.png", "transparent/house_on_white.jpg"),
        ("transparent/text.png", "transparent/text_on_white.jpg"),
        ("transparent2/opaque_alpha.png", "transparent2/photo.jpg"),
        ("transparent2/wholly_invisible.png", "white.png"),
    ],
)
def test_transparency_is_put_on_white(run, drawings, name, on_white):
    photos = drawings / "photos"
    words = ["--config-file", SHIPPED, "--index", drawings / "index", "--query", photos / name]
    ran = run("search", *words, "--save", "grid.png")
    assert ran.status == 0
    distance = {os.path.relpath(file, photos): bits for bits, file in answers_of(ran.out)}
    assert len(distance) == 10
    assert [file for file in distance if distance[file] <= NEAR] == [name, on_white]
    with Image.open("grid.png") as picture:
        gray = np.asarray(picture.convert("L"))
    assert (gray < 20).mean() < 0.2  # five black tiles would be more


def test_a_postscript_file_named_jpg_starts_no_program(
    search_photos, photos, tmp_path, monkeypatch
):
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 60\n%%EndComments\nshowpage\n"
    write(photos / "poster.jpg", text)
    write(tmp_path / "bin/gs", b"#!/bin/sh\ntouch " + bytes(tmp_path / "started") + b"\nexit 1\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    ran = search_photos(photos)
    assert (ran.status, len(ran.answers), len(ran.err)) == (0, 3, 1)
    assert "poster.jpg: not an image of a known format" in ran.err[0]
    assert not (tmp_path / "started").exists()
    with pytest.raises(subprocess.CalledProcessError), Image.open(photos / "poster.jpg") as image:
        image.load()
    assert (tmp_path / "started").exists()  # by Pillow, where it may choose the format


def test_a_photo_of_200_megapixels_is_read(run, small_network, photos):
    """At a reduced size, as a query, too."""
    large = photos / "large.jpg"
    save(Image.new("L", (16000, 12500), 90), large, quality=50)
    network = ["--config-file", small_network]
    ran = run("extract_codes", *network, "--input", photos, "--output", "codes.h5")
    assert (ran.status, ran.err) == (0, [])
    assert run("build_index", "codes.h5", "--output", "index").status == 0
    ran = run("search", *network, "--index", "index", "--query", large)
    assert (ran.status, ran.err) == (0, [])
    assert answers_of(ran.out)[0] == (0, str(large))


def test_a_png_with_much_text_is_sound(search_photos, photos):
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "x" * 1_100_000, zip=True)
    with Image.open(sorted(photos.iterdir())[0]) as image:
        image.save(photos / "much_text.png", pnginfo=text)
        image.save(photos / "no_text.png")
    with pytest.raises(ValueError, match="Decompressed data too large"):
        Image.open(photos / "much_text.png").load()  # the defect that made it "damaged"
    ran = search_photos(photos, "--query", photos / "no_text.png")
    assert (ran.status, ran.err) == (0, [])
    assert [distance for distance, name in ran.answers if name.endswith("_text.png")] == [0, 0]


# --- Code files ----------------------------------------------------------------------------------

HOLD = """
import sys, h5py
with h5py.File(sys.argv[1], "r+"):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_code_file_in_use_is_not_called_damaged(run, cases, tmp_path):
    codes = shutil.copy(cases / "codes/all.h5", tmp_path / "all.h5")
    codes.chmod(0o644)
    words = [sys.executable, "-c", HOLD, str(codes)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        ran = run("build_index", codes, "--output", "index")
        other.communicate(b"")
    assert (ran.status, len(ran.err)) == (1, 1)
    assert "all.h5: in use by another program" in ran.err[0]
    assert not Path("index").exists()
    assert run("build_index", codes, "--output", "index").status == 0


def test_codes_evaluated_against_themselves(run, cases):
    codes = cases / "codes/all.h5"
    count = len(read_codes(codes))
    words = ["--query", codes, "--database", codes, "--topk", 1]
    ran = run("evaluate_codes", *words, "--json", "with.json")
    assert ran.status == 0
    (line,) = ran.err
    assert line.startswith(f"warning: {count} of {count} queries are in the database")
    assert "--exclude-self" in line
    ran = run("evaluate_codes", *words, "--exclude-self", "--json", "without.json")
    assert (ran.status, ran.err) == (0, [])
    with_self, without_self = (
        json.loads(Path(name).read_text())["P@1"] for name in ("with.json", "without.json")
    )
    assert with_self > 0.99
    assert without_self < 0.5  # random codes


# --- Datasets ------------------------------------------------------------------------------------


@pytest.fixture
def datasets(cases, tmp_path):
    """The path of a module that registers all datasets, as a user writes it."""
    lines = ["from regiondh_d2.data import register_coco, register_retrieval_dataset, register_voc"]
    for kind in VOC_KINDS:
        folder = str(cases / "voc" / kind)
        lines.append(f"register_voc('voc_{kind}', {folder!r}, 'train', {CLASSES})")
    files = {f"coco_{path.stem}": path for path in sorted((cases / "coco").glob("*.json"))}
    files |= {name: cases / name / "all.json" for name in ("coco16", "cocoexif")}
    for name, path in files.items():
        images = str(path.parent / "images")
        lines.append(f"register_coco({name!r}, {str(path)!r}, {images!r})")
    for name in (*(f"voc_{kind}" for kind in VOC_KINDS), *files):
        parts = f"database={name!r}, queries={name!r}"
        lines.append(f"register_retrieval_dataset('both_{name}', {parts})")
    path = tmp_path / "zoo.py"
    path.write_text("\n".join(lines))
    with registered():
        yield path


@pytest.fixture
def train(run, random_network, datasets):
    """A function that trains two iterations on datasets, and evaluates each.

    It returns what ``run`` does, or from an evaluation the codes of the database of each dataset.
    """

    def train(*names, expected=0):
        output = Path("out")
        ran = run(
            *("train_net", "--import", datasets, "--config-file", random_network.config),
            *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", len(CLASSES)),
            *("DATASETS.TRAIN", names, "DATASETS.TEST", tuple(f"both_{name}" for name in names)),
            *("SOLVER.MAX_ITER", 2, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", output),
        )
        assert ran.status == expected, ran.err
        if expected:
            return ran
        lines = (output / "metrics.json").read_text().splitlines()
        values = {key: value for line in lines for key, value in json.loads(line).items()}
        for name in names:
            assert values[f"both_{name}/retrieval/num_queries_in_database"] == 4
            assert f"both_{name}/bbox/AP50" in values
        folder = output / "inference"
        return {name: read_codes(folder / f"both_{name}/database.h5") for name in names}

    return train


def test_voc_folders_as_tools_write_them(run, datasets, train):
    names = [f"voc_{kind}" for kind in VOC_KINDS]
    ran = run("check_datasets", "--import", datasets, "--images", *names)
    assert (ran.status, ran.err) == (0, [])
    for name in names:
        assert f"{name}: 4 images, 10 objects (0 difficult), no problems" in ran.out
    (note,) = [line for line in ran.out.splitlines() if "note:" in line]
    assert "1 box reaches beyond the image and is clipped to it" in note
    assert "zero/Annotations/000012.xml: object 0 (car)" in note

    codes = train(*names)
    assert codes["voc_spaces"].image_ids[3] == "my photo (3)"
    assert codes["voc_sub"].image_ids[0] == "day1/000012"
    for kind in ("spaces", "sub", "upper", "zero"):  # the same pictures
        np.testing.assert_array_equal(codes[f"voc_{kind}"].codes, codes["voc_bom"].codes)


def test_sound_coco_files_and_pixels_of_16_bits(run, cases, datasets, train):
    names = [f"coco_{kind}" for kind in COCO_GOOD] + ["coco16"]
    ran = run("check_datasets", "--import", datasets, "--images", *names)
    assert (ran.status, ran.err) == (0, [])
    for name in names:
        assert f"{name}: 4 images, 10 objects (0 difficult), no problems" in ran.out
    (note,) = [line for line in ran.out.splitlines() if "note:" in line]
    assert "roboflow_category0.json: category 0 (objects) has no object" in note

    names.remove("coco_roboflow_category0")  # of five classes
    codes = train(*names)
    for name in names[:-1]:
        np.testing.assert_array_equal(codes[name].codes, codes["coco_good"].codes)

    # What evaluation has coded is what extraction codes, as a dataset and as files.
    words = ["--config-file", "out/config.yaml", "MODEL.WEIGHTS", "out/model_final.pth"]
    images = str(cases / "coco16/images")
    for source in (("--dataset", "coco16"), ("--input", images)):
        output = f"{source[0]}.h5"
        assert run("extract_codes", *words, *source, f"--output={output}").status == 0
        extracted = read_codes(output)
        assert extracted.model_fingerprint == codes["coco16"].model_fingerprint
        np.testing.assert_array_equal(extracted.codes, codes["coco16"].codes)
    # And training sees the high bytes.
    cfg = build_cfg("out/config.yaml", ["DATASETS.TRAIN", "('coco16',)", "MODEL.DEVICE", "cpu"])
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)  # as they are
    cfg.INPUT.RANDOM_FLIP = "none"
    (batch, *_) = itertools.islice(build_train_loader(cfg), 1)
    for inputs in batch:
        with Image.open(inputs["file_name"]) as image:
            expected = np.asarray(image) >> 8
        for channel in inputs["image"].numpy():
            np.testing.assert_array_equal(channel, expected)


def test_a_coco_file_without_a_certain_meaning_is_one_line(run, cases, datasets):
    for kind, (_, image, field) in COCO_BAD.items():
        ran = run("check_datasets", "--import", datasets, f"coco_{kind}")
        assert ran.status == 1
        line = ran.err[0]
        assert line.startswith(f"{cases / 'coco' / kind}.json: "), line
        assert image in line
        assert field in line.replace(image, "")
        assert f"{len(ran.err)} problem" in ran.out


@pytest.mark.parametrize("kind", ["nan_box", "missing_image", "truncated"])
def test_a_coco_file_without_a_certain_meaning_is_not_trained_on(cases, train, kind):
    ran = train(f"coco_{kind}", expected=1)
    assert ran.err[-1].startswith(f"error: {cases / 'coco' / kind}.json: ")
    assert not any(line.startswith("Traceback") for line in ran.err)
    assert not list(Path().rglob("*.pth"))


def test_turned_images_are_told(run, cases, datasets):
    ran = run("check_datasets", "--import", datasets, "--images", "cocoexif")
    images = cases / "cocoexif/images"
    for name, orientation in (("000012", 3), ("000017", 6)):
        note = f"  note: {images / name}.jpg: turned by its EXIF orientation {orientation}"
        assert ran.out.count(note) == 1
    assert ran.out.count("note:") == 2
    (line,) = ran.err  # its sides are another's
    assert (ran.status, line.startswith(f"{images}/000017.jpg: the image has ")) == (1, True)


# As datasets/README.md had it once.
SCRIPT = """
import zoo
from detectron2.engine import default_argument_parser
from regiondh_d2.engine import RegionDHTrainer, setup_cfg

args = default_argument_parser().parse_args()
trainer = RegionDHTrainer(setup_cfg(args))
trainer.resume_or_load(resume=args.resume)
trainer.train()
"""


def test_a_script_that_ignores_eval_only_does_not_train(
    random_network, datasets, tmp_path, monkeypatch
):
    write(tmp_path / "out/model_final.pth", b"trained for days")
    (tmp_path / "train_zoo.py").write_text(SCRIPT)
    words = ["train_zoo.py", "--config-file", random_network.config, "--eval-only"]
    words += [*random_network.opts, "DATASETS.TRAIN", "('coco_good',)"]
    words += ["DATASETS.TEST", "('both_coco_good',)", "OUTPUT_DIR", "out"]
    words += ["DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.delitem(sys.modules, "zoo", raising=False)
    with pytest.raises(RegionDHError, match="--eval-only was given, but this script trains"):
        runpy.run_path("train_zoo.py", run_name="__main__")
    assert (tmp_path / "out/model_final.pth").read_bytes() == b"trained for days"
