"""What has become of photos: each way in which a file can differ from when it was encoded."""

import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from builders import code_set, photo_code_set
from regiondh_d2.retrieval import photo_state
from regiondh_d2.retrieval.photo_state import (
    PhotoCheck,
    PhotoState,
    describe_away,
    prune,
    root_problem,
)
from regiondh_d2.utils.file_io import file_sha256, mark_folder
from regiondh_d2.utils.marks import picture_mark

THERE, GONE, CHANGED, AWAY = (
    PhotoState.THERE,
    PhotoState.GONE,
    PhotoState.CHANGED,
    PhotoState.AWAY,
)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def encode(*photos, roots, hashed=True):
    """A code set of files as they are now, each below the first root that it lies in."""
    return photo_code_set(photos, roots=roots, hashed=hashed)


@pytest.fixture
def root(tmp_path):
    for i in range(4):
        write(tmp_path / "photos" / "trip" / f"{i}.jpg", b"photo %d" % i)
    return tmp_path / "photos"


@pytest.fixture
def photos(root):
    return [root / "trip" / f"{i}.jpg" for i in range(4)]


def states(items):
    check = PhotoCheck(items)
    return [check.state(row) for row in range(len(items))]


def touch(path, seconds=5):
    found = os.stat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + seconds * 10**9))


def test_photos_that_are_as_they_were_are_not_read(root, photos, monkeypatch):
    items = encode(*photos, roots=[root])
    monkeypatch.setattr(photo_state, "file_sha256", None)
    assert states(items) == [THERE] * 4


def test_gone_and_changed_photos(root, photos):
    items = encode(*photos, roots=[root])
    photos[0].unlink()
    write(photos[1], b"other content")
    photos[2].unlink()
    photos[2].mkdir()
    assert states(items) == [GONE, CHANGED, GONE, THERE]


@pytest.mark.parametrize("hashed", [True, False])
def test_content_decides_where_size_is_equal_and_time_is_not(root, photos, hashed):
    items = encode(*photos, roots=[root], hashed=hashed)
    touch(photos[0])
    touch(photos[1], -500)
    write(photos[2], b"photo X")
    touch(photos[2], 60)
    same = THERE if hashed else CHANGED
    assert states(items) == [same, same, CHANGED, THERE]
    if hashed:
        items.content_sha256[0] = 0  # of this one the content is not known
        assert states(items)[0] is CHANGED


def test_another_size_is_another_photo_whatever_its_time(root, photos):
    items = encode(*photos, roots=[root])
    time = os.stat(photos[0]).st_mtime_ns
    write(photos[0], b"longer than before")
    os.utime(photos[0], ns=(time, time))
    assert states(items) == [CHANGED, THERE, THERE, THERE]


def test_unknown_sizes_and_times_leave_existence(root, photos):
    items = encode(*photos, roots=[root], hashed=False)
    items.size[:] = items.mtime_ns[:] = -1
    write(photos[0], b"other content")
    photos[1].unlink()
    assert states(items) == [THERE, GONE, THERE, THERE]


def test_swapped_and_moved_photos(root, photos):
    items = encode(*photos, roots=[root])
    touch(photos[0])
    items.mtime_ns[0] = os.stat(photos[0]).st_mtime_ns
    photos[0].rename(root / "x")
    photos[1].rename(photos[0])
    (root / "x").rename(photos[1])
    photos[2].rename(root / "2.jpg")
    assert states(items) == [CHANGED, CHANGED, GONE, THERE]


def test_nothing_is_known_below_a_root_that_is_away(tmp_path, root, photos, monkeypatch):
    other = write(tmp_path / "other" / "a.jpg", b"a")
    items = encode(*photos, other, roots=[root, tmp_path / "other"])
    for photo in photos:
        photo.unlink()
    assert states(items) == [GONE] * 4 + [THERE]
    (root / "trip").rmdir()
    (root / ".DS_Store").write_bytes(b"")
    assert states(items) == [AWAY] * 4 + [THERE]
    check = PhotoCheck(items)
    check.state(0)
    assert check.away == {str(root): "is empty"}
    (root / ".DS_Store").unlink()
    root.rmdir()
    assert root_problem(str(root)) == "is not there"
    root.write_bytes(b"a file now")
    assert root_problem(str(root)) == "is no folder"
    assert states(items) == [AWAY] * 4 + [THERE]

    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert root_problem(str(tmp_path / "other")) == "can't be read (Permission denied)"
    assert states(items) == [AWAY] * 5
    assert "plug the disk in" in describe_away(check.away)
    assert "\n" not in describe_away({"a\nb": "is empty", "c": "is empty"})


def test_nothing_is_known_below_unreadable_folders_and_dead_links(root, photos, monkeypatch):
    items = encode(*photos, roots=[root])
    (root / "trip").rename(root / "elsewhere")
    (root / "trip").symlink_to(root / "disk")
    assert states(items) == [AWAY] * 4
    check = PhotoCheck(items)
    check.state(1)
    assert check.away == {str(root / "trip"): "is a link that leads nowhere"}
    (root / "elsewhere").rename(root / "disk")
    assert states(items) == [THERE] * 4
    photos[0].unlink()
    assert states(items) == [GONE] + [THERE] * 3
    real = os.stat

    def refuse(path, **options):
        if os.fspath(path) == str(photos[1]):
            raise PermissionError(13, "Permission denied", path)
        return real(path, **options)

    monkeypatch.setattr(photo_state.os, "stat", refuse)
    assert states(items) == [GONE, AWAY, THERE, THERE]
    check = PhotoCheck(items)
    check.state(1)
    assert check.away == {str(root / "trip"): "can't be read (Permission denied)"}


def test_our_own_pictures_and_folders(tmp_path, root, photos):
    """What an older version encoded, since it knew no marks, too."""
    grid, drawn = root / "out" / "sub" / "answers.png", root / "drawn.png"
    old = root / "old" / "answers.png"
    for path in (grid, old):
        write(path, b"an old picture without a mark")
    Image.new("RGB", (9, 9)).save(drawn, **picture_mark("PNG"))
    mark_folder(root / "out")
    (root / "old" / "index").mkdir()
    (root / "old" / "photos.h5").write_bytes(b"")
    items = encode(photos[0], grid, drawn, old, roots=[root])
    assert states(items) == [THERE] + [PhotoState.OWN] * 3
    mark_folder(root)  # one that is given itself is searched
    assert states(items)[0] is THERE
    assert prune(items).items is items


def test_names_that_count_from_nowhere_are_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["datasets/a.jpg", str(tmp_path / "no.jpg"), str(tmp_path / "a\0b.jpg")]
    items = code_set(np.zeros((3, 1), np.uint8), names=names)
    (tmp_path / "other.jpg").write_bytes(b"")
    assert states(items) == [THERE, GONE, GONE]


def test_the_folder_of_older_codes_stands_for_a_root(root, photos):
    items = encode(*photos, roots=[root], hashed=False)
    old = code_set(items.codes, names=list(items.file_names))
    photos[1].unlink()
    assert states(old) == [THERE, GONE, THERE, THERE]
    old.file_names[0] = "datasets/a.jpg"
    assert states(old) == [THERE, GONE, THERE, THERE]
    (root / "trip").rename(root / "elsewhere")
    assert states(old) == [THERE, AWAY, AWAY, AWAY]
    check = PhotoCheck(old)
    assert (check.state(1), check.root(1)) == (AWAY, "")
    assert check.away == {str(root / "trip"): "is not there"}
    found = prune(old)
    assert (found.items, found.gone, found.kept_away) == (old, [], 3)


def test_only_what_has_gone_is_pruned(tmp_path, root, photos, monkeypatch):
    other = [write(tmp_path / "other" / f"{i}.jpg", b"o%d" % i) for i in range(2)]
    items = encode(*photos, *other, roots=[root, tmp_path / "other"])
    assert prune(items).items is items
    photos[1].unlink()
    write(photos[2], b"changed by an editor")
    for path in (*other, tmp_path / "other"):
        path.rmdir() if path.is_dir() else path.unlink()
    found = prune(items)
    assert found.gone == [str(photos[1])]
    assert found.items.codes.ravel().tolist() == [0, 2, 3, 4, 5]
    assert found.items.image_ids == [items.image_ids[i] for i in (0, 2, 3, 4, 5)]
    assert found.away == {str(tmp_path / "other"): "is not there"}
    assert found.kept_away == 2


def test_content_of_a_large_file(tmp_path):
    content = os.urandom(3 << 20)
    assert file_sha256(write(tmp_path / "a", content)) == hashlib.sha256(content).digest()
