"""Command lines: options and KEY VALUE pairs in any order, one line for what is not understood."""

import argparse
import importlib.util
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from regiondh_cli.arguments import DEBUG_VARIABLE, CommandParser, is_config_key
from regiondh_cli.main import subcommand_parser
from regiondh_cli.options import positive_int, whole_number
from regiondh_cli.subcommands import NAMES

ROOT = Path(__file__).parents[1]


@pytest.fixture
def parser():
    parser = CommandParser()
    parser.add_argument("--config-file")
    parser.add_argument("--input", nargs="+")
    parser.add_argument("--tasks", nargs="+", choices=("a", "b", "c"), default=["a", "b"])
    parser.add_argument("--box", action="append")
    parser.add_argument("--size", type=int, nargs=2)
    parser.add_argument("--topk", type=positive_int, default=10)
    parser.add_argument("--resume", action="store_true")
    parser.add_overrides()
    return parser


@pytest.fixture
def plain():
    """Without overrides, with other arguments."""
    parser = CommandParser()
    parser.add_argument("dataset")
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--output")
    parser.add_argument("--queries", nargs="+", default=[])
    parser.add_argument("--list", action="store_true")
    return parser


def refused(capsys, parser, *words):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(words)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith(" --help)\n")
    assert err.count("\n") == 1
    return err


def test_positive_int():
    assert positive_int("12") == 12
    for text in ("0", "-3"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text} is below 1"):
            positive_int(text)
    with pytest.raises(ValueError):
        positive_int("x")
    with pytest.raises(argparse.ArgumentTypeError, match="9 is above 8"):
        whole_number(0, 8)("9")


PAIRS = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", "out"]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([*PAIRS, "--topk", "2"], {"topk": 2}),
        (["--resume", *PAIRS, "--config-file", "c"], {"resume": True, "config_file": "c"}),
        ([*PAIRS, "--resume"], {"resume": True}),
        (["--input", "x", "y", *PAIRS], {"input": ["x", "y"]}),
        ([*PAIRS[:2], "--input", "x", *PAIRS[2:], "--resume"], {"input": ["x"], "resume": True}),
        (["--tasks", "c", *PAIRS], {"tasks": ["c"]}),
        ([*PAIRS, "--box", "-5,-5,50,60"], {"box": ["-5,-5,50,60"]}),
        (["--box=-5,-5,5,6", *PAIRS, "--box", "1,2,3,4"], {"box": ["-5,-5,5,6", "1,2,3,4"]}),
        (["--size", "-3", "4", *PAIRS], {"size": [-3, 4]}),
        (["--input", "-x.jpg", "y", *PAIRS], {"input": ["-x.jpg", "y"]}),
        (["MODEL.DEVICE=cpu", "OUTPUT_DIR=out", "--topk=3"], {"topk": 3}),
        # What is a value of an option is never an override.
        (["--config-file", "MODEL.DEVICE", *PAIRS], {"config_file": "MODEL.DEVICE"}),
        (
            [*PAIRS, "--input", "a", "--", "MODEL.DEVICE", "--topk"],
            {"input": ["a", "MODEL.DEVICE", "--topk"]},
        ),
    ],
)
def test_overrides_and_options_in_any_order(parser, words, values):
    expected = vars(parser.parse_args([])) | values | {"opts": PAIRS}
    assert vars(parser.parse_args(words)) == expected


def test_an_override_may_be_negative_and_may_look_like_anything(parser):
    words = ["SOLVER.BASE_LR", "-1e-3", "MODEL.WEIGHTS", "", "DATASETS.TEST", "('a', 'b')"]
    assert parser.parse_args([*words, "--topk", "1"]).opts == words


def test_an_option_with_several_values_adds_up(parser):
    args = parser.parse_args(["--input", "a", "--resume", "--input", "b", "c"])
    assert args.input == ["a", "b", "c"]
    assert parser.parse_args(["--tasks", "c", "--tasks", "a"]).tasks == ["c", "a"]
    assert parser.parse_args([]).tasks == ["a", "b"]  # the default is as it was


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top", "2"], "--top: no such option; did you mean --topk?"),
        (["--config_file", "c"], "--config_file: no such option; did you mean --config-file?"),
        (["topk", "2"], "topk: not expected here; did you mean --topk?"),
        (["MODEL.DEVICE", "cpu", "x"], "x: not expected here"),
        (["MODEL.DEVICE"], "MODEL.DEVICE has no value"),
        (["MODEL.DEVICE", "--resume"], "MODEL.DEVICE has no value"),
        (["MODEL.DEVICE", "MODEL.WEIGHTS", "w"], "MODEL.DEVICE has no value"),
        (["model.device", "cpu"], "model.device: not expected here; did you mean MODEL.DEVICE?"),
        (["MODEL", "3"], "MODEL: not expected here"),
        (["--topk"], "--topk: expected one argument"),
        (["--topk", "--resume"], "--topk: expected one argument"),
        (["--input", "MODEL.DEVICE", "cpu"], "--input: expected at least one argument"),
        (["--topk", "0"], "--topk: 0 is below 1"),
        (["--size", "3", *PAIRS], "--size: expected 2 arguments"),
        (["a\nb"], r"a\nb: not expected here"),
    ],
)
def test_what_is_not_understood_is_named(capsys, parser, words, message):
    assert message in refused(capsys, parser, *words)


def test_options_between_other_arguments(plain):
    args = plain.parse_args(["voc", "row1", "--list", "row2", "--output", "-o", "row3"])
    assert (args.dataset, args.rows, args.output) == ("voc", ["row1", "row2", "row3"], "-o")
    args = plain.parse_args(["--queries", "1", "2", "--", "voc", "--row"])
    assert (args.queries, args.dataset, args.rows) == (["1", "2"], "voc", ["--row"])
    assert plain.parse_args(["voc"]).rows == []


def test_a_command_without_a_config_names_overrides(capsys):
    parser = CommandParser()
    parser.add_argument("codes")
    message = refused(capsys, parser, "MODEL.DEVICE", "cpu")
    assert "cpu: not expected here" in message or "no config overrides" in message
    assert "no config overrides" in refused(capsys, parser, "codes.h5", "MODEL.DEVICE", "cpu")


def test_a_file_is_not_a_key(parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MODEL.JPG", "INPUT.A"):
        Path(name).touch()
    words = ["--input", "MODEL.JPG", "IMG_0001.JPG", "DSC.TIFF", "INPUT.A", "./MODEL.DEVICE"]
    assert parser.parse_args([*words, *PAIRS]).input == words[1:]
    assert parser.parse_args(words).opts == []


def test_words_that_are_meant_as_keys():
    for word in ("MODEL.REGION_DH.BITS", "SEED", "MODEL.NO_SUCH.KEY", "MODELL.DEVICE", "SOLVR.X"):
        assert is_config_key(word), word
    for word in (
        "MODEL",
        "model.device",
        "a.jpg",
        "IMG_0001.JPG",
        "A",
        "",
        "MODEL.",
        "Model.Device",
    ):
        assert not is_config_key(word), word


def test_empty_values(capsys, parser, plain):
    """What an unset variable of a shell leaves: as a folder it would be the working directory."""
    for words in (["--input", ""], ["--input="], ["--input", "a.jpg", ""]):
        assert "argument --input: the value is empty" in refused(capsys, parser, *words)
    assert "the value is empty" in refused(capsys, plain, "")
    assert parser.parse_args(["--input", "a.jpg", "MODEL.WEIGHTS", ""]).opts == [
        "MODEL.WEIGHTS",
        "",
    ]


def test_a_file_with_a_dash_is_shown_how(capsys, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("-a.h5").touch()
    assert "the file of that name is written ./-a.h5" in refused(capsys, plain, "-a.h5")


def test_subcommands(capsys):
    parser = CommandParser()
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("--images", type=int, default=8)
    train.add_overrides()
    args = parser.parse_args(["train", "SEED", "1", "--images", "3"])
    assert (args.command, args.images, args.opts) == ("train", 3, ["SEED", "1"])
    assert parser.parse_args(["train", "MODEL.WEIGHTS", ""]).opts == ["MODEL.WEIGHTS", ""]
    assert "--images: the value is empty" in refused(capsys, parser, "train", "--images", "")
    assert "did you mean --images?" in refused(capsys, parser, "train", "--image", "3")
    assert "choose from" in refused(capsys, parser, "trian")


def test_debug_reaches_other_processes(parser, monkeypatch):
    monkeypatch.setenv(DEBUG_VARIABLE, "")
    args = parser.parse_args(["SEED", "1", "--debug"])
    assert not hasattr(args, "debug")
    import os

    assert os.environ[DEBUG_VARIABLE] == "1"


SCRIPTS = [ROOT / "experiments" / name for name in ("plot.py", "run.py")]


def parsers(command, monkeypatch):
    """The parsers of a subcommand or of a script, with those of its subcommands."""
    made = []
    start = CommandParser.__init__

    def noted(self, *args, **kwargs):
        made.append(self)
        start(self, *args, **kwargs)

    monkeypatch.setattr(CommandParser, "__init__", noted)
    if isinstance(command, str):
        subcommand_parser(command)
    else:
        # The name tells the study's commands, which are modules of a package, where they belong.
        name = f"{command.parent.name}.command_{command.stem}"
        spec = importlib.util.spec_from_file_location(name, command)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.build_parser()
    return made


@pytest.mark.parametrize("command", [*NAMES, *SCRIPTS], ids=lambda c: getattr(c, "stem", c))
def test_every_command_has_this_parser_and_names_its_defaults(command, monkeypatch):
    made = parsers(command, monkeypatch)
    assert made
    for parser in made:
        assert "--debug" in parser.format_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            assert action.help, action.dest
            if action.default not in (None, False, [], argparse.SUPPRESS):
                assert "default" in action.help, action.dest


def test_training_takes_what_detectron2_takes(load_tool):
    ours = load_tool("train_net").build_parser()
    theirs = default_argument_parser()
    for words in ([], ["--config-file", "c", "--resume", "--num-gpus", "2", "SEED", "3"]):
        expected = vars(theirs.parse_args(words))
        expected["dist_url"] = None  # a free port
        found = vars(ours.parse_args(words))
        assert {name: found[name] for name in expected} == expected
    # Its own takes this for an override.
    assert ours.parse_args(["--config-file", "c", "SEED", "3", "--resume"]).resume
