"""The table of second stages."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from builders import code_set, registered
from experiments.second_stage import STAGES, main, split_by_roles
from regiondh_d2.evaluation.reranking import evaluate_reranking
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.structures.code_rows import take_rows
from regiondh_d2.utils.errors import RegionDHError

BITS = 8


def make_codes(seed, rows):
    rng = np.random.default_rng(seed)
    activations = rng.random((rows, BITS)).astype(np.float16)
    weights = np.random.default_rng(9).normal(size=(BITS + 1, 3)).astype(np.float32)
    return code_set(
        activations > 0.5,
        activations=activations,
        labels=rng.random((rows, 3)) < 0.5,
        class_names=["a", "b", "c"],
        model_fingerprint="f" * 64,
        class_weights=weights,
    )


@pytest.fixture
def halves():
    """A dataset of ten images that search each other."""
    with registered():
        records = [{"image_id": str(i), "role": ("query", "database")[i % 2]} for i in range(10)]
        DatasetCatalog.register("halves", lambda: records)
        yield "halves"


def test_the_table_is_that_of_evaluations(halves, tmp_path, capsys):
    query, database = make_codes(0, 10), make_codes(1, 20)
    files = [str(tmp_path / f"{name}.h5") for name in "qd"]
    for path, codes in zip(files, (query, database), strict=True):
        write_codes(path, codes)
    out = tmp_path / "out.json"
    words = ["--query", files[0], "--database", files[1], "--topk", "5", "--unseen", halves]
    main([*words, "--json", str(out)])
    found = json.loads(out.read_text())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {stage}" for stage in STAGES]
    pairs = {
        "seen": (query, database),
        "unseen": (take_rows(query, range(0, 10, 2)), take_rows(query, range(1, 10, 2))),
    }
    for name, pair in pairs.items():
        result = evaluate_reranking(*pair, [5], 20, "classes", query_classes="activations")
        (values,) = [v for stage, v in found[name].items() if stage.endswith("own")]
        assert values == {m: result.metrics[f"{m}@5"] for m in ("MAP", "MAP_min", "NDCG", "ACG")}
        assert len({values["MAP"] for values in found[name].values()}) > 1


def test_an_image_that_is_missing(halves):
    with pytest.raises(RegionDHError, match="the query codes lack image 7 of halves"):
        split_by_roles(make_codes(0, 7), halves)


def test_wrong_words_are_told_and_no_code_file_is_replaced(tmp_path, capsys):
    files = [str(tmp_path / f"{name}.h5") for name in "qd"]
    for path in files:
        write_codes(path, make_codes(0, 4))
    words = ["--query", files[0], "--database", files[1]]
    for more, message in (
        (["--json", files[1]], "which this command reads"),
        (["--weights", files[0]], "q.h5"),
        (["--database", str(tmp_path / "none.h5")], "none.h5: no such file"),
    ):
        assert main([*words, *more]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert len(read_codes(files[1])) == 4
    with pytest.raises(SystemExit):
        main([*words, "--topk", "0"])
