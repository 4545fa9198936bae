"""The fenced code blocks of documents, and the commands in them, for the tests that run them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"(\w+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its document below the root, the heading above it, language and text."""

    document: str
    heading: str
    language: str
    text: str


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    # A comment in a block looks like a heading.
    outside = [
        h
        for h in _HEADING.finditer(text)
        if not any(b.start() < h.start() < b.end() for b in found)
    ]
    return [
        Block(
            document,
            next((h[1] for h in reversed(outside) if h.start() < block.start()), ""),
            block[1],
            block[2],
        )
        for block in found
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, with variables in place.

    Assignments before a command are left out, as are comments and ``export NAME=VALUE``.
    """
    variables: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and (words[0] == "export" or _ASSIGNMENT.fullmatch(words[0])):
            assigned = _ASSIGNMENT.fullmatch(words.pop(0))
            if assigned is not None:
                variables[assigned[1]] = assigned[2]
        words = [variables.get(word[1:], word) if word[:1] == "$" else word for word in words]
        if words:
            yield words
