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
