"""Times of encoding an image."""

import json

from builders import registered_scenes
from experiments.encode_times import main
from study import CONFIG, write_table


def test_the_command_times_each_config_once(tmp_path):
    table = write_table(tmp_path, a={"title": "A"}, b={"title": "B"})
    with registered_scenes(tmp_path / "scenes", "encode_times_test_", database=2):
        arguments = ["--table", table, "--results", tmp_path, "--images", 2]
        arguments += ["--dataset", "encode_times_test_regiondh_scenes_database"]
        assert main(list(map(str, arguments))) == 0
    found = json.loads((tmp_path / "milliseconds.json").read_text())
    assert list(found["milliseconds"]) == [str(CONFIG)]
    assert 1.0 < found["milliseconds"][str(CONFIG)] < 60_000.0
    assert found["images"] == 2
