"""Which photos are found in folders, and that nothing is left out without a word."""

import errno
import io
import os
import socket
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pictures import pixels_of, save
from regiondh_d2.data import image_formats, photo_files
from regiondh_d2.data.photo_files import find_photos, is_system_file, lies_in_any
from regiondh_d2.retrieval.images import dataset_images, find_images
from regiondh_d2.utils.marks import mark_folder, picture_mark


def names(scan):
    return [photo.relative_path for photo in scan.images]


def jpeg(name="x"):
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(name)).save(buffer, "jpeg")
    return buffer.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_photos_have_a_root_a_path_a_size_and_a_time(tmp_path):
    path = save(tmp_path / "b" / "1.png")
    os.utime(path, ns=(7, 1_700_000_000_123_456_789))
    (photo,) = find_photos([tmp_path]).images
    assert (photo.root, photo.relative_path) == (str(tmp_path), "b/1.png")
    assert (photo.size, photo.mtime_ns) == (path.stat().st_size, 1_700_000_000_123_456_789)
    assert photo.path == str(path)
    (entry,) = find_images([tmp_path])
    assert (entry.image_id, entry.root, entry.relative_path, entry.size, entry.mtime_ns) == (
        *(str(path), str(tmp_path), "b/1.png", photo.size, photo.mtime_ns),
    )


def test_order_is_files_before_folders_by_name(tmp_path):
    for name in ("b/2.png", "b/a/1.png", "z.png", "a.JPG", "c/1.webp"):
        save(tmp_path / name)
    assert names(find_photos([tmp_path])) == ["a.JPG", "z.png", "b/2.png", "b/a/1.png", "c/1.webp"]


# What is an image


@pytest.mark.parametrize(
    "name", ["IMG_1", "a.jpg_large", "a.jpg?w=300", "a.jpeg~", "a.orig", "photo.txt", "2.10.2020"]
)
def test_content_decides_where_the_ending_tells_nothing(tmp_path, name):
    write(tmp_path / name, jpeg())
    assert names(find_photos([tmp_path])) == [name]


@pytest.mark.parametrize(
    "image_format", ["png", "gif", "bmp", "tiff", "webp", "avif", "jpeg2000", "ppm"]
)
def test_every_usual_format_is_known_by_its_content(tmp_path, image_format):
    Image.fromarray(pixels_of("x")).save(tmp_path / "x", image_format)
    assert names(find_photos([tmp_path])) == ["x"]


def test_other_files_are_counted_by_their_ending(tmp_path):
    for name, content in {
        "a.txt": b"text",
        "b.TXT": b"BM of text",
        "c": b"no picture",
        "empty": b"",
        "d.mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        "e.jxl": b"\xff\x0a",
        "f.nef": b"II*\0",
        "g.tar.gz": b"\x1f\x8b",
    }.items():
        write(tmp_path / name, content)
    os.mkfifo(tmp_path / "pipe.jpg")
    scan = find_photos([tmp_path])
    assert scan.images == []
    assert scan.passed_over == Counter(
        {".txt": 2, "": 2, ".mp4": 1, ".jxl": 1, ".nef": 1, ".gz": 1, "special": 1}
    )
    (line,) = scan.summary()
    assert line.startswith("passed over: 2 without an ending, 2 .txt, 1 .gz,")


def test_a_socket_is_no_photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a.png")
        assert find_photos([tmp_path]).passed_over == {"special": 1}


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"


@pytest.mark.parametrize("name", ["a.HEIC", "a.heif", "a.hif", "no_ending"])
@pytest.mark.parametrize("decoder", [True, False])
def test_heic_is_taken_or_counted(tmp_path, monkeypatch, name, decoder):
    monkeypatch.setattr(photo_files, "can_read_heif", lambda: decoder)
    write(tmp_path / name, HEIC)
    scan = find_photos([tmp_path])
    if decoder:
        assert names(scan) == [name]
    else:
        assert scan.images == []
        assert scan.passed_over == {os.path.splitext(name)[1].lower(): 1}
        if "." in name:
            assert "(needs pi-heif: pip install pi-heif)" in scan.summary()[0]


def test_nothing_is_read_of_files_with_an_images_ending(tmp_path, monkeypatch):
    write(tmp_path / "damaged.jpg", b"no picture")  # reading it tells, later
    monkeypatch.setattr(photo_files, "_head", None)
    assert names(find_photos([tmp_path])) == ["damaged.jpg"]


def test_brands_tell_avif_from_heic():
    def head(*brands):
        body = brands[0] + bytes(4) + b"".join(brands)
        return (8 + len(body)).to_bytes(4, "big") + b"ftyp" + body

    assert image_formats.format_by_content(head(b"avif", b"mif1")) == "AVIF"
    assert image_formats.format_by_content(head(b"mif1", b"avif")) == "AVIF"
    assert image_formats.format_by_content(head(b"mif1", b"heic")) == "HEIF"
    assert image_formats.format_by_content(head(b"msf1", b"hevc")) == "HEIF"
    assert image_formats.format_by_content(head(b"isom", b"mp42")) is None


# What systems leave


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", "@eaDir", "#recycle", "__MACOSX"),
        *("._photo.jpg", ".hidden.png", ".cache", "$RECYCLE.BIN", "System Volume Information"),
    ],
)
@pytest.mark.parametrize("as_folder", [True, False])
def test_system_files_are_ignored(tmp_path, name, as_folder):
    save(tmp_path / "a.png")
    write(tmp_path / name / "b.jpg" if as_folder else tmp_path / name, jpeg())
    scan = find_photos([tmp_path])
    assert is_system_file(name)
    assert names(scan) == ["a.png"]
    assert not scan.passed_over
    assert not is_system_file("photo.jpg")


def test_hidden_photos_are_counted(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / ".b.png")
    write(tmp_path / ".DS_Store", b"x")
    scan = find_photos([tmp_path])
    assert scan.hidden == 1
    assert scan.summary() == ["passed over: 1 hidden"]
    save(tmp_path / ".folder" / "c.png")
    assert names(find_photos([tmp_path / ".folder", tmp_path / ".b.png"])) == ["c.png", ".b.png"]


def test_what_a_shell_pattern_names_of_systems_is_ignored(tmp_path):
    for name in ("a.png", "@eaDir/a.png", "Thumbs.db"):
        save(tmp_path / "x.png").rename(write(tmp_path / name, b""))
    assert names(find_photos(sorted(tmp_path.iterdir()))) == ["a.png"]


# Links


def test_linked_folders_and_files_are_followed(tmp_path):
    save(tmp_path / "elsewhere" / "deep" / "1.png")
    save(tmp_path / "single.png")
    photos = tmp_path / "photos"
    save(photos / "0.png")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "2.png").symlink_to("../single.png")
    scan = find_photos([photos])
    assert names(scan) == ["0.png", "2.png", "linked/deep/1.png"]
    assert {photo.root for photo in scan.images} == {str(photos)}
    assert not scan.links


@pytest.mark.parametrize("target", [".", "..", "/", "../../photos"])
def test_links_back_are_no_circles(tmp_path, target):
    save(tmp_path / "photos" / "sub" / "1.png")
    (tmp_path / "photos" / "sub" / "back").symlink_to(target)
    scan = find_photos([tmp_path / "photos"])
    assert names(scan) == ["sub/1.png"]
    assert scan.links == [
        (str(tmp_path / "photos/sub/back"), "a link back to a folder that it lies in")
    ]
    assert "1 further names" in scan.summary()[0]


def test_two_linked_folders_that_link_to_each_other(tmp_path):
    for name in "ab":
        save(tmp_path / name / f"{name}.png")
    (tmp_path / "a" / "to_b").symlink_to("../b")
    (tmp_path / "b" / "to_a").symlink_to("../a")
    assert sorted(names(find_photos([tmp_path]))) == ["a/a.png", "b/b.png"]
    assert names(find_photos([tmp_path / "a"])) == ["a.png", "to_b/b.png"]
    (tmp_path / "self").symlink_to("self")
    assert find_photos([tmp_path]).links[-1] == (
        *(str(tmp_path / "self"), "a link that leads nowhere"),
    )


def test_of_several_names_the_one_without_a_link_is_kept(tmp_path):
    save(tmp_path / "z" / "1.png")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "0.png").symlink_to("z/1.png")
    os.link(tmp_path / "z" / "1.png", tmp_path / "z" / "2.png")
    scan = find_photos([tmp_path])
    assert names(scan) == ["z/1.png"]
    assert [os.path.relpath(path, tmp_path) for path, _ in scan.links] == ["z/2.png", "0.png", "a"]


def test_an_input_through_a_link_or_another_spelling_is_the_same(tmp_path, monkeypatch):
    save(tmp_path / "photos" / "1.png")
    (tmp_path / "other").symlink_to("photos")
    monkeypatch.chdir(tmp_path / "photos")
    for spelling in (tmp_path / "other", ".", "../photos/", tmp_path / "x" / ".." / "photos"):
        (tmp_path / "x").mkdir(exist_ok=True)
        (photo,) = find_photos([spelling]).images
        assert photo.path == str(tmp_path / "photos" / "1.png")
    assert len(find_photos([".", tmp_path / "other", "1.png"]).images) == 1
    (photo,) = find_photos([tmp_path / "other" / "1.png"]).images
    assert photo.path == str(tmp_path / "photos" / "1.png")


def test_the_outermost_given_folder_is_the_root(tmp_path):
    for name in ("1.png", "sub/2.png"):
        save(tmp_path / name)
    expected = {str(tmp_path): {"1.png", "sub/2.png"}}
    sub, file = tmp_path / "sub", tmp_path / "sub" / "2.png"
    for inputs in ([tmp_path, sub], [sub, tmp_path], [file, tmp_path], [file, sub, tmp_path]):
        scan = find_photos(inputs)
        assert scan.roots == list(expected)
        assert {photo.root for photo in scan.images} == set(expected)
        assert set(names(scan)) == expected[str(tmp_path)]
        assert not scan.links
    (photo,) = find_photos([file]).images
    assert (photo.root, photo.relative_path) == (str(sub), "2.png")


def test_folders_that_a_path_lies_in():
    folders = {"/a/b", "/c"}
    for path in ("/a/b", "/a/b/c/d", "/c/x", "/a", "/a/bc", "/", "/d/c", "a/b", ""):
        expected = any(path == f or path.startswith(f + "/") for f in folders)
        assert lies_in_any(path, folders) == expected, path
    assert lies_in_any("/d", {"/"})


def test_a_dead_link_is_said_and_what_is_behind_it_unknown(tmp_path):
    save(tmp_path / "1.png")
    (tmp_path / "disk").symlink_to("/nowhere/at/all")
    scan = find_photos([tmp_path])
    assert scan.links == [(str(tmp_path / "disk"), "a link that leads nowhere")]
    assert not scan.could_see(str(tmp_path / "disk" / "2.png"))
    assert scan.could_see(str(tmp_path / "disk2.png"))


# Folders that can't be listed


def test_folders_without_permission_are_listed_and_the_rest_goes_on(tmp_path, monkeypatch):
    for name in ("a/1.png", "closed/2.png", "z/3.png"):
        save(tmp_path / name)
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    scan = find_photos([tmp_path])
    assert names(scan) == ["a/1.png", "z/3.png"]
    assert scan.unreadable_folders == [str(tmp_path / "closed")]
    assert scan.summary() == [f"folders that can't be read: {tmp_path / 'closed'}"]
    assert not scan.could_see(str(tmp_path / "closed" / "2.png"))
    assert scan.could_see(str(tmp_path / "a" / "2.png"))
    with pytest.raises(ValueError, match="no images in .*closed; folders that can't be read: .*c"):
        find_images([tmp_path / "closed"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_folders_of_another_user(tmp_path):
    """With the system's own answer: a child process gives up root's rights."""
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "closed" / "2.png")
    save(tmp_path / "listed" / "3.png")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "listed").chmod(0o744)  # names can be read, files can't
    (tmp_path / "a").chmod(0o755)
    read, written = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(tmp_path)  # the folders above are root's alone
            os.setuid(65534)
            scan = find_photos(["."]) if os.access(".", os.R_OK) else None
            text = "no" if scan is None else repr((names(scan), len(scan.unreadable_folders)))
        except BaseException as error:
            text = repr(error)
        os.write(written, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(read, 9999).decode()
    os.close(read)
    os.close(written)
    assert text in ("no", "(['a/1.png'], 2)")


# What is left out on purpose


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("raw", ["a.png", "b/c.png", "b/raw_1.png"]),
        ("raw/", ["a.png", "b/c.png", "b/raw_1.png"]),
        ("raw*", ["a.png", "b/c.png"]),
        ("b/*", ["a.png", "raw/d.png"]),
        ("./b", ["a.png", "raw/d.png"]),
        ("*.png", []),
        ("b/c.png", ["a.png", "b/raw_1.png", "raw/d.png"]),
        ("c.pn?", ["a.png", "b/raw_1.png", "raw/d.png"]),
        ("[ab]", ["a.png", "raw/d.png"]),
    ],
)
def test_patterns_exclude_by_name_or_by_path_below_the_root(tmp_path, pattern, left):
    for name in ("a.png", "b/c.png", "b/raw_1.png", "raw/d.png"):
        save(tmp_path / name)
    scan = find_photos([tmp_path], [pattern])
    assert names(scan) == left
    assert scan.excluded
    assert f"{len(scan.excluded)} excluded" in scan.summary()[0]


def test_patterns_exclude_named_files_and_links_too(tmp_path):
    file = save(tmp_path / "a.png")
    (tmp_path / "raw").symlink_to("/usr")
    assert find_photos([file], ["a*"]).excluded == [str(file)]
    assert names(find_photos([tmp_path], ["raw"])) == ["a.png"]
    with pytest.raises(ValueError, match="--exclude: the pattern is empty"):
        find_photos([tmp_path], [""])


def test_own_output_is_no_photo(tmp_path):
    for name in ("a.png", "out/answers.png", "old/answers.png", "old/index/x.png"):
        save(tmp_path / name)
    save(tmp_path / "answers.png", **picture_mark("PNG"))
    save(tmp_path / "answers.jpg", **picture_mark("JPEG"))
    mark_folder(tmp_path / "out")
    write(tmp_path / "old" / "photos.h5", b"")  # as version 0.1 left it, without a mark
    scan = find_photos([tmp_path])
    assert names(scan) == ["a.png"]
    assert [os.path.relpath(path, tmp_path) for path in scan.own] == [
        *("answers.jpg", "answers.png", "old", "out"),
    ]
    assert "4 of this program's own output" in scan.summary()[0]
    # A folder that is named itself is searched, a picture that is named itself still none.
    assert names(find_photos([tmp_path / "out", tmp_path / "answers.png"])) == ["answers.png"]


def test_known_photos_are_not_opened_again(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    looked = []
    monkeypatch.setattr(photo_files, "carries_mark", looked.append)
    find_photos([tmp_path], is_known=lambda photo: photo.relative_path == "a.png")
    assert looked == [str(tmp_path / "b.png")]


# Names, and inputs that are none


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe9.png", b"dir\xff/x\n.png"):
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.fromarray(pixels_of("x")).save(file, "png")
    found = find_photos([tmp_path], ["*.xyz"]).images
    assert [os.fsencode(photo.relative_path) for photo in found] == [
        *(b"caf\xe9.png", b"dir\xff/x\n.png"),
    ]
    write_bytes = os.path.join(folder, b"a.\xe9\n")
    with open(write_bytes, "wb"):
        pass
    (line,) = find_photos([tmp_path]).summary()
    assert line == r"passed over: 1 .\xe9\n"


def test_missing_inputs_are_told_apart(tmp_path):
    save(tmp_path / "a.png")
    scan = find_photos([tmp_path / "absent", tmp_path])
    assert scan.missing == [str(tmp_path / "absent")]
    assert names(scan) == ["a.png"]
    with pytest.raises(FileNotFoundError, match="absent: no such file or folder"):
        find_images([tmp_path / "absent", tmp_path])


def test_no_images_says_what_there_is(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.jxl", b"x")
    with pytest.raises(ValueError, match=r"no images in .*; passed over: 3 \.jxl"):
        find_images([tmp_path])


def test_many_types_are_summed_up(tmp_path):
    for i in range(12):
        write(tmp_path / f"a.{i:03}", b"x")
    (line,) = find_photos([tmp_path]).summary()
    assert line.endswith("1 .007, 4 of other types")


def test_dataset_images_have_a_common_root(tmp_path, monkeypatch):
    first = save(tmp_path / "x" / "a" / "1.png")
    save(tmp_path / "x" / "b" / "2.png")
    monkeypatch.chdir(tmp_path)
    dicts = [
        {"image_id": "1", "file_name": str(first)},
        {"image_id": "2", "file_name": "x/b/2.png"},
        {"image_id": "3", "file_name": "x/b/absent.png"},
    ]
    one, two, three = dataset_images(dicts, True)
    assert {one.root, two.root, three.root} == {str(tmp_path / "x")}
    assert [e.relative_path for e in (one, two, three)] == ["a/1.png", "b/2.png", "b/absent.png"]
    assert (one.size, one.mtime_ns) == (first.stat().st_size, first.stat().st_mtime_ns)
    assert (two.file_name, three.size, three.mtime_ns) == ("x/b/2.png", -1, -1)
    assert np.all([entry.labels is None for entry in (one, two, three)])
    assert dataset_images([], True) == []
