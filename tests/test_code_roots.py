"""Roots of code sets: joined, moved, and left out where they have no image."""

import numpy as np
import pytest

from builders import code_set
from code_sets import make_photo_set
from regiondh_d2.structures.code_checks import check_code_set
from regiondh_d2.structures.code_roots import move_root
from regiondh_d2.structures.code_rows import join_code_sets, take_rows
from regiondh_d2.structures.codes import CodeFileError


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
