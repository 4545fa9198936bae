"""The command that searches, after those that encode and index."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from regiondh_d2.engine import QueryEncoder, searcher
from regiondh_d2.retrieval.code_store import read_codes
from regiondh_d2.retrieval.index_folder import read_index_folder, write_index_folder
from regiondh_d2.retrieval.queries import SearchResult
from searching import BITS, best_of_images, distances_to, index_scenes, sort_pairs


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("search")


@pytest.fixture(scope="module")
def workspace(random_network, tmp_path_factory, load_tool):
    """A folder with the codes of scenes, and with their index."""
    return index_scenes(random_network, tmp_path_factory.mktemp("search"), load_tool)


@pytest.fixture
def arguments(random_network, workspace):
    """A function from options to a complete command line."""
    query = read_codes(workspace / "codes.h5").file_names[2]

    def make(*options, opts=()):
        start = ["--config-file", random_network.config]
        for name, value in (("--index", str(workspace / "index")), ("--query", query)):
            if name not in options:
                start += [name, value]
        return [*start, *options, *random_network.opts, *opts]

    return make


def images_in_order(items, row):
    """(distance, row) pairs of all images: by codes, and where these tie by activations."""
    distances = distances_to(items.codes[row], items.codes, items.bits).tolist()
    activations = items.activations.astype(np.float32)
    ties = np.square(activations - activations[row]).sum(axis=1)
    return [(distances[i], int(i)) for i in np.lexsort((ties, distances))]


def error_of(capsys):
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return error


def test_from_images_to_answers(tool, workspace, arguments, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert tool.main(arguments("--topk", "4", "--json", str(out))) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    items = read_codes(workspace / "codes.h5")
    expected = images_in_order(items, 2)[:4]
    answers = json.loads(out.read_text())["answers"]
    assert [(answer["distance"], answer["row"]) for answer in answers] == expected
    first, head, *lines = printed.out.splitlines()
    assert first == f"{items.file_names[2]}: nearest of 11 images by 48-bit codes"
    assert head.split() == ["rank", "distance", "image"]
    assert [line.split() for line in lines] == [
        [str(rank), str(distance), items.file_names[row]]
        for rank, (distance, row) in enumerate(expected, 1)
    ]


def test_objects_and_pictures(tool, workspace, arguments, tmp_path, capsys):
    out, grid = tmp_path / "out.json", tmp_path / "grid.png"
    found = read_codes(workspace / "codes.h5").instances
    options = ["--instance", "1", "--save", str(grid), "--json", str(out)]
    assert tool.main(arguments(*options)) == 0
    best = np.flatnonzero(found.image_index == 2)
    best = best[np.argmax(found.scores[best])]
    pairs = sort_pairs(
        distances_to(found.codes[best], found.codes, 48), np.ones(len(found.codes)), None
    )

    def rows_and_headline():
        answers = json.loads(out.read_text())["answers"]
        rows = [(answer["distance"], answer["objects"][0]["row"]) for answer in answers]
        return rows, capsys.readouterr().out.splitlines()[0].split("nearest of ")[1]

    rows, headline = rows_and_headline()
    assert rows == best_of_images(pairs, found.image_index)[:10]
    assert headline == f"{len(found.codes)} objects, by image, by 48-bit codes"
    result = json.loads(out.read_text())
    assert result["objects"][0]["box"] == pytest.approx(found.boxes[best].tolist(), abs=1e-3)
    with Image.open(grid) as image:
        assert image.width > 1500

    assert tool.main(arguments("--instance", "1", "--all-objects", "--json", str(out))) == 0
    assert rows_and_headline() == (pairs[:10], f"{len(found.codes)} objects by 48-bit codes")
    assert rows != pairs[:10]

    two = ["--box", "3,4,60,50", "--instance", "1", "--topk", "2"]
    assert tool.main(arguments(*two, "--save", str(grid), "--json", str(out))) == 0
    assert [len(answer["objects"]) for answer in json.loads(out.read_text())["answers"]] == [2, 2]
    printed = capsys.readouterr()
    assert printed.err == ""
    first, head, *lines = printed.out.splitlines()[-4:]
    assert ", 3,4,60,50, " in first
    assert head.split() == ["rank", "distance", "image", "object", "1", "object", "2"]
    assert len(lines) == 2


def test_blended_table(tool, workspace, arguments, tmp_path, capsys):
    out = tmp_path / "out.json"
    options = ["--instance", "1", "--blend", "0.5", "--topk", "11", "--json", str(out)]
    assert tool.main(arguments(*options)) == 0
    items = read_codes(workspace / "codes.h5")
    by_image = distances_to(items.codes[2], items.codes, 48)
    answers = json.loads(out.read_text())["answers"]
    assert sorted(answer["row"] for answer in answers) == list(range(11))
    for answer in answers:
        assert answer["image_distance"] == by_image[answer["row"]]
        assert answer["blended"] == answer["distance"] + 0.5 * answer["image_distance"]
    order = [(answer["blended"], answer["row"]) for answer in answers if answer["row"] != 2]
    assert order == sorted(order)  # the query itself comes first among equals
    first, _, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("48-bit codes and 0.5 x the distance of the images")
    assert lines[-1].split()[1:7] == [
        *(f"{answers[-1]['blended']:g}", "=", str(answers[-1]["distance"]), "+", "0.5", "x"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blend", "0.5"], "--blend is for a query of objects: give --box or --instance"),
        (["--blend", "-1", "--instance", "1"], "-1 is no weight from 0 to 1000"),
        (["--blend", "1", "--instance", "1", "--all-objects"], "--blend ranks images"),
    ],
)
def test_options_that_do_not_fit_a_blend(tool, arguments, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        tool.main(arguments(*options))
    assert message in capsys.readouterr().err


def test_reranked_table(tool, arguments, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert tool.main(arguments("--rerank", "8", "--topk", "4", "--json", str(out))) == 0
    answers = json.loads(out.read_text())["answers"]
    squares = [answer["fine_distance"] for answer in answers]
    assert squares == sorted(squares)
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[2] for line in lines] == [f"({square:.4f})" for square in squares]


def test_tables_and_pictures_by_class(tool, workspace, arguments, tmp_path, monkeypatch, capsys):
    """The small network sees nothing for sure, so it is made to."""
    out, grid = tmp_path / "out.json", tmp_path / "grid.png"
    options = ["--group-by-class", "--topk", "3", "--json", str(out), "--save", str(grid)]
    monkeypatch.setattr(QueryEncoder, "_seen_classes", lambda *_: ())
    assert tool.main(arguments(*options)) == 1
    assert "the network is sure of no class in it; search without --group" in error_of(capsys)
    assert os.listdir(tmp_path) == []

    items = read_codes(workspace / "codes.h5")
    found = [items.class_names[c] for c in np.unique(items.instances.classes)[:2]]
    monkeypatch.setattr(QueryEncoder, "_seen_classes", lambda *_: tuple(found))
    assert tool.main(arguments(*options)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    results = json.loads(out.read_text())
    assert [result["class_name"] for result in results] == found
    assert all(result["answers"] for result in results)
    heads = [line for line in printed.out.splitlines() if "nearest of" in line]
    assert [line.rsplit(", ", 1)[1] for line in heads] == [f"{name} alone" for name in found]
    with Image.open(grid) as image:
        tall = image.height
    assert tool.main(arguments("--topk", "3", "--save", str(grid))) == 0
    with Image.open(grid) as image:
        assert tall > 1.5 * image.height


def test_several_queries_and_folders_of_them(
    tool, workspace, arguments, tmp_path, monkeypatch, capsys
):
    """One network answers all, each as it would be answered alone."""
    files = read_codes(workspace / "codes.h5").file_names
    folder = tmp_path / "queries"
    folder.mkdir()
    for name, source in (("b.jpg", files[4]), ("a.jpg", files[3])):
        shutil.copy(source, folder / name)
    out, grid = tmp_path / "out.json", tmp_path / "grid.png"

    def alone(query):
        assert tool.main(arguments("--query", str(query), "--json", str(out))) == 0
        return json.loads(out.read_text())

    expected = [alone(query) for query in (files[2], folder / "a.jpg", folder / "b.jpg")]
    monkeypatch.setattr(searcher, "load_trained_model", count := Counted(searcher))
    capsys.readouterr()
    options = ["--query", files[2], "--query", str(folder), "--json", str(out)]
    assert tool.main(arguments(*options, "--save", str(grid))) == 0
    assert count.calls == 1
    assert json.loads(out.read_text()) == expected
    printed = capsys.readouterr()
    heads = [line.split(": nearest")[0] for line in printed.out.splitlines() if "nearest" in line]
    assert heads == [files[2], str(folder / "a.jpg"), str(folder / "b.jpg")]
    with Image.open(grid) as image:
        assert image.height > 400

    (folder / "b.jpg").write_bytes(b"no image any more")
    assert tool.main(arguments("--query", str(folder), "--json", str(out), "--overwrite")) == 0
    assert json.loads(out.read_text()) == expected[1:2]  # a list, whatever the folder holds
    assert "b.jpg: not an image" in capsys.readouterr().err
    (folder / "a.jpg").write_bytes(b"no image any more")
    assert tool.main(arguments("--query", str(folder))) == 1
    assert "none of the queries can be searched with" in capsys.readouterr().err


class Counted:
    """Counts the networks that are loaded."""

    def __init__(self, module):
        self._load, self.calls = module.load_trained_model, 0

    def __call__(self, cfg):
        self.calls += 1
        return self._load(cfg)


def test_a_distance_copies_and_the_query_itself(tool, workspace, arguments, tmp_path, capsys):
    out = tmp_path / "out.json"
    items = read_codes(workspace / "codes.h5")
    others = [pair for pair in images_in_order(items, 2) if pair[1] != 2]
    nearest = others[0][0]
    options = ["--exclude-self", "--json", str(out), "--max-distance"]
    assert tool.main(arguments(*options, str(nearest))) == 0
    values = json.loads(out.read_text())
    assert [answer["row"] for answer in values["answers"]] == [
        row for distance, row in others if distance == nearest
    ]
    assert f"48-bit codes, within distance {nearest}\n" in capsys.readouterr().out
    assert nearest > 0
    assert tool.main(arguments(*options, str(nearest - 1), "--save", str(tmp_path / "a.png"))) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"nothing similar: none is within distance {nearest - 1}\n")
    values = json.loads(out.read_text())
    assert (values["answers"], values["max_distance"]) == ([], nearest - 1)

    content = items.content_sha256.copy()
    content[5] = content[2]
    same = replace(items, content_sha256=content)
    write_index_folder(tmp_path / "index", same, engine="numpy")
    index = ["--index", str(tmp_path / "index")]
    words = arguments(*index, "--no-file-check", "--fold-duplicates", "--topk", "11")
    assert tool.main(words) == 0
    _, _, first, copy, *lines = capsys.readouterr().out.splitlines()
    assert first.split()[2:] == [items.file_names[2], "(1", "copy)"]
    assert copy == f"    copy: {items.file_names[5]}"
    assert len(lines) == 9


def test_a_table_without_answers(tool):
    nothing = SearchResult("q.jpg", (), None, "sofa", 60, BITS, ())
    assert tool.format_table(nothing) == "nothing of class sofa found"
    assert tool.format_table(replace(nothing, class_name=None)) == "none found"


def test_another_model_is_refused(tool, random_network, workspace, arguments, tmp_path, capsys):
    weights = torch.load(random_network.weights)["model"]
    name = next(key for key in weights if "image_hash" in key and key.endswith("bias"))
    weights[name] = weights[name] + 1
    torch.save({"model": weights}, tmp_path / "other.pth")
    opts = ["MODEL.WEIGHTS", str(tmp_path / "other.pth")]
    out = tmp_path / "out.json"
    assert tool.main(arguments("--json", str(out), opts=opts)) == 1
    error = error_of(capsys)
    own = read_index_folder(workspace / "index").items.model_fingerprint
    assert error.startswith(
        f"error: {workspace / 'index'}: was encoded by model {own[:12]}, the query"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--query", "absent.jpg"], "absent.jpg: No such file or directory"),
        (["--query", "absent.jpg", "--query", "no.jpg"], "absent.jpg: No such file or directory"),
        (["--query", "."], "no images in ."),
        (["--index", "absent"], "absent: no index folder; build one with `regiondh"),
        (["--box", "900,900,950,950"], "box 900,900,950,950 is outside"),
        (["--box", "9,9,3,3"], "box 9,9,3,3 is empty"),
        (["--instance", "999"], "there is no detection 999"),
        (["--instance", "1", "--rerank", "5"], "rerank is for whole images"),
        (["--rerank", "5", "--rerank-by", "features"], "the index has none; extract its codes"),
        (["--class", "unicorn"], "class 'unicorn' is not known"),
        (["--save", "grid.xyz"], "grid.xyz: '.xyz' is no image format; use .png"),
    ],
)
def test_failures_are_one_line(tool, arguments, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert tool.main(arguments(*options)) == 1
    assert message in error_of(capsys)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--box", "1,2,3"], "--box: 1,2,3 is not x1,y1,x2,y2"),
        (["--box", "a,b,c,d"], "--box: invalid box value: 'a,b,c,d'"),
        (["--instance", "0"], "--instance: 0"),
        (["--topk", "0"], "--topk: 0"),
        (["--rerank", "5", "--rerank-by", "color"], "invalid choice: 'color'"),
        (["--rerank-by", "activations"], "--rerank-by needs --rerank N"),
        (["--group-by-class", "--instance", "1"], "--group-by-class is for whole images"),
        (["--group-by-class", "--box", "1,2,3,4"], "--group-by-class is for whole images"),
        (["--group-by-class", "--class", "cat"], "--group-by-class is for whole images"),
        (["--group-by-class", "--all-objects"], "--all-objects is for a query of one object"),
        (
            ["--query", "a.jpg", "--query", "b.jpg", "--box", "1,2,3,4"],
            "--box and --instance are for one image",
        ),
        (["--max-distance", "-1"], "--max-distance: -1 is neither auto nor a number of bits"),
        (["--all-objects"], "--all-objects is for a query of one object"),
        (
            ["--all-objects", "--instance", "1", "--box", "1,2,3,4"],
            "--all-objects is for a query of one object",
        ),
    ],
)
def test_wrong_arguments_exit_2(tool, arguments, capsys, wrong, message):
    with pytest.raises(SystemExit) as error:
        tool.main(arguments(*wrong))
    assert error.value.code == 2
    assert message in capsys.readouterr().err


# Photos that have gone or stand elsewhere


@pytest.fixture(scope="module")
def encoded(random_network, tmp_path_factory, load_tool):
    """Codes and index of scenes, to be copied; the scenes stay as they are."""
    folder = tmp_path_factory.mktemp("encoded")
    photos = folder / "photos"
    photos.mkdir()
    scenes = sorted(random_network.scenes.rglob("*.jpg"))[:6]
    for i, scene in enumerate(scenes):
        shutil.copy(scene, photos / f"{i}.jpg")
    start = ["--config-file", random_network.config, "--input", str(photos)]
    output = ["--output", str(folder / "codes.h5")]
    assert load_tool("extract_codes").main([*start, *output, *random_network.opts]) == 0
    build = [str(folder / "codes.h5"), "--output", str(folder / "index"), "--engine", "numpy"]
    assert load_tool("build_index").main(build) == 0
    return folder


@pytest.fixture
def place(encoded, tmp_path):
    """The photos in a folder of their own, with an index for them there."""
    shutil.copytree(encoded / "photos", tmp_path / "photos")
    moves = [f"{encoded / 'photos'}={tmp_path / 'photos'}"]
    items = read_index_folder(encoded / "index", moves=moves).items
    write_index_folder(tmp_path / "index", items, engine="numpy")
    return tmp_path


@pytest.fixture
def run(random_network, place, tool, capsys, monkeypatch):
    """A function that searches with some photo, and returns status, names, output and errors."""

    def run(*options, query="2.jpg"):
        capsys.readouterr()
        out = place / "out.json"
        out.unlink(missing_ok=True)
        monkeypatch.chdir(place)
        start = ["--config-file", random_network.config, "--index", str(place / "index")]
        start += ["--query", str(place / "photos" / query), "--json", str(out)]
        status = tool.main([*start, *options, *random_network.opts])
        printed = capsys.readouterr()
        values = json.loads(out.read_text()) if out.exists() else None
        names = values and [os.path.basename(a["file_name"]) for a in values["answers"]]
        return status, names, values, printed

    return run


def test_command_deleted_and_edited_photos(run, place, random_network, tmp_path):
    status, before, values, printed = run("--save", str(place / "grid.png"))
    assert (status, before[0], printed.err) == (0, "2.jpg", "")
    assert (values["gone"], values["changed"], values["away"]) == (0, 0, 0)
    (place / "photos" / before[1]).unlink()
    (place / "photos" / before[2]).write_bytes(b"no image any more")
    status, names, values, printed = run("--topk", "3", "--save", str(place / "grid.png"))
    assert status == 0
    assert names == [before[0], *before[3:5]]
    assert (values["gone"], values["changed"]) == (1, 1)
    (line,) = printed.err.splitlines()
    assert line.startswith("warning: 2 photos have gone or changed since they were encoded")
    status, names, values, printed = run("--no-file-check", "--save", str(place / "grid.png"))
    assert (status, names, printed.err) == (0, before, "")
    with Image.open(place / "grid.png") as image:  # with gray tiles for the two
        colors = {color for _, color in image.getcolors(1 << 24)}
    assert (203, 207, 212) in colors


def test_command_a_renamed_root(run, place):
    (place / "photos").rename(place / "holiday")
    (place / "query").mkdir()
    shutil.copy(place / "holiday" / "2.jpg", place / "query")
    before = {p.name: p.read_bytes() for p in (place / "index").iterdir()}
    status, _, values, printed = run(query=place / "query" / "2.jpg")
    assert (status, values) == (1, None)
    (line,) = printed.err.splitlines()
    assert line.startswith(f"error: {place / 'photos'} is not there")
    status, names, values, printed = run(
        "--root", f"{place / 'photos'}={place / 'holiday'}", query=place / "query" / "2.jpg"
    )
    assert (status, names[0], printed.err) == (0, "2.jpg", "")
    assert {p.name: p.read_bytes() for p in (place / "index").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "query", "message"),
    [
        ((), "typo.jpg", "typo.jpg: No such file"),
        (("--save", "grid.xyz"), "2.jpg", "'.xyz' is no image format"),
        (("--save", "grid.psd"), "2.jpg", "'.psd' is no image format"),
        (("--save", "photos/2.jpg"), "2.jpg", "an output never replaces an input"),
        (("--save", "photos/3.jpg", "--overwrite"), "2.jpg", "photos/3.jpg"),
        (("--root", "nowhere=photos"), "2.jpg", "no image is in"),
        (("--within", "elsewhere"), "2.jpg", "elsewhere: the index"),
        (("--class", "unicorn"), "2.jpg", "class 'unicorn' is not known: use one of"),
        (("--rerank", "5", "--rerank-by", "features"), "2.jpg", "the index has none"),
        (("--rerank", "5", "--instance", "1"), "2.jpg", "rerank is for whole images"),
    ],
)
def test_command_what_would_fail_at_the_end_is_told_first(
    run, place, monkeypatch, options, query, message
):
    monkeypatch.setattr(searcher, "load_trained_model", None)  # nothing after the checks works
    status, _, _, printed = run(*options, query=query)
    assert status == 1
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_command_what_an_index_of_images_lacks(run, place, monkeypatch):
    items = read_index_folder(place / "index").items
    write_index_folder(place / "index", replace(items, instances=None), engine="numpy")
    monkeypatch.setattr(searcher, "load_trained_model", None)
    for options, message in (
        (("--group-by-class",), "the index has no detected objects to know classes from"),
        (("--class", "car"), "the index has no detected objects to know classes from"),
        (("--box", "1,2,30,40"), "has no level 'instance'; build it with"),
    ):
        status, _, _, printed = run(*options)
        assert status == 1
        assert message in printed.err
        assert printed.err.count("\n") == 1


def test_command_the_answers_stand_before_the_picture(run, place, full_disk):
    """A disk that is full at the end costs the picture alone."""
    (place / "photos" / "0.jpg").unlink()
    with full_disk(8192):
        status, names, _, printed = run("--save", str(place / "grid.png"))
    assert (status, len(names)) == (1, 5)
    assert "1.jpg" in printed.out
    assert "grid.png" in printed.err
    assert not (place / "grid.png").exists()
