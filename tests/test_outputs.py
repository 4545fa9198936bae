"""Every command, from its command line: what it reads and what others wrote is never replaced."""

import argparse
import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from builders import code_set, random_code_set, registered_scenes
from regiondh_d2.engine import build_cfg, setup_cfg
from regiondh_d2.engine.defaults import check_training_outputs, config_inputs, dataset_inputs
from regiondh_d2.evaluation import RetrievalEvaluator
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.retrieval.index_folder import write_index_folder
from regiondh_d2.utils.errors import OutputExistsError
from regiondh_d2.utils.file_io import carries_mark, mark_folder


def everything_in(folder):
    """What each file below a folder holds, and where each link leads."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file():
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture(scope="module")
def made(random_network, tmp_path_factory):
    """A folder with an input of every kind, to be copied."""
    folder = tmp_path_factory.mktemp("made")
    photos = []
    for name in ("a.jpg", "b.jpg", "c.png"):
        pixels = np.random.default_rng(len(photos)).integers(0, 256, (40, 60, 3), np.uint8)
        photos.append(str(folder / name))
        Image.fromarray(pixels).save(photos[-1])
    base = yaml.safe_load(Path(random_network.config).read_text())
    base["_BASE_"] = str(Path(random_network.config).parent / base["_BASE_"])
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "config.yaml").write_text("_BASE_: base.yaml\n")
    shutil.copy(random_network.weights, folder / "weights.pth")
    (folder / "metrics.json").write_text('{"extra/number": 1}')
    (folder / "table.yaml").write_text("")
    return folder


@pytest.fixture
def world(made, random_network, tmp_path, monkeypatch, load_tool):
    """The inputs in the working directory, with code files and an index of its photos.

    Attributes: ``run``, a function from a tool's name and its arguments to its exit status; and
    ``opts``, config overrides.
    """
    folder = tmp_path / "world"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    photos = [str(folder / name) for name in ("a.jpg", "b.jpg", "c.png")]
    bits = build_cfg(random_network.config).MODEL.REGION_DH.BITS
    codes = random_code_set(
        np.random.default_rng(0), 3, bits, names=photos, labels=np.eye(3), model_fingerprint=""
    )
    write_codes("codes.h5", codes)
    write_codes("queries.h5", codes)
    write_index_folder("index", codes, engine="numpy")
    opts = [*random_network.opts, "MODEL.WEIGHTS", "weights.pth"]

    def run(tool, *arguments):
        return load_tool(tool).main([str(x) for x in arguments])

    return SimpleNamespace(folder=folder, run=run, opts=opts, scenes=random_network.scenes)


@pytest.fixture
def scenes(world):
    """The name of a dataset in the working directory."""
    shutil.copytree(world.scenes, "scenes")
    with registered_scenes(world.folder / "scenes", "t_outputs_") as name:
        yield name


def search(output, option="--save"):
    given = ["--config-file", "config.yaml", "--index", "index", "--query", "a.jpg"]
    return ["search", *given, option, output]


def search_json(output):
    return search(output, "--json")


def evaluate(output):
    return ["evaluate_codes", "--query", "queries.h5", "--database", "codes.h5", "--json", output]


def evaluate_objects(output):
    start = ["--config-file", "config.yaml", "--database", "codes.h5", "--dataset"]
    return ["evaluate_objects", *start, "t_outputs_regiondh_scenes_queries", "--json", output]


def report(output):
    files = ["--query", "queries.h5", "--database", "codes.h5", "--metrics", "metrics.json"]
    return ["report", *files, "--output", output]


def analyze(output):
    given = ["--config-file", "config.yaml", "--image", "a.jpg", "--tasks", "parameter"]
    return ["analyze_model", *given, "--json", output]


def benchmark(output):
    return ["benchmark", "training", "--config-file", "config.yaml", "--json", output]


def convert(output):
    return ["convert_weights", "weights.pth", output]


CONFIG = ("config.yaml", "base.yaml", "weights.pth")
COMMANDS = {
    search: ("a.jpg", "b.jpg", "index/index.png"),
    search_json: ("a.jpg", *CONFIG, "index/index.json", "index/items.h5", "index/new"),
    evaluate: ("queries.h5", "codes.h5", "a.jpg"),
    evaluate_objects: (*CONFIG, "codes.h5", "a.jpg", "scenes/Annotations/queries_000000.xml")
    + ("scenes/JPEGImages/queries_000001.jpg", "scenes/ImageSets/Main/queries.txt"),
    report: ("queries.h5", "codes.h5", "metrics.json", "b.jpg"),
    analyze: (*CONFIG, "a.jpg"),
    benchmark: CONFIG[:2],
    convert: ("weights.pth",),
}
TAKES_OVERRIDES = (search, search_json, evaluate_objects, analyze)


def refused(world, capsys, *arguments):
    """The line of a command that must fail and change nothing."""
    before = everything_in(world.folder)
    capsys.readouterr()
    assert world.run(*arguments) == 1
    assert everything_in(world.folder) == before
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line.removeprefix("error: ")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_an_input_is_never_replaced(command, world, scenes, capsys):
    """Under its name, through a link, and with --overwrite."""
    opts = world.opts if command in TAKES_OVERRIDES else []
    for given in COMMANDS[command]:
        refused(world, capsys, *command(given), *opts)
        links = []
        if Path(given).exists():
            links = [f"{kind}{Path(given).suffix}" for kind in ("hard", "soft")]
            os.link(given, links[0])
            os.symlink(given, links[1])
        # test_file_io.py has further spellings.
        for output in [given, *links]:
            line = refused(world, capsys, *command(output), "--overwrite", *opts)
            assert line.startswith(f"{output}: ")
            assert "command reads" in line
        for link in links:
            os.remove(link)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_file_of_others_is_not_replaced(command, world, scenes, capsys):
    ending = {search: ".png", report: ".html", convert: ".pth"}.get(command, ".json")
    opts = world.opts if command in TAKES_OVERRIDES else []
    contents = {
        "thesis": b"my work",
        "empty": b"",
        "page": b"<!DOCTYPE html><meta name='generator' content='other'>",
        "data": b'{"images": []}',
    }
    for name, content in contents.items():
        Path(name + ending).write_bytes(content)
        line = refused(world, capsys, *command(name + ending), *opts)
        assert line.startswith(f"{name}{ending}: exists, and this program did not write it: ")
        assert line.endswith("with --overwrite")
    os.mkdir(f"folder{ending}")
    assert "is a folder" in refused(world, capsys, *command(f"folder{ending}"), *opts)
    os.symlink("absent", f"link{ending}")
    assert "is a link to" in refused(world, capsys, *command(f"link{ending}"), *opts)
    assert "no folder" in refused(world, capsys, *command(f"a.jpg/new{ending}"), *opts)


def test_own_files_are_replaced_and_others_with_overwrite(world, capsys):
    output = Path("new/out.json")
    for _ in range(2):
        assert world.run(*evaluate(output)) == 0
        assert carries_mark(output)
    output.write_text("mine")
    refused(world, capsys, *evaluate(output))
    assert world.run(*evaluate(output), "--overwrite") == 0
    assert carries_mark(output)
    assert world.run(*evaluate("/dev/null")) == 0
    assert not os.path.isfile("/dev/null")


def test_two_outputs_of_one_name(world, capsys):
    line = refused(world, capsys, *search("x.png"), "--json", "./x.png", *world.opts)
    assert "two outputs have this name" in line


def test_a_picture_that_cannot_be_written_is_told_before_the_network_is_loaded(world, capsys):
    Path("weights.pth").unlink()
    assert "no image format" in refused(world, capsys, *search("grid.xyz"), *world.opts)


def test_extraction(world, scenes, capsys):
    start = ["extract_codes", "--config-file", "config.yaml", "--output"]
    for output in ("b.jpg", "weights.pth", "config.yaml", "queries.h5"):
        for more in ([], ["--resume"]):
            if more and output == "queries.h5":
                continue  # codes, which go on
            line = refused(world, capsys, *start, output, *more, "--input", ".", *world.opts)
            assert line.startswith(f"{output}")
    Path("mine.h5").write_text("mine")
    for more in ([], ["--resume"]):
        refused(world, capsys, *start, "mine.h5", *more, "--input", ".", *world.opts)
        given = [*more, "--dataset", "t_outputs_regiondh_scenes_queries", *world.opts]
        refused(world, capsys, *start, "scenes/Annotations/new.h5", *given)


def test_an_index_folder(world, capsys):
    os.makedirs("project/training")
    Path("project/report.html").write_text("mine")
    for output in ("project", ".", "a.jpg", "a.jpg/index"):
        refused(world, capsys, "build_index", "codes.h5", "--output", output, "--engine", "numpy")
    shutil.copy("codes.h5", "index/codes.h5")
    refused(world, capsys, "build_index", "index/codes.h5", "--output", "index")
    os.remove("index/codes.h5")
    # In an index it would be a stranger, with which the index can't be built anew.
    refused(world, capsys, "build_index", "index", "--output", "index/sub", "--engine", "numpy")
    os.symlink("index", "link")
    assert world.run("build_index", "index", "--output", "link/", "--engine", "numpy") == 0


def test_the_demo_in_a_folder_of_others(world, capsys):
    """It used to delete what has the names of its files, and to look at its arguments later."""
    os.makedirs("project/training/run1")
    for name in ("training/run1/model.pth", "report.html", "query.h5", "metrics.json"):
        Path("project", name).write_text("mine")
    line = refused(world, capsys, "demo", "--output", "project", "--config-file", "config.yaml")
    assert line.startswith("project: holds files that this command did not write")
    line = refused(
        world, capsys, "demo", "--output", ".", "--overwrite", "--config-file", "base.yaml"
    )
    assert "which this command reads" in line


def test_the_demo_checks_everything_before_it_deletes(world, capsys):
    mark_folder("old", "demo")
    os.mkdir("old/training")
    for name in ("training/log.txt", "report.html", "notes.txt"):
        Path("old", name).write_text("old")
    wrong = Path("wrong.yaml")
    wrong.write_text("_BASE_: base.yaml\nMODEL: {ROI_HEADS: {NUM_CLASSES: 2}}\n")
    for config, word in (("absent.yaml", "absent.yaml"), ("wrong.yaml", "NUM_CLASSES")):
        line = refused(world, capsys, "demo", "--output", "old", "--config-file", config)
        assert word in line
    (world.folder / "old/scenes").mkdir()
    Path("old/scenes/mine.txt").write_text("mine")
    line = refused(world, capsys, "demo", "--output", "old", "--config-file", "base.yaml")
    assert "old/scenes: " in line
    # Also after a demo of this process in another folder.
    shutil.copytree("old", "older")
    line = refused(world, capsys, "demo", "--output", "older", "--config-file", "base.yaml")
    assert "older/scenes: " in line


def test_pictures_of_a_dataset(world, scenes, capsys):
    """Named as an image of the dataset, and as a file of others."""
    name = "t_outputs_regiondh_scenes_queries"
    start = ["visualize_data", "--dataset", name, "--images", 2, "--output-dir"]
    image = Path("scenes/JPEGImages/queries_000000.jpg")
    os.mkdir("out")
    os.link(image, "out/000002_queries_000002.jpg")
    for more in ([], ["--overwrite"]):
        assert "000002_queries_000002.jpg: is " in refused(world, capsys, *start, "out", *more)
    os.remove("out/000002_queries_000002.jpg")
    Path("out/000002_queries_000002.jpg").write_text("mine")
    assert "did not write it" in refused(world, capsys, *start, "out")
    for _ in range(2):
        assert world.run(*start, "out", "--overwrite") == 0
        assert world.run(*start, "out") == 0


# --- Training -------------------------------------------------------------------------------------


def training(*opts, config="", **options):
    names = {"eval_only": False, "resume": False, **options}
    return argparse.Namespace(config_file=str(config), opts=[str(x) for x in opts], **names)


def check_training(args):
    check_training_outputs(build_cfg(args.config_file, args.opts), args)


@pytest.mark.parametrize("name", ["model_final.pth", "model_best.pth", "model_0000099.pth"])
def test_weights_that_a_training_would_replace(name, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    weights = folder / name
    weights.write_bytes(b"weights")
    (tmp_path / "link.pth").symlink_to(weights)
    (tmp_path / "hard.pth").hardlink_to(weights)
    for given in (weights, tmp_path / "link.pth", tmp_path / "hard.pth"):
        opts = ["MODEL.WEIGHTS", given, "OUTPUT_DIR", folder]
        for resume in (False, True):  # there is nothing to go on with
            with pytest.raises(OutputExistsError, match="another OUTPUT_DIR, or go on"):
                check_training(training(*opts, resume=resume))
        check_training(training(*opts, eval_only=True))
    check_training(training("MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "other"))
    (folder / "last_checkpoint").write_text(name)
    check_training(training("MODEL.WEIGHTS", weights, "OUTPUT_DIR", folder, resume=True))


def test_other_weights_in_the_folder_of_a_training(tmp_path):
    weights = tmp_path / "model_imagenet.pth"
    weights.write_bytes(b"weights")
    check_training(training("MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path))


def test_a_codes_file_that_an_evaluation_would_replace(tmp_path):
    codes = tmp_path / "inference/t_set/query.h5"
    codes.parent.mkdir(parents=True)
    write_codes(codes, code_set(np.zeros((1, 1), np.uint8), labels=np.ones((1, 1))))
    before = codes.read_bytes()
    for eval_only in (False, True):
        opts = ["TEST.RETRIEVAL.DATABASE_CODES", codes, "DATASETS.TEST", "('t_set',)"]
        with pytest.raises(OutputExistsError, match="query.h5: is .*query.h5, which"):
            check_training(training(*opts, "OUTPUT_DIR", tmp_path, eval_only=eval_only))
    with pytest.raises(OutputExistsError):
        RetrievalEvaluator("t_set", output_dir=tmp_path / "inference", database_codes=codes)
    other = codes.with_name("database.h5")
    shutil.copy(codes, other)
    RetrievalEvaluator("t_set", output_dir=tmp_path / "inference", database_codes=other)
    assert codes.read_bytes() == before
    assert len(read_codes(other)) == 1


def test_logs_that_would_replace_an_input(tmp_path):
    (tmp_path / "metrics.json").write_text("DATASETS: {TRAIN: ()}")
    args = training("OUTPUT_DIR", tmp_path, config=tmp_path / "metrics.json")
    with pytest.raises(OutputExistsError, match="metrics.json: is "):
        check_training(args)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_a_config_in_the_folder_of_a_training_stays(link, tmp_path):
    """As for an evaluation with the config that the training wrote, and an override."""
    folder = tmp_path / "out"
    folder.mkdir()
    config = folder / "config.yaml"
    given = config if link is None else tmp_path / "mine.yaml"
    given.write_text("# mine\nSEED: 3\nDATASETS: {TRAIN: (), TEST: ()}\n")
    if link:
        link(given, config)
    before = everything_in(tmp_path)
    cfg = setup_cfg(training("OUTPUT_DIR", folder, "SOLVER.MAX_ITER", 7, config=given))
    assert cfg.SOLVER.MAX_ITER == 7
    own = ("log.txt", ".lock")
    after = {k: v for k, v in everything_in(tmp_path).items() if k.name not in own}
    assert after == before
    # That of another run is replaced, as Detectron2 does.
    other = tmp_path / "other.yaml"
    other.write_text("DATASETS: {TRAIN: (), TEST: ()}\n")
    if link is None:
        setup_cfg(training("OUTPUT_DIR", folder, config=other))
        assert config.read_text() != "# mine"


def test_inputs_of_a_config(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: [sub/b.yaml, c.yaml]\nX: !!python/tuple [1]\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yaml").write_text("_BASE_: ../a.yaml\nMODEL: {WEIGHTS: b.pth}\n")
    (tmp_path / "c.yaml").write_text("- a list\n")
    found = config_inputs(str(tmp_path / "a.yaml"), ["MODEL.WEIGHTS", "w.pth", "SEED"])
    names = {os.path.relpath(os.path.realpath(x), os.path.realpath(tmp_path)) for x in found[:-2]}
    assert {"a.yaml", "sub/b.yaml", "c.yaml"} <= names
    assert found[-2:] == ["b.pth", "w.pth"]
    (shipped,) = config_inputs("", ["MODEL.WEIGHTS", "regiondh://effnetlite0_voc07_64"])
    assert os.path.isfile(shipped)
    assert config_inputs("", ["MODEL.WEIGHTS", "https://host/w.pth"]) == []
    assert config_inputs("absent.yaml") == ["absent.yaml"]


def test_inputs_of_a_dataset(world, scenes):
    found = {os.path.relpath(name, world.folder) for name in dataset_inputs([scenes, "absent"])}
    assert found == {"scenes/Annotations", "scenes/ImageSets"}
