"""What documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A test after its file, or after the file that was named last: `test_a.py::test_x`, `::test_y`.
TEST = re.compile(r"(?P<file>(?:\w+/)?test_\w+\.py)?::(?P<test>test_\w+)")


@pytest.mark.parametrize("document", ["docs/known_problems.md"])
def test_tests_that_documents_name(document):
    file, lacking = None, []
    for found in TEST.finditer((ROOT / document).read_text(encoding="utf-8")):
        file = found["file"] or file
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        if f"def {found['test']}(" not in text:
            lacking.append(f"{file}::{found['test']}")
    assert lacking == []


# Words

STEMS = (
    "author|binar|categor|character|custom|emphas|final|general|initial|local|maxim|memor|minim"
    "|normal|optim|organ|parallel|quant|random|real|recogn|regular|serial|special|standard|summar"
    "|synchron|util|vector|visual"
)
# Brackets keep this file from finding its own patterns.
BRITISH = (
    rf"(?:{STEMS})is(?:e[drs]?|ing|ations?)|anal[y]s(?:ed?|ing)|art[e]facts?|behavi[o]ur\w*"
    r"|cancel[l]ed|catal[o]gues?|cent[r]e[ds]?|col[o]ur\w*|defen[c]e|fav[o]ur\w*|gr[e]ys?"
    r"|hon[o]ur\w*|judg[e]ment|label[l](?:ed|ing)|lea[r]nt|licen[c]es?|model[l](?:ed|ing)"
    r"|neighb[o]ur\w*|whi[l]st"
)
# What has a better name: see "Style" in CONTRIBUTING.md.
BANNED = r"m[e]nd(?:s|ed|ing)?|H[a]shSubset|O[b]jectCoder|c[o]de_images"
WORD = re.compile(rf"(?<![a-z])(?:{BRITISH}|{BANNED})(?![a-z])", re.IGNORECASE)
NAME = re.compile(r"^ *(?:def|class) _?(?:tell|say)(?:_\w+)?\b", re.MULTILINE)
# A file, and a word that stays in it.
ALLOWED = {("CHANGELOG.md", "code" + "_images"), ("CHANGELOG.md", "hash" + "subset")}  # old names
FOLDERS = [
    *("configs", "datasets", "docs", "experiments", "regiondh_cli", "regiondh_d2", "tests", "tools")
]
ENDINGS = {".cff", ".css", ".html", ".js", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ""}
# Data: of tests, of experiments, and what stands in the folder of the datasets.
DATA = re.compile(r"tests/data/|\w+/results/|datasets/.*/|.*__pycache__/|\.coverage")


def texts():
    """The files of ours that hold text, with what they hold."""
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(files):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in ENDINGS and not DATA.match(name):
            yield name, path.read_text(encoding="utf-8")


def test_one_spelling_and_one_name_a_thing():
    lines = []
    for name, text in texts():
        for found in [*WORD.finditer(text), *NAME.finditer(text)]:
            if (name, found[0].lower()) not in ALLOWED:
                lines.append(f"{name}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]}")
    assert lines == []


@pytest.mark.parametrize("word", ["COLOU" + "RS", "normali" + "sed", "centr" + "e", "men" + "ded"])
def test_words_that_are_refused(word):
    assert WORD.search(f"the_{word}.")


@pytest.mark.parametrize("word", ["otherwise", "noise", "recommend", "precise", "analyses"])
def test_words_that_are_fine(word):
    assert not WORD.search(word)
