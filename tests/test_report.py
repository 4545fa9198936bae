"""The report page: its numbers, pictures and text, read back from what the command writes."""

import base64
import hashlib
import io
import json
import os
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from builders import FINGERPRINT, code_set
from regiondh_d2.evaluation import retrieval_analysis
from regiondh_d2.evaluation.ranking_metrics import METRICS, evaluate_ranking
from regiondh_d2.evaluation.retrieval_evaluator import rank_code_sets
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.structures.code_rows import take_rows
from regiondh_d2.structures.packed import pack_codes
from regiondh_d2.utils.marks import mark_of
from regiondh_d2.visualization import report

CLASSES = ("cat", "dog", "sofa", "dining table")
BITS, QUERIES, IMAGES, TOPK = 10, 30, 80, 20


class Page(HTMLParser):
    """Tables, strips and texts of a page; fails on tags that don't match."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.strips, self.text, self.attributes = [], [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "div" and attributes.get("class") == "strip":
            self.strips.append([])
        elif tag == "figure":
            self.strips[-1].append({"kind": attributes["class"], "source": None, "text": ""})
        elif tag == "img":
            self.strips[-1][-1]["source"] = attributes["src"]

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
        if "figcaption" in self.open:
            self.strips[-1][-1]["text"] += data

    def table(self, corner):
        """Rows by their first cell, of the table with this text in its first row."""
        (found,) = [table for table in self.tables if corner in table[0]]
        return {row[0]: row[1:] for row in found[1:]}


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("report")


def make_codes(rng, count, role, folder, classes=CLASSES):
    """Codes that follow labels, and an image of one color for each."""
    labels = rng.random((count, len(classes))) < 0.3
    labels[0], labels[-1] = False, True  # the first can't be measured
    planes = np.random.default_rng(7).normal(size=(len(classes), BITS))
    codes = labels @ planes + 0.7 * rng.normal(size=(count, BITS)) > 0.3
    codes[:, 3] = True
    names = [str(folder / f"{role}{i}.png") for i in range(count)]
    return code_set(
        codes,
        image_ids=[f"{role}{i}" for i in range(count)],
        file_names=names,
        labels=labels,
        class_names=list(classes),
        dataset="few",
        config="small.yaml",
        model_fingerprint=FINGERPRINT,
    )


def write_files(folder):
    """Code files, and their images in colors that tell them apart."""
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for role, count in (("query", QUERIES), ("database", IMAGES)):
        codes = make_codes(rng, count, role, images)
        for i, name in enumerate(codes.file_names):
            Image.new("RGB", (30, 20), (2 * i, 255 - 2 * i, 0)).save(name)
        write_codes(folder / f"{role}.h5", codes)
    return folder


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path)


def arguments(folder, *more):
    fixed = ["--query", folder / "query.h5", "--database", folder / "database.h5"]
    return [str(a) for a in [*fixed, "--output", folder / "out" / "page.html", *more]]


@pytest.fixture
def write(tool, files):
    """A function that runs the command and reads the page."""

    def run(*more):
        assert tool.main(arguments(files, "--topk", TOPK, *more)) == 0
        return Page((files / "out" / "page.html").read_text())

    return run


@pytest.fixture
def no_plots(monkeypatch):
    """Pages without plots, which take most of the time, for tests of other parts."""
    names = ("distances", "recall", "precision", "balance", "correlation")
    monkeypatch.setattr(report, "_figures", lambda query, found: dict.fromkeys(names, ""))


@pytest.fixture(scope="module")
def standard(tool, tmp_path_factory):
    """A folder with the files as they are, and the page about them."""
    folder = write_files(tmp_path_factory.mktemp("standard"))
    assert tool.main(arguments(folder, "--topk", TOPK)) == 0
    return folder, Page((folder / "out" / "page.html").read_text())


@pytest.fixture(scope="module")
def page(standard):
    return standard[1]


@pytest.fixture(scope="module")
def ranking(standard):
    folder, _ = standard
    query, database = read_codes(folder / "query.h5"), read_codes(folder / "database.h5")
    return query, database, evaluate_ranking(
        query.codes, database.codes, query.labels, database.labels, bits=BITS, topk=TOPK
    )  # fmt: skip


def change(files, role, **changes):
    codes = read_codes(files / f"{role}.h5")
    for name, value in changes.items():
        setattr(codes, name, value)
    write_codes(files / f"{role}.h5", codes)


def test_metrics_with_their_bounds(page, ranking):
    table = page.table("worst order")
    metrics = ranking[2].metrics
    assert list(table) == [f"{metric}@{TOPK}" for metric in METRICS]
    for name, cells in table.items():
        orders = ("", "-pessimistic", "-optimistic", "-index_order")
        assert cells == [f"{metrics[name + order]:.3f}" for order in orders]


def test_a_ranking_that_is_known_is_not_made_again(standard, ranking, tmp_path, monkeypatch):
    folder, _ = standard
    query, database, _ = ranking
    ranked = rank_code_sets(query, database, TOPK)
    monkeypatch.setattr(retrieval_analysis, "rank_code_sets", None)
    files = (folder / "query.h5", folder / "database.h5")
    notes = report.write_report(tmp_path / "page.html", *files, topk=TOPK, ranked=ranked)
    assert (tmp_path / "page.html").read_bytes() == (folder / "out/page.html").read_bytes()
    assert notes == ranked[1]


def test_classes_from_the_weakest(page, ranking):
    query, database, result = ranking
    left_out = result.metrics["num_queries_without_relevant"]
    assert f"any image of the database:\n{left_out} of the queries" in page.text
    table = page.table("alone")
    assert set(table) == set(CLASSES)
    alone = [float(cells[2]) for cells in table.values()]
    assert alone == sorted(alone)
    for class_id, name in enumerate(CLASSES):
        rows = query.labels[:, class_id] == 1
        own = evaluate_ranking(
            query.codes[rows], database.codes, query.labels[rows][:, [class_id]],
            database.labels[:, [class_id]], bits=BITS, topk=TOPK,
        )  # fmt: skip
        means = [result.per_query[f"{m}@{TOPK}"][rows].mean() for m in METRICS]
        shown = dict(zip(METRICS, means, strict=True))
        assert table[name][:-1] == [
            str(rows.sum()),
            str(database.labels[:, class_id].sum()),
            f"{own.metrics[f'MAP_min@{TOPK}']:.3f}",
            *(f"{shown[m]:.3f}" for m in ("MAP", "MAP_min", "NDCG", "ACG")),
        ]


def test_wrong_answers_are_counted_by_what_they_show(page, ranking):
    query, database, _ = ranking
    class_id = 1
    counts = np.zeros(len(CLASSES), int)
    distances = (np.unpackbits(query.codes[:, None] ^ database.codes, axis=2)).sum(axis=2)
    for row in np.flatnonzero(query.labels[:, class_id]):
        for item in np.argsort(distances[row], kind="stable")[:10]:
            if not (query.labels[row] & database.labels[item]).any():
                counts += database.labels[item]
    order = sorted(range(len(CLASSES)), key=lambda i: (-counts[i], i))[:3]
    expected = ", ".join(f"{CLASSES[i]} {counts[i]}" for i in order if counts[i])
    assert page.table("alone")[CLASSES[class_id]][-1] == expected != ""


def color(source):
    head, data = source.split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image).reshape(-1, 3).mean(axis=0)


def test_worst_and_best_queries_as_pictures(page, ranking):
    query, database, result = ranking
    score = result.per_query[f"MAP_min@{TOPK}"]
    ascending = np.argsort(score, kind="stable")[: QUERIES - 1]  # NaN is last
    rows = [*ascending[:10], *sorted(ascending[10:], key=lambda row: (-score[row], row))[:4]]
    assert len(page.strips) == len(rows)
    distances = np.unpackbits(query.codes[:, None] ^ database.codes, axis=2).sum(axis=2)
    for row, strip in zip(rows, page.strips, strict=True):
        related = (query.labels[row] & database.labels).any(axis=1)
        title = (
            f"query{row}: MAP_min {score[row]:.3f}, {related.sum()} relevant, "
            f"the nearest at distance {distances[row][related].min()}"
        )
        assert title in page.text
        assert strip[0]["kind"] == "query"
        assert color(strip[0]["source"]) == pytest.approx([2 * row, 255 - 2 * row, 0], abs=4)
        answers = np.argsort(distances[row], kind="stable")[:6]
        for item, shown in zip(answers, strip[1:], strict=True):
            assert shown["kind"] == ("hit" if related[item] else "miss")
            assert shown["text"].startswith(f"distance {distances[row, item]}\n")
            assert color(shown["source"]) == pytest.approx([2 * item, 255 - 2 * item, 0], abs=4)
            names = {CLASSES[i] for i in np.flatnonzero(database.labels[item])}
            assert shown["text"].split()[2] == f"database{item}.png"
            words = " ".join(shown["text"].split()[3:])
            assert set(filter(None, words.split(", "))) == names


def test_bits(page, ranking):
    database = ranking[1]
    text = " ".join(page.text.split())
    distinct = len({code.tobytes() for code in database.codes})
    assert f"Of the 80 codes of the database {distinct} are different" in text
    assert "1 of 10 bits are saturated" in text
    assert "1 of them constant" in text


def test_provenance(write, files, no_plots):
    os.utime(files / "query.h5", (0, 0))
    table = write().table("database")
    assert table["written"][0] == "1970-01-01 00:00 UTC"
    assert table["model fingerprint"] == ["f" * 64] * 2
    assert table["file"] == [str(files / "query.h5"), str(files / "database.h5")]
    assert table["images"] == [str(QUERIES), str(IMAGES)]
    digests = [hashlib.sha256((files / f"{r}.h5").read_bytes()) for r in ("query", "database")]
    assert table["sha256"] == [digest.hexdigest() for digest in digests]
    assert "settings" not in table


def test_the_same_files_give_the_same_bytes(tool, standard, capsys):
    folder, _ = standard
    path = folder / "out" / "page.html"
    before = path.read_bytes()
    assert mark_of(path) == "page"
    # It is known as the program's own, so that it may be replaced.
    assert tool.main(arguments(folder, "--topk", TOPK)) == 0
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == f"report: {path}\n"


def test_the_page_needs_nothing_from_elsewhere(standard):
    folder, page = standard
    text = (folder / "out" / "page.html").read_text()
    assert "<script" not in text
    assert "url(http" not in text
    links = {(tag, name): value for tag, name, value in page.attributes if name in ("src", "href")}
    assert all(value.startswith(("data:", "#")) for value in links.values())
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 0
    assert sum(tag == "svg" for tag, name, _ in page.attributes if name == "viewbox") == 6


def test_text_is_escaped(write, files):
    bad = '<script>alert("x")</script>&amp;'
    for role in ("query", "database"):
        change(files, role, class_names=[bad, "b", "c", "d"], dataset=bad, config=bad)
    change(files, "query", image_ids=[f"{bad}{i}" for i in range(QUERIES)])
    change(files, "database", file_names=[f"{bad}{i}" for i in range(IMAGES)])
    page = write("--title", bad)
    assert "<script" not in (files / "out" / "page.html").read_text()
    assert page.text.count(bad) > 20
    assert page.table("alone")[bad]
    assert page.table("database")["config"] == [bad, bad]


def test_images_that_cannot_be_read_are_told(write, files, capsys, no_plots):
    for path in (files / "images").glob("*.png"):
        if path.name.startswith("database"):
            path.unlink()
    (files / "images" / "query5.png").write_bytes(b"no image")
    page = write()
    missing = [shown for strip in page.strips for shown in strip if shown["source"] is None]
    answers = sum(len(strip) - 1 for strip in page.strips)
    assert len(missing) in (answers, answers + 1)
    note = f"{len(missing)} of {answers + len(page.strips)} pictures could not be read; first "
    assert note in page.text
    assert capsys.readouterr().err.startswith(f"warning: {note}")


def test_images_are_read_with_the_limit_of_their_code_file(write, files, no_plots):
    change(files, "query", settings=f"MODEL.REGION_DH.MAX_PIXELS {30 * 20 - 1}")
    change(files, "database", settings=f"MODEL.REGION_DH.MAX_PIXELS {30 * 20}")
    for strip in write().strips:
        assert strip[0]["source"] is None
        assert all(shown["source"] for shown in strip[1:])


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_package_that_is_missing(tool, files, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert tool.main(arguments(files)) == 1
    printed = capsys.readouterr()
    assert f"the report needs {package}".lower() in printed.err.lower()
    assert "pip install 'regiondh_d2[demo]'" in printed.err
    assert printed.err.count("\n") == 1
    assert not (files / "out").exists()


def test_further_numbers_and_references(write, files, ranking, capsys, no_plots):
    measured = ranking[2].metrics
    values = {
        **measured,
        f"untrained/MAP@{TOPK}": 0.125,
        f"untrained/ACG@{TOPK}": 0.25,
        f"untrained/ACG@{TOPK}-optimistic": 0.375,
        "bbox/AP50": 38.75,
    }
    path = files / "metrics.json"
    path.write_text(json.dumps(values))
    page = write("--metrics", path)
    table = page.table("worst order")
    assert [table[f"{m}@{TOPK}"][4].strip() for m in ("MAP", "ACG", "P")] == ["0.125", "0.250", ""]
    assert [["bbox/AP50", "38.75"]] in page.tables
    assert "0.375" not in page.text
    assert capsys.readouterr().err == ""

    path.write_text(json.dumps(values | {f"MAP@{TOPK}": 0.5}))
    write("--metrics", path)
    assert "its numbers are of other codes" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("queries", [1, 2])
def test_a_few_codes_of_one_bit(tool, files, queries, capsys):
    for role, count in (("query", queries), ("database", 3)):
        codes = make_codes(np.random.default_rng(0), 3, role, files / "images", classes=("a", "b"))
        codes.codes, codes.bits = pack_codes(np.ones((3, 1), bool)), 1
        codes.class_names = []
        write_codes(files / f"{role}.h5", take_rows(codes, range(3 - count, 3)))
    assert tool.main(arguments(files)) == 0
    page = Page((files / "out" / "page.html").read_text())
    assert set(page.table("alone")) == {"class 0", "class 1"}
    assert len(page.strips) == queries  # each once, among the worst
    assert "top k of 1000 is above the database's 3 items" in page.text
    assert "top k of 1000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "database.h5: extract the codes from a labeled dataset"),
        ({"model_fingerprint": "e" * 64}, "encode both with the same model"),
        ({"labels": np.zeros((IMAGES, 4))}, "nothing to measure"),
    ],
)
def test_codes_that_cannot_be_reported(tool, files, capsys, changes, message):
    change(files, "database", **changes)
    assert tool.main(arguments(files)) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[1]", "not a flat JSON object of numbers"),
        ('{"a": {"b": 1}}', "not a flat JSON object of numbers"),
        ('{"a": true}', "not a flat JSON object of numbers"),
    ],
)
def test_metrics_that_cannot_be_read(tool, files, capsys, content, message):
    path = files / "metrics.json"
    if content is not None:
        path.write_text(content)
    assert tool.main(arguments(files, "--metrics", path)) == 1
    printed = capsys.readouterr()
    assert f"{path}: {message}" in printed.err
    assert printed.err.count("\n") == 1
    assert not (files / "out").exists()


def test_a_missing_code_file(tool, files, capsys):
    (files / "query.h5").unlink()
    assert tool.main(arguments(files)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {files / 'query.h5'}: no such file")
    assert error.count("\n") == 1


@pytest.mark.parametrize("wrong", [["--topk", "0"], ["--topk", "many"], ["--unknown"]])
def test_wrong_arguments_exit_2(tool, files, capsys, wrong):
    with pytest.raises(SystemExit) as stop:
        tool.main(arguments(files, *wrong))
    assert stop.value.code == 2
    assert wrong[0] in capsys.readouterr().err
    assert not (files / "out").exists()


def test_queries_that_are_in_the_database(tool, files, capsys, no_plots):
    """They are warned of; left out, the page has the numbers and pictures of the others."""
    database = str(files / "database.h5")
    given = ["--query", database, "--database", database, "--topk", TOPK]
    page = str(files / "page.html")
    assert tool.main([*map(str, given), "--output", page]) == 0
    note = f"{IMAGES} of {IMAGES} queries are in the database and find themselves first"
    assert f"warning: {note}" in capsys.readouterr().err
    assert note in (files / "page.html").read_text()
    assert tool.main([*map(str, given), "--output", page, "--exclude-self"]) == 0
    assert "find themselves" not in capsys.readouterr().err
    text = (files / "page.html").read_text()
    assert "find themselves" not in text
    assert f"{IMAGES} of the queries are in the database; they are left out" in text
    codes = read_codes(database)
    itself = np.repeat(np.arange(IMAGES)[:, None], 2, axis=1)
    found = evaluate_ranking(
        *(codes.codes, codes.codes, codes.labels, codes.labels),
        bits=BITS,
        topk=TOPK,
        exclude=itself,
    ).metrics
    assert f"{found[f'MAP_min@{TOPK}']:.3f}" in text
