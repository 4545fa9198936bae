"""The command line that evaluates code files."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import FINGERPRINT, code_set
from regiondh_d2.checkpoint import state_fingerprint
from regiondh_d2.evaluation import evaluate_ranking
from regiondh_d2.evaluation.reranking import evaluate_reranking
from regiondh_d2.retrieval.code_store import read_codes, write_codes

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "evaluate_codes.py"


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("evaluate_codes")


# Three queries; the last has no relevant item. All orders of the ties are few enough to list.
QUERY = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 1]], bool)
QUERY_LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]])
DATABASE = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
DATABASE_LABELS = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])


def write(path, codes=None, labels=None, **changes):
    codes = QUERY if codes is None else codes
    values = {
        "file_names": [f"{Path(path).stem}/{i}.jpg" for i in range(len(codes))],
        "labels": labels,
        "class_names": ["a", "b", "c"],
        "model_fingerprint": FINGERPRINT,
    }
    write_codes(path, code_set(codes, **(values | changes)))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return (
        write(tmp_path / "q.h5", QUERY, QUERY_LABELS),
        write(tmp_path / "d.h5", DATABASE, DATABASE_LABELS),
    )


def map_over_all_orders(k):
    """Mean over the queries of the mean, the minimum and the maximum of AP over all tie orders."""
    collected = []
    for code, labels in zip(QUERY[:2], QUERY_LABELS, strict=False):
        distances = (code != DATABASE).sum(1)
        relevant = DATABASE_LABELS @ labels > 0
        groups = [np.flatnonzero(distances == d) for d in np.unique(distances)]
        values = []
        for parts in itertools.product(*map(itertools.permutations, groups)):
            top = relevant[list(itertools.chain(*parts))][:k]
            hits = np.cumsum(top)
            precision = hits / np.arange(1, k + 1)
            values.append((top * precision).sum() / max(1, hits[-1]))
        collected.append((np.mean(values), min(values), max(values)))
    return np.mean(collected, axis=0)


def test_table_and_json(tool, files, tmp_path, capsys):
    query, database = files
    out = tmp_path / "new" / "metrics.json"
    arguments = ["--query", query, "--database", database, "--topk", "3", "6", "--json", str(out)]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    metrics = json.loads(out.read_text())
    for k in (3, 6):
        expected, lowest, highest = map_over_all_orders(k)
        assert metrics[f"MAP@{k}"] == pytest.approx(expected, abs=1e-9)
        assert metrics[f"MAP@{k}-pessimistic"] == pytest.approx(lowest, abs=1e-12)
        assert metrics[f"MAP@{k}-optimistic"] == pytest.approx(highest, abs=1e-12)
        row = next(line for line in printed.out.splitlines() if line.startswith(f"MAP@{k} "))
        assert row.split()[1:4] == [f"{value:.4f}" for value in (expected, lowest, highest)]
    assert metrics["num_queries_without_relevant"] == 1
    assert "3 queries in 6 codes of 3 bits" in printed.out
    assert "1 queries without any relevant item" in printed.out


def test_a_large_k_warns(tool, files, capsys):
    assert tool.main(["--query", files[0], "--database", files[1]]) == 0
    assert capsys.readouterr().err.startswith("warning: top k of 1000 is above the database's 6")


def measured(tool, tmp_path, capsys, *arguments):
    out = tmp_path / "metrics.json"
    assert tool.main([*arguments, "--json", str(out)]) == 0
    printed = capsys.readouterr()
    return json.loads(out.read_text()), printed.out, printed.err


@pytest.fixture
def random_file(tmp_path):
    """Random codes of 80 images, two of which are one file."""
    rng = np.random.default_rng(4)
    names = [f"photos/{i}.jpg" for i in range(80)]
    names[70] = names[3]
    labels = np.eye(3)[rng.integers(0, 3, 80)]
    return write(tmp_path / "all.h5", rng.random((80, 16)) < 0.5, labels, file_names=names)


def test_random_codes_against_themselves(tool, random_file, tmp_path, capsys):
    arguments = ["--query", random_file, "--database", random_file, "--topk", "1", "20"]
    plain, _, warned = measured(tool, tmp_path, capsys, *arguments)
    assert plain["P@1-optimistic"] == 1
    assert plain["num_queries_in_database"] == 80
    assert "warning: 80 of 80 queries are in the database and find themselves first" in warned
    assert "warning: 1 database images are there already" in warned
    assert "photos/3.jpg" in warned

    found, out, warned = measured(tool, tmp_path, capsys, *arguments, "--exclude-self")
    assert found["P@1-optimistic"] < 0.6
    assert found["num_queries_in_database"] == 80
    assert "80 queries are in the database and left out of their own rankings" in out
    assert "find themselves" not in warned
    # As if each query had a database of its own, without its rows.
    codes = read_codes(random_file)
    expected = []
    for row in range(80):
        kept = [i for i in range(80) if codes.file_names[i] != codes.file_names[row]]
        result = evaluate_ranking(
            codes.codes[[row]],
            codes.codes[kept],
            codes.labels[[row]],
            codes.labels[kept],
            bits=16,
            topk=20,
        )
        expected.append(result.metrics["MAP_min@20"])
    assert found["MAP_min@20"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_queries_that_are_elsewhere_change_nothing(tool, files, tmp_path, capsys):
    arguments = ["--query", files[0], "--database", files[1], "--topk", "3"]
    plain = measured(tool, tmp_path, capsys, *arguments)
    assert plain[0]["num_queries_in_database"] == 0
    assert plain == measured(tool, tmp_path, capsys, *arguments, "--exclude-self")


def test_reference_codes_and_a_second_stage_without_a_query_itself(
    tool, random_file, tmp_path, capsys
):
    codes = read_codes(random_file)
    features = np.eye(80, dtype=np.float16)[:, :20]
    write_codes(random_file, replace(codes, features=features))
    arguments = ["--query", random_file, "--database", random_file, "--topk", "1"]
    for options in (["--reference", "true_labels"], ["--rerank", "5", "--rerank-by", "features"]):
        plain, _, warned = measured(tool, tmp_path, capsys, *arguments, *options)
        assert "80 of 80 queries are in the database" in warned
        found, _, warned = measured(tool, tmp_path, capsys, *arguments, *options, "--exclude-self")
        assert "find themselves" not in warned
        assert plain["num_queries_in_database"] == found["num_queries_in_database"] == 80
        assert (plain["P@1"] == found["P@1"]) == (options[0] == "--reference")  # all of a label tie


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.zeros((6, 4), bool)}, "3 bits and the database 4"),
        ({"class_names": ["a", "b", "d"]}, "class names"),
        ({"model_fingerprint": "e" * 64}, "encode both with the same model"),
        ({"labels": None}, "no labels in the database file"),
        ({"labels": np.zeros((6, 3))}, "nothing to measure"),
    ],
)
def test_what_cannot_be_compared_is_refused(tool, files, tmp_path, capsys, changes, message):
    arguments = {"codes": DATABASE, "labels": DATABASE_LABELS} | changes
    database = write(tmp_path / "other.h5", **arguments)
    out = tmp_path / "metrics.json"
    arguments = ["--query", files[0], "--database", database, "--topk", "3", "--json", str(out)]
    assert tool.main(arguments) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not out.exists()


@pytest.mark.parametrize("arguments", [[], ["--query", "q.h5"], ["--topk", "0"], ["--topk", "x"]])
def test_wrong_arguments_exit_2(tool, files, arguments):
    if "--topk" in arguments:
        arguments = ["--query", files[0], "--database", files[1], *arguments]
    with pytest.raises(SystemExit) as error:
        tool.main(arguments)
    assert error.value.code == 2


@pytest.mark.slow
def test_as_a_program(files, tmp_path):
    """A missing file: exit status 1 and one line that names it."""
    absent = str(tmp_path / "absent.h5")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, "--query", absent, "--database", files[1]],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert absent in done.stderr
    assert done.stderr.count("\n") == 1


def test_reference_codes_take_the_place_of_the_files(tool, files, tmp_path, capsys):
    def measure(query, database, *args):
        out = tmp_path / "metrics.json"
        arguments = ["--query", query, "--database", database, "--topk", "6", "--json", str(out)]
        assert tool.main([*arguments, *args]) == 0
        return json.loads(out.read_text()), capsys.readouterr().out

    labels = (
        write(tmp_path / "ql.h5", QUERY_LABELS == 1, QUERY_LABELS),
        write(tmp_path / "dl.h5", DATABASE_LABELS == 1, DATABASE_LABELS),
    )
    found = measure(*files, "--reference", "true_labels")
    assert found == measure(*labels)
    assert found != measure(*files)
    _, out = measure(*files, "--reference", "random", "--bits", "5")
    assert out.startswith("3 queries in 6 codes of 5 bits")
    arguments = ["--query", files[0], "--database", files[1], "--reference", "itq"]
    assert tool.main(arguments) == 1
    assert "no features in the query codes" in capsys.readouterr().err


def test_spectral_codes_of_the_stored_features(tool, tmp_path, capsys):
    """Images at 0, 3, ..., 15 on a line: the bits change at 7.5, and at 3.75 and 11.25."""

    def measure(name, query, database, features=(None, None), *args):
        files = [
            write(tmp_path / f"{name}_{role}.h5", codes, labels, features=values)
            for role, codes, labels, values in (
                ("query", query, QUERY_LABELS, features[0]),
                ("database", database, DATABASE_LABELS, features[1]),
            )
        ]
        out = tmp_path / f"{name}.json"
        arguments = ["--query", files[0], "--database", files[1], "--topk", "4", *args]
        assert tool.main([*arguments, "--json", str(out)]) == 0
        assert "3 queries in 6 codes of 2 bits" in capsys.readouterr().out
        return json.loads(out.read_text())

    query = np.array([[1, 1], [1, 0], [0, 1]], bool)
    database = np.array([[1, 1], [1, 1], [1, 0], [0, 0], [0, 1], [0, 1]], bool)
    positions = [np.array(x, np.float16)[:, None] for x in ([1, 5, 13], [0, 3, 6, 9, 12, 15])]
    args = ("--reference", "spectral", "--bits", "2")
    found = measure("features", QUERY, DATABASE, positions, *args)
    assert found == measure("codes", query, database)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "8"], "--bits is only for --reference"),
        (["--reference", "true_labels", "--bits", "8"], "has one bit for each class"),
        (["--rerank-by", "features"], "--rerank-by needs --rerank N"),
        (["--reference", "random", "--rerank", "3"], "reference codes have no activations"),
        (["--rerank", "3", "--query-classes", "bits"], "--query-classes needs --rerank-by classes"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tool, files, capsys, options, message):
    with pytest.raises(SystemExit) as error:
        tool.main(["--query", files[0], "--database", files[1], *options])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_image_classes_come_from_the_classifier_of_a_checkpoint(tool, tmp_path, capsys):
    """A classifier that reads off the labels, so that the codes are those of the true labels."""
    files = [
        write(tmp_path / f"{name}.h5", codes, labels, activations=labels.astype(np.float16))
        for name, codes, labels in (
            ("q", QUERY, QUERY_LABELS),
            ("d", DATABASE, DATABASE_LABELS),
        )
    ]
    name = "roi_heads.image_hash.classifier"
    classifier = {f"{name}.weight": torch.eye(3), f"{name}.bias": torch.full((3,), -0.5)}
    torch.save({"model": classifier}, tmp_path / "w.pth")
    torch.save({"model": {}}, tmp_path / "empty.pth")
    arguments = ["--query", files[0], "--database", files[1], "--topk", "6", "--reference"]
    assert tool.main([*arguments, "image_classes", "--weights", str(tmp_path / "w.pth")]) == 0
    found = capsys.readouterr().out
    assert tool.main([*arguments, "true_labels"]) == 0
    assert capsys.readouterr().out == found
    assert tool.main([*arguments, "image_classes", "--weights", str(tmp_path / "empty.pth")]) == 1
    assert "empty.pth is no checkpoint with an image classifier" in capsys.readouterr().err
    (tmp_path / "damaged.pth").write_bytes(b"nothing")
    assert tool.main([*arguments, "image_classes", "--weights", str(tmp_path / "damaged.pth")]) == 1
    assert "damaged.pth can't be read as weights" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        tool.main([*arguments, "image_classes"])
    assert "belong together" in capsys.readouterr().err


def test_a_second_stage(tool, tmp_path, capsys):
    """The numbers are those of evaluate_reranking; what a file lacks is told."""
    activations = (QUERY * 0.5 + 0.2).astype(np.float16)
    query = write(tmp_path / "q.h5", QUERY, QUERY_LABELS, activations=activations)
    database = write(tmp_path / "d.h5", DATABASE, DATABASE_LABELS)
    out = tmp_path / "out.json"
    arguments = ["--query", query, "--database", database, "--topk", "4", "--rerank", "3"]
    assert tool.main([*arguments, "--json", str(out)]) == 0
    expected = evaluate_reranking(read_codes(query), read_codes(database), [4], 3)
    assert json.loads(out.read_text()) == expected.metrics
    assert f"MAP@4           {expected.metrics['MAP@4']:13.4f}" in capsys.readouterr().out
    assert tool.main([*arguments, "--topk", "9"]) == 0
    error = capsys.readouterr().err
    assert error.count("warning: ") == 1
    assert error.startswith("warning: top k of 9 is above the database's 6 items")
    assert tool.main([*arguments, "--rerank-by", "features"]) == 1
    assert "no features in the query codes" in capsys.readouterr().err


def test_a_second_stage_by_classes(tool, tmp_path, capsys):
    """A classifier that reads off the labels, which are in other bits than the codes' first ones:
    what shares all labels with a query comes first."""
    weights = np.vstack([20 * np.eye(3), np.full((1, 3), -10)]).astype(np.float32)
    stored = {"class_weights": weights}
    query = write(
        tmp_path / "q.h5", QUERY_LABELS, QUERY_LABELS, activations=1.0 - QUERY_LABELS, **stored
    )
    database = write(tmp_path / "d.h5", DATABASE_LABELS, DATABASE_LABELS, **stored)
    arguments = ["--query", query, "--database", database, "--topk", "6", "--rerank", "6"]
    read = read_codes(query), read_codes(database)
    out = tmp_path / "out.json"
    seen = []
    for options, by, source in (
        (["--rerank-by", "classes"], "classes", "bits"),
        ([], None, "bits"),
        (["--rerank-by", "classes", "--query-classes", "activations"], "classes", "activations"),
    ):
        assert tool.main([*arguments, *options, "--json", str(out)]) == 0
        expected = evaluate_reranking(*read, [6], 6, by, query_classes=source).metrics
        assert json.loads(out.read_text()) == expected
        seen.append(expected["MAP@6"])
    assert seen[0] > max(seen[1:])  # the activations say the opposite

    # Files of before class_weights: those of the network's weights.
    name = "roi_heads.image_hash.classifier"
    classifier = {f"{name}.weight": torch.eye(3) * 20, f"{name}.bias": torch.full((3,), -10.0)}
    torch.save({"model": classifier}, tmp_path / "w.pth")
    known = {"model_fingerprint": state_fingerprint(classifier)}
    query = write(tmp_path / "q.h5", QUERY_LABELS, QUERY_LABELS, **known)
    database = write(tmp_path / "d.h5", DATABASE_LABELS, DATABASE_LABELS, **known)
    assert tool.main([*arguments, "--rerank-by", "classes"]) == 1
    assert "no class_weights in the database codes" in capsys.readouterr().err
    arguments += ["--rerank-by", "classes", "--weights", str(tmp_path / "w.pth")]
    assert tool.main([*arguments, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["MAP@6"] == seen[0]
    torch.save({"model": {**classifier, "other": torch.ones(1)}}, tmp_path / "w.pth")
    assert tool.main(arguments) == 1
    assert "w.pth is not the network that made" in capsys.readouterr().err
