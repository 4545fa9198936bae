"""Encoding a large collection in N shards, on machines that need not know each other.

Every shard makes the list of all images and plans their batches, as a run without shards would, and
encodes every N-th batch. So the codes are those of a single run to the last bit, and
:func:`merge_shards` restores its rows in its order. A shard is a code file that also has

- the text ``shard``: "i/N of L images DIGEST", where the digest is of the whole list and its
    batches, so that shards of different lists are not merged;
- the column ``positions``: the place of each image in that list, or -1 for a row of an image that
    is not in this shard any more.

A shard reads the headers of all images, to plan the batches, and the pixels of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..structures.code_rows import join_code_sets, take_rows
from ..structures.codes import CodeFileError, CodeSet
from ..utils.display import display_name
from ..utils.errors import RegionDHError
from .images import ImageEntry
from .known_rows import with_roots

__all__ = ["Shard", "merge_shards", "take_shard"]

_TEXT = re.compile(r"(\d{1,9})/(\d{1,9}) of (\d{1,12}) images ([0-9a-f]{64})")
_MOST_NAMED = 8  # missing shards in a message


@dataclass(frozen=True)
class Shard:
    """Which part of a list of images a code file holds.

    Attributes:
        number: from 1 to ``count``.
        count: how many shards the list has.
        images: length of the list.
        digest: sha256 of the list and its batches, 64 hex digits.
    """

    number: int
    count: int
    images: int
    digest: str

    def __str__(self) -> str:
        return f"{self.number}/{self.count} of {self.images} images {self.digest}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The inverse of ``str()``.

        Raises:
            CodeFileError: the text says something else; the message is half a line.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise CodeFileError(
                "not a shard: only files of `regiondh extract-codes --shard` can be merged"
                if not text
                else f"shard is {display_name(text)!r}: extract the shard again"
            )
        return cls(int(match[1]), int(match[2]), int(match[3]), match[4])


def take_shard(
    images: Sequence[ImageEntry],
    number: int,
    count: int,
    sizes: Sequence[tuple[int, int] | None],
    plan: Callable[[Sequence[tuple[int, int] | None]], list[list[int]]],
) -> tuple[Shard, list[int]]:
    """The images of a shard: every ``count``-th batch of the plan for all images.

    Batches that are planned for the shard's images alone, in the order of the list, are again these
    batches: only the last one of a size may be smaller than the others.

    Args:
        images: all images.
        number, count: which shard, from 1, of how many.
        sizes: the size of each image, None for one whose header can't be read. Such images are
            dealt out one by one, so that exactly one shard tells of each.
        plan: from the sizes to the batches, lists of positions.

    Returns:
        The shard, and the positions of its images, ascending.

    Raises:
        RegionDHError: no image is left for this shard.
    """
    if not 1 <= number <= count:
        raise RegionDHError(f"shard {number}/{count}: the number must be from 1 to {count}")
    batches = plan(sizes)
    unreadable = [[i] for i, size in enumerate(sizes) if size is None]
    groups = [*batches, *unreadable]
    mine = sorted(i for group in groups[number - 1 :: count] for i in group)
    if not mine:
        raise RegionDHError(
            f"shard {number}/{count} has no images: the {len(images)} images make {len(groups)} "
            f"batches, so use at most {len(groups)} shards or a smaller --batch-size"
        )
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.image_id.encode("utf-8", "surrogateescape") + b"\0")
    for group in groups:
        digest.update(f"{group}\n".encode())
    return Shard(number, count, len(images), digest.hexdigest()), mine


def merge_shards(shards: Mapping[str, CodeSet]) -> CodeSet:
    """All shards of a list as the code set that a single run would have written.

    Rows of images that are in no shard any more, such as those of deleted photos, stay before the
    others, as they do in a single run.

    Args:
        shards: the code sets by the name of their file.

    Raises:
        CodeFileError: a file is no shard, or of another list, model or settings than the first one;
            a shard is missing or given twice; or two shards hold different codes of an image.
    """
    found: dict[int, str] = {}
    parsed: dict[str, Shard] = {}
    for name, code_set in shards.items():
        shown = display_name(name)
        try:
            shard = Shard.parse(code_set.shard)
        except CodeFileError as error:
            raise CodeFileError(f"{shown}: {error}") from None
        first = next(iter(parsed.values()), shard)
        if (shard.count, shard.images, shard.digest) != (first.count, first.images, first.digest):
            other = display_name(next(iter(parsed)))
            raise CodeFileError(
                f"{shown}: of another list of images than {other}, or of other batches; run every "
                "shard again with --resume and the same options, while no photo is added or deleted"
            )
        if shard.number in found:
            raise CodeFileError(
                f"{shown}: shard {shard.number}/{shard.count}, as is "
                f"{display_name(found[shard.number])}; name each shard once"
            )
        found[shard.number], parsed[name] = name, shard
    if not parsed:
        raise CodeFileError("there are no shards to merge")
    count = next(iter(parsed.values())).count
    missing = [str(i) for i in range(1, count + 1) if i not in found]
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise CodeFileError(
            f"shard {', '.join(missing[:_MOST_NAMED])}{more} of {count} is missing: extract it and "
            "name it, too"
        )
    ordered = [(found[i], shards[found[i]]) for i in sorted(found)]
    for name, code_set in ordered:
        if code_set.positions is None:
            raise CodeFileError(f"{display_name(name)}: positions are missing; extract it again")
    joined = _join([name for name, _ in ordered], [code_set for _, code_set in ordered])
    contents = joined.content_sha256
    merged = take_rows(joined, _rows_in_order(joined))
    if contents is not None and not contents.any():
        merged = replace(merged, content_sha256=None)
    roots = [merged.roots[i] for i in merged.root_index]
    return replace(with_roots(merged, roots), positions=None, shard="")


def _join(names: Sequence[str], code_sets: Sequence[CodeSet]) -> CodeSet:
    """The rows of all shards. The message of an error names the first one that doesn't fit."""
    try:
        return join_code_sets(code_sets)
    except CodeFileError:
        for count, name in enumerate(names, 1):
            try:
                join_code_sets(code_sets[:count])
            except CodeFileError as error:
                raise CodeFileError(
                    f"{display_name(name)}: does not fit {display_name(names[0])} ({error}); "
                    "extract it again with the same network and options"
                ) from None
        raise


def _rows_in_order(joined: CodeSet) -> list[int]:
    """The rows of a merged code set, those outside the list first, one for each image."""
    positions = joined.column("positions").tolist()
    row_of: dict[str, int] = {}
    for row in sorted(range(len(joined)), key=lambda row: (positions[row] < 0, row)):
        image_id = joined.image_ids[row]
        kept = row_of.setdefault(image_id, row)
        # A row with a position replaces one that its shard has kept from an earlier list.
        if kept != row and positions[row] >= 0:
            raise CodeFileError(
                f"{display_name(image_id)} is in two shards: extract both again from the start"
            )
    return sorted(row_of.values(), key=lambda row: (positions[row] >= 0, max(positions[row], 0)))
