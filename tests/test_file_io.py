"""Files are complete or absent."""

import os

import pytest

from regiondh_d2.utils.file_io import write_json


def test_write_json_is_complete_or_absent(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1.5})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1.5\n}\n'
    assert os.listdir(tmp_path) == ["metrics.json"]
