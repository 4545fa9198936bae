"""Roots of a code set: the folders to which the paths of its images are relative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..utils.display import display_name
from ..utils.paths import is_below
from .codes import CodeFileError, CodeSet

__all__ = ["check_root_count", "join_roots", "move_root", "with_distinct_roots"]

_MAX_ROOTS = 1 << 16  # root_index is uint16


def check_root_count(count: int) -> None:
    """Check that a code set can hold this number of roots.

    Raises:
        CodeFileError: it can't.
    """
    if count > _MAX_ROOTS:
        raise CodeFileError(
            f"the images have {count} roots, and a code file can hold {_MAX_ROOTS}: name a folder "
            "above them instead of each file"
        )


def move_root(code_set: CodeSet, old: str, new: str) -> CodeSet:
    """The code set after a folder of photos was moved. No photo is read.

    Args:
        code_set: the codes.
        old: the folder before the move: a root, or a folder above or below one.
        new: where that folder is now.

    Raises:
        CodeFileError: no image is in ``old``.
    """
    if not any(is_below(name, old) for name in code_set.file_names):
        known = ", ".join(display_name(root) for root in code_set.roots if root) or "none"
        raise CodeFileError(f"no image is in {display_name(old)}; the roots are: {known}")

    def moved(path: str) -> str:
        return new + path[len(old) :] if is_below(path, old) else path

    names = [moved(name) for name in code_set.file_names]
    # A root above ``old`` stays for the photos that have not moved; the others get ``new``.
    roots = list(dict.fromkeys([*map(moved, code_set.roots), new]))
    position = {root: i for i, root in enumerate(roots)}
    root_index = [
        position[moved(root) if not root or is_below(name, moved(root)) else new]
        for root, name in zip((code_set.roots[i] for i in code_set.root_index), names, strict=True)
    ]
    # The id of a photo that is in no dataset is its file name.
    ids = [
        name if image_id == before else image_id
        for image_id, before, name in zip(
            code_set.image_ids, code_set.file_names, names, strict=True
        )
    ]
    check_root_count(len(roots))
    return with_distinct_roots(
        replace(
            code_set,
            image_ids=ids,
            file_names=names,
            roots=roots,
            root_index=np.array(root_index, np.uint16),
        )
    )


def with_distinct_roots(code_set: CodeSet) -> CodeSet:
    """The code set without repeated and unused roots."""
    used = np.unique(code_set.root_index)
    roots = list(dict.fromkeys(code_set.roots[i] for i in used)) or [""]
    position = {root: i for i, root in enumerate(roots)}
    new_index = np.zeros(max(1, len(code_set.roots)), np.uint16)
    for i in used:
        new_index[i] = position[code_set.roots[i]]
    return replace(code_set, roots=roots, root_index=new_index[code_set.root_index])


def join_roots(code_sets: Sequence[CodeSet]) -> tuple[list[str], np.ndarray]:
    """The roots of all code sets, each once, and the index of each image's root."""
    position: dict[str, int] = {}
    indexes = []
    for code_set in code_sets:
        new_index = np.zeros(max(1, len(code_set.roots)), np.int64)
        for old in np.unique(code_set.root_index):
            new_index[old] = position.setdefault(code_set.roots[old], len(position))
        indexes.append(new_index[code_set.root_index])
    check_root_count(len(position))
    return list(position) or [""], np.concatenate(indexes).astype(np.uint16)
