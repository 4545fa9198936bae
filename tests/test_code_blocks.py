"""Every code block of the documents does what it says, or is at least understood.

Python blocks run on small data; shell blocks are parsed: commands, options, config files, keys and
their values exist. A block that no rule here knows fails.
"""

import ast
import glob
import importlib
import importlib.util
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from documents import ROOT, blocks, commands
from regiondh_cli.main import subcommand_parser
from regiondh_d2 import add_regiondh_config
from regiondh_d2.data import generate_scenes
from regiondh_d2.engine.config_file import merge_config_file, merge_overrides
from regiondh_d2.engine.config_names import find_config
from regiondh_d2.engine.config_rules import check_values

PAGES = ["*.md", "docs/*.md", "datasets/*.md", "tools/*.md", "experiments/*.md"]
DOCUMENTS = sorted(p for pattern in PAGES for p in glob.glob(pattern, root_dir=ROOT))
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
# Blocks without a language, of these beginnings, are diagrams and folder trees.
PLAIN = ("image -> backbone", "$DETECTRON2_DATASETS/", "scenes/", "/data/zoo/")
PLAIN += ("apiVersion: batch/v1", "SELECT row")  # tested by test_shards.py and test_exchange.py
# Words of the shell, and programs of others.
OTHERS = ("for", "done", "psql")
# Python blocks that other modules run, by document.
ELSEWHERE = {
    "CONTRIBUTING.md": "tests/test_contributing.py",
    "datasets/README.md": "tests/test_datasets_readme.py",
}


def name_of(block):
    number = [b for b in BLOCKS if b.document == block.document].index(block)
    return f"{block.document}-{number}"


def of_language(*languages):
    found = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", found, ids=map(name_of, found))


def is_shell(block):
    """Also some blocks without a language hold commands."""
    return block.language == "bash" or re.match(r"python |export |make ", block.text)


def test_every_block_is_of_a_kind_that_is_tested():
    unknown = [
        name_of(block)
        for block in BLOCKS
        if not (
            block.language == "python" or is_shell(block) or block.text.lstrip().startswith(PLAIN)
        )
    ]
    assert unknown == []
    assert {"README.md", "INSTALL.md", "datasets/README.md"} <= {b.document for b in BLOCKS}


# Shell


@of_language("bash", "")
def test_commands_are_understood(block, load_tool):
    if not is_shell(block):
        return
    words_of = list(commands(block.text))
    assert words_of or block.text.startswith("export ")
    for words in words_of:
        check_command(words, load_tool)


def check_command(words, load_tool):
    words = words[: words.index("|")] if "|" in words else words
    if words[0] in OTHERS:
        return
    if "--shard" in words:  # counted by the shell
        words[words.index("--shard") + 1] = "1/4"
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif words[0] == "pip":
        check_pip(words[1:])
    elif words[0] == "eval":  # a command in "$(...)"
        check_command(words[1].strip("$()").split(), load_tool)
    elif words[0] == "curl":
        check_request(words[-1])
    elif words[0] == "pre-commit":
        assert (ROOT / ".pre-commit-config.yaml").is_file()
    elif words[1:3] == ["-m", "pytest"]:
        files = [word.split("::")[0] for word in words[3:] if word.startswith("tests/")]
        assert all((ROOT / name).is_file() for name in files)
    elif words[0].endswith("regiondh") and words[1] in ("completion", "doctor", "setup-detectron2"):
        subcommand_parser(words[1]).parse_args(words[2:])  # these need no library
    elif words[0].endswith("regiondh"):
        check_arguments(load_tool(words[1].replace("-", "_")), words[2:])
    else:
        assert words[0] in ("python", ".venv/bin/python"), f"no rule for {words[0]}"
        if words[1] == "-m":
            check_arguments(importlib.import_module(words[2]), words[3:])
        elif words[1].startswith("tests/"):
            assert (ROOT / words[1]).is_file()
        else:
            check_arguments(load_script(words[1], load_tool), words[2:])


def load_script(name, load_tool):
    """A script of ours as a module with ``build_parser``."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module if hasattr(module, "build_parser") else load_tool(Path(name).stem)


def check_request(address):
    """A path of the server of the page, and its options."""
    from regiondh_d2.web.openapi import openapi

    found = urlsplit(address)
    assert found.netloc == "127.0.0.1:8000"
    (operation,) = openapi()["paths"][found.path].values()
    assert set(parse_qs(found.query)) <= {one["name"] for one in operation["parameters"]}


def check_pip(words):
    """Names of extras, and of the constraints."""
    assert words[0] in ("install", "wheel")
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()
    for word in words:
        extras = re.fullmatch(r"\.\[(.+)\]", word)
        if extras is not None:
            assert set(extras[1].split(",")) <= known_extras()


def known_extras():
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (extras,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EXTRAS"
    )
    return {key.value for key in extras.keys}


def check_arguments(command, words):
    """Options, config files, keys, values and shipped datasets of a command of ours."""
    args = command.build_parser().parse_args(words)
    cfg = get_cfg()
    add_regiondh_config(cfg)
    config_file = getattr(args, "config_file", "")
    if config_file:
        is_path = config_file.endswith(".yaml")
        merge_config_file(cfg, find_config(ROOT / config_file if is_path else config_file))
    merge_overrides(cfg, getattr(args, "opts", None) or [])
    if getattr(args, "imports", None):  # names may be the reader's own
        cfg.MODEL.REGION_DH.OBJECTIVE = "cosine"
        datasets = []
    else:
        datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *getattr(args, "names", [])]
        datasets += [args.dataset] if getattr(args, "dataset", None) else []
    check_values(cfg)
    for dataset in datasets:
        assert "scenes" in dataset or dataset in DatasetCatalog.list()


# Python


@of_language("python")
def test_python_runs(block, request):
    if block.document in ELSEWHERE:
        assert block.document in (ROOT / ELSEWHERE[block.document]).read_text(encoding="utf-8")
        return
    kinds = [kind for kind in PYTHON if kind in block.text]
    assert len(kinds) == 1, "say below how to run it"
    PYTHON[kinds[0]](block.text, request)


def run_config(text, request):
    """From the folder of the repository, where the relative paths of configs are right."""
    request.getfixturevalue("monkeypatch").chdir(ROOT)
    names = {}
    exec(text, names)
    assert names["cfg"].MODEL.META_ARCHITECTURE == "RegionDH"


def run_searcher(text, request):
    """On an index of scenes by the network that comes with the package."""
    folder = request.getfixturevalue("searchable")
    capsys = request.getfixturevalue("capsys")
    text = re.sub(r'"[\w/]*index"', repr(str(folder / "index")), text)
    text = re.sub(r'"[\w/]*\.jpg"', repr(str(folder / "query.jpg")), text)
    text = re.sub(r'"(configs/[\w/]+\.yaml)"', rf'"{ROOT}/\1"', text)
    exec(text, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines
    for line in lines:
        distance, name, box = line.split(" ", 2)
        assert int(distance) >= 0
        assert Path(name).is_file()
        assert re.fullmatch(r"[\[(].+[\])]", box)


def run_network(text, request):
    """In a folder with ``photos``, by the network that comes with the package."""
    folder = request.getfixturevalue("searchable")
    capsys = request.getfixturevalue("capsys")
    request.getfixturevalue("monkeypatch").chdir(folder)
    exec(text, {})
    lines = capsys.readouterr().out.splitlines()
    answers = [line.split(" ", 1) for line in lines if re.match(r"\d+ (?!of )", line)]
    assert answers
    assert all(Path(name).is_file() for _, name in answers)


def run_shards(text, request):
    """In an empty folder, with some codes and queries."""
    folder = request.getfixturevalue("tmp_path")
    request.getfixturevalue("monkeypatch").chdir(folder)
    codes = np.random.default_rng(0).integers(0, 256, (50, 8), np.uint8)
    names = {"codes": codes, "queries": codes[:2]}
    exec(text, names)
    assert names["rows"][:, 0].tolist() == [0, 1]
    assert (folder / "shards" / "shards.json").is_file()


def run_without_heads(text, request):
    """In an empty folder, on the network that comes with the package."""
    folder = request.getfixturevalue("tmp_path")
    request.getfixturevalue("monkeypatch").chdir(folder)
    (folder / "output").mkdir()
    exec(text.replace('"regiondh_d2/', f'"{ROOT}/regiondh_d2/'), {})
    names = torch.load(folder / "output" / "detector.pth")["model"]
    assert any(name.startswith("roi_heads.box_head") for name in names)
    assert not any("hash" in name or "cls_score" in name for name in names)


PYTHON = {
    'engine="shards"': run_shards,
    "add_regiondh_config": run_config,
    "output/detector.pth": run_without_heads,
    "RegionDHSearcher": run_searcher,
    "regiondh_d2.load": run_network,
}


@pytest.fixture(scope="module")
def searchable(tmp_path_factory, load_tool):
    """A folder with an index of images by the shipped network, and one of them, ``query.jpg``."""
    folder = tmp_path_factory.mktemp("searchable")
    scenes = generate_scenes(
        folder / "scenes", num_database=3, num_queries=1, image_size=(320, 240)
    )
    photos = folder / "photos"
    (scenes / "JPEGImages").rename(photos)
    (folder / "query.jpg").write_bytes(next(photos.glob("queries*")).read_bytes())
    torch.manual_seed(0)
    for name, words in (
        (
            "extract_codes",
            f"--config-file {ROOT}/configs/voc07/regiondh_effnetlite_64.yaml --input {photos} "
            f"--output {folder}/photos.h5 MODEL.DEVICE cpu TEST.RETRIEVAL.INSTANCE_MIN_SCORE 0.01 "
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.01",
        ),
        ("build_index", f"{folder}/photos.h5 --output {folder}/index"),
    ):
        assert load_tool(name).main(words.split()) == 0
    return folder
