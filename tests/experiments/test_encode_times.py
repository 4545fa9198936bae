"""Times of encoding an image."""

import json

import numpy as np

from builders import registered_scenes
from experiments.encode_times import main
from study import write_table


def test_rows_of_one_network_share_what_was_measured(tmp_path, capfd):
    held = np.ones(2_000_000_000, np.uint8)  # by this process, which doesn't count
    few = ["MODEL.RPN.POST_NMS_TOPK_TEST", 1]
    same = ["MODEL.REGION_DH.LOSS_WEIGHTS.SIMILARITY", 1.0, "MODEL.WEIGHTS", "{output}/other.pth"]
    same += ["MODEL.REGION_DH.OBJECTIVE", "dpsh"]
    rows = {"a": {"title": "A"}, "b": {"title": "B", "opts": same, "bits": [16]}}
    table = write_table(tmp_path, **rows, c={"title": "C", "opts": few})
    with registered_scenes(tmp_path / "scenes", "encode_times_test_", database=2):
        arguments = ["--table", table, "--results", tmp_path, "--images", 2]
        arguments += ["--dataset", "encode_times_test_regiondh_scenes_database"]
        assert main(list(map(str, arguments))) == 0
    found = json.loads((tmp_path / "milliseconds.json").read_text())
    assert found["images"] == 2
    for name, least, most in (
        ("milliseconds", 1.0, 60_000.0),
        ("megabytes", 100.0, held.nbytes / 1e6),
    ):
        costs = found[name]
        assert list(costs) == ["a", "b", "c"]
        assert all(least < cost < most for cost in costs.values())
        assert costs["a"] == costs["b"] != costs["c"]
    assert [line.partition(":")[0] for line in capfd.readouterr().out.splitlines()] == ["a", "c"]
