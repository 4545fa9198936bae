"""The benchmark's command line, on sizes that take no time. No number of seconds is asserted."""

import itertools
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest

from regiondh_d2.engine import command, step_times
from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking
from regiondh_d2.web import decoder


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("benchmark")


SMALL = ["--queries", "30", "--items", "40", "--bits", "12", "--topk", "10", "--repeat", "1"]


def test_evaluation(tool, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    arguments = ["evaluation", *SMALL, "--baseline-queries", "20", "--json", str(out)]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "ratio" in printed.out
    written = json.loads(out.read_text())
    numbers = written["evaluation"]
    assert written["machine"]["cores"] >= 1
    assert 0 < numbers["baseline_queries_measured"] <= 20
    assert numbers["ratio"] == pytest.approx(numbers["baseline_seconds"] / numbers["seconds"])


def test_a_wrong_result_is_a_failure(tool, monkeypatch, capsys):
    """The baseline is also a check: disagreement must not end in a fine ratio."""

    def wrong(*args, **kwargs):
        result = evaluate_ranking(*args, **kwargs)
        result.per_query["MAP@10-index_order"][:] += np.float64(1e-3)
        return result

    monkeypatch.setattr(tool, "evaluate_ranking", wrong)
    assert tool.main(["evaluation", *SMALL]) == 1
    assert "MAP@10 of query 0" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["speed"], ["evaluation", "--queries", "0"]])
def test_wrong_arguments_exit_2(tool, arguments):
    with pytest.raises(SystemExit) as error:
        tool.main(arguments)
    assert error.value.code == 2


SMALL_SEARCH = ["--items", "300", "--bits", "20", "--topk", "50", "--repeat", "2"]


def test_search(tool, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    assert tool.main(["search", *SMALL_SEARCH, "--batches", "1", "5", "--json", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    numbers = json.loads(out.read_text())["search"]
    assert (numbers["database"], numbers["bits"], numbers["topk"]) == (300, 20, 50)
    assert [batch["queries"] for batch in numbers["batches"]] == [1, 5]
    for batch, line in zip(numbers["batches"], printed.out.splitlines()[-2:], strict=True):
        faiss = min(batch["faiss_heap_seconds"], batch["faiss_counting_seconds"])
        assert batch["ratio"] == pytest.approx(faiss / batch["seconds"])
        assert line.split()[0] == str(batch["queries"])
        assert int(line.split()[1]) == round(batch["queries"] / batch["seconds"])
        assert line.split()[-1] == f"{batch['ratio']:.3f}"


def test_search_in_shards(tool, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    words = ["search", *SMALL_SEARCH, "--batches", "9", "--shard-rows", "100", "--json", str(out)]
    assert tool.main(words) == 0
    numbers = json.loads(out.read_text())["search"]
    (batch,) = numbers["batches"]
    faiss = min(batch["faiss_heap_seconds"], batch["faiss_counting_seconds"])
    assert batch["shards_ratio"] == pytest.approx(faiss / batch["shards_seconds"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("shards, batch 9: ")
    assert lines[-1].startswith("shards: built in ")


@pytest.mark.parametrize(("queries", "runs"), [(1, 300), (64, 5), (400, 5)])
def test_the_fastest_run_counts_and_small_batches_run_more_often(tool, monkeypatch, queries, runs):
    """A clock that only the searches move: the runs of ours take 4, 2, 4, 2, ... seconds."""
    now, calls = 0, dict.fromkeys(("seconds", "heap", "counting"), 0)

    def make(name, seconds):
        def search(codes, k):
            nonlocal now
            now += seconds[calls[name] % 2]
            calls[name] += 1
            return np.zeros((len(codes), k)), None

        return search

    monkeypatch.setattr(tool.time, "perf_counter", lambda: now)
    monkeypatch.setattr(tool, "SECONDS", np.inf)
    ways = {
        "seconds": make("seconds", (4, 2)),
        "heap": make("heap", (1, 1)),
        "counting": make("counting", (5, 5)),
    }
    found = tool.compare_search(ways, np.zeros((queries, 8), np.uint8), 3, repeat=5)
    assert found == {"queries": queries, "seconds": 2, "heap": 1, "counting": 5, "ratio": 0.5}
    assert set(calls.values()) == {runs}


def test_a_slow_way_runs_no_more_often_than_asked(tool, monkeypatch):
    now, calls = 0.0, {"seconds": 0, "heap": 0}

    def make(name, seconds):
        def search(codes, k):
            nonlocal now
            now += seconds
            calls[name] += 1
            return np.zeros((len(codes), k)), None

        return search

    monkeypatch.setattr(tool.time, "perf_counter", lambda: now)
    ways = {"seconds": make("seconds", 0.001), "heap": make("heap", tool.SECONDS)}
    tool.compare_search(ways, np.zeros((1, 8), np.uint8), 3, repeat=5)
    assert calls == {"seconds": 300, "heap": 5}


@pytest.mark.parametrize(
    ("added", "message"), [((1, 0), "other distances"), ((0, 1), "other rows")]
)
def test_wrong_answers_are_a_failure(tool, tmp_path, monkeypatch, capsys, added, message):
    create = tool.create_index

    class Wrong(type(create(20))):
        def search(self, codes, k):
            return tuple(np.add(super().search(codes, k), np.reshape(added, (2, 1, 1))))

    monkeypatch.setattr(tool, "create_index", lambda *a, **o: create(*a, **o) if o else Wrong(*a))
    assert tool.main(["search", *SMALL_SEARCH, "--batches", "3", "--shard-rows", "100"]) == 1
    assert message in capsys.readouterr().err


@pytest.fixture
def small_images(monkeypatch):
    """Networks are timed on images of 64 x 96 pixels."""
    make = step_times.make_images
    monkeypatch.setattr(step_times, "FIXED_SIZE", (64, 96))
    monkeypatch.setattr(
        step_times, "make_images", lambda *args, **more: make(*args[:3], (64, 96), **more)
    )


@pytest.mark.parametrize("options", [[], ["--return-memory"]])
def test_training(tool, tmp_path, capsys, monkeypatch, random_network, small_images, options):
    """Steps of 9, 3, 2 and 4 s, of which the first doesn't count."""
    kept = []
    clock = iter([0, 9, 10, 13, 20, 22, 30, 34])
    monkeypatch.setattr(command, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(tool.time, "process_time", lambda: next(clock))
    out = tmp_path / "numbers.json"
    arguments = ["--config-file", random_network.config, "--images", "1", "--repeat", "3", *options]
    assert tool.main(["training", *arguments, "--json", str(out)]) == 0
    numbers = json.loads(out.read_text())["training"]
    assert (numbers["images"], numbers["seconds"]) == (1, 3)
    assert numbers["kept"] == bool(kept) == (not options)
    word = "returned" if options else "kept"
    assert f"freed memory {word}: 3.00 CPU seconds" in capsys.readouterr().out


def test_network(tool, tmp_path, capsys, monkeypatch, random_network, small_images):
    """A clock that moves by a second each time it is read."""
    now = itertools.count()
    runs = []

    def clock():
        tick = next(now)
        runs.append(tick)
        return tick

    monkeypatch.setattr(tool.time, "process_time", clock)
    out = tmp_path / "numbers.json"
    arguments = ["--config-file", random_network.config, "--images", "2", "--at-once", "1", "3"]
    arguments += ["--repeat", "1", "--json", str(out), *random_network.opts]
    assert tool.main(["network", *arguments]) == 0
    numbers = json.loads(out.read_text())["network"]
    assert numbers["steps"] == {"plain": 1, "sampled": 1, "topk": 1}
    assert numbers["at_once"] == [
        {"images": n, "training": pytest.approx(1 / n), "codes": pytest.approx(1 / n)}
        for n in (1, 3)
    ]
    assert len(runs) == 3 * (3 + 4)  # a start, and start and end, of each step and number
    printed = capsys.readouterr().out
    assert "best proposals fused    1.000   1.00" in printed
    assert printed.splitlines()[-1].split() == ["3", "0.333", "0.333"]


def test_a_network_without_fusion_is_refused(tool, random_network, capsys):
    config = random_network.config
    options = ["MODEL.META_ARCHITECTURE", "ImageHash", "MODEL.ROI_HEADS.NAME", "WholeImageHeads"]
    arguments = ["network", "--config-file", config, *random_network.opts, *options]
    assert tool.main(arguments) == 1
    assert "WholeImageHeads has no fusion" in capsys.readouterr().err


def test_page(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(decoder, "_context", lambda: multiprocessing.get_context("fork"))
    out = tmp_path / "numbers.json"
    words = ["page", "--photos", "1005", "--queries", "5", "--bits", "32", "--json", str(out)]
    assert tool.main(words) == 0
    numbers = json.loads(out.read_text())["page"]
    assert (numbers["photos"], numbers["objects"]) == (1005, 3015)
    assert 0 < numbers["median_ms"] <= numbers["p95_ms"]
    static = Path(decoder.__file__).parent / "static"
    size = sum(file.stat().st_size for file in static.iterdir())
    assert numbers["page_bytes"] == size < numbers["first_bytes"]
    if sys.platform == "linux":
        assert min(numbers["memory_bytes"], numbers["reader_bytes"]) > 0
    assert "from a click to answers" in capsys.readouterr().out
    assert tool.main(["page", "--photos", "5", "--queries", "5"]) == 1
