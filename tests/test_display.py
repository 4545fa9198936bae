"""Names of files as people see them."""

import os
import sys
from pathlib import Path

import pytest

from regiondh_d2.utils.display import display_name, display_width, print_line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("photos/IMG 1.jpg", "photos/IMG 1.jpg"),
        ("Ünïcode/写真 🎉.png", "Ünïcode/写真 🎉.png"),
        ("a\nb.jpg", r"a\nb.jpg"),
        ("a\x1b[31mred.jpg", r"a\x1b[31mred.jpg"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("a\u2028b", r"a\u2028b"),
        ("tab\there\x7f", r"tab\there\x7f"),
        (b"caf\xe9.jpg", r"caf\xe9.jpg"),
        ("family \U0001f468\u200d\U0001f469.jpg", "family \U0001f468\u200d\U0001f469.jpg"),
    ],
)
def test_what_is_shown(name, shown):
    assert display_name(name) == shown
    shown.encode("utf-8")


def test_paths_are_names():
    assert display_name(Path("a\rb")) == r"a\rb"
    assert display_name(os.fsdecode(b"\xff")) == r"\xff"


def test_columns_of_a_terminal():
    assert display_width("abc") == 3
    assert display_width("\u4e16\u754c.jpg") == 8
    assert display_width("e\u0301") == 1
    assert display_width("\U0001f600") == 2


def test_a_line_with_names(capsys):
    print_line("a\nb\udce9: \x1b[31m")
    print_line("c\td", sys.stderr)
    assert capsys.readouterr() == ("a\\nb\\xe9: \\x1b[31m\n", "c\\td\n")
