"""Recipes: what a file may hold, what is left to do, and that interruptions don't matter."""

import re
from pathlib import Path

import pytest
import torch

from builders import registered_scenes
from regiondh_d2.checkpoint import read_weights
from regiondh_d2.engine import RegionDHTrainer, build_cfg
from regiondh_d2.engine.command import run_command
from regiondh_d2.engine.recipe import (
    RecipeRun,
    Step,
    find_recipe,
    read_recipe,
    recipe_names,
)
from regiondh_d2.utils.errors import InputNotFoundError, RegionDHError

PREFIX = "recipe_test_"
TRAIN, TEST = f"{PREFIX}regiondh_scenes_database", f"{PREFIX}scenes_retrieval"
RECIPE = """
network: {config}
opts: [SEED, 0, DATASETS.TRAIN, "('{train}',)", DATASETS.TEST, "('{test}',)", MODEL.DEVICE, cpu,
       DATALOADER.NUM_WORKERS, 0, SOLVER.CHECKPOINT_PERIOD, 1]
steps:
  detector:
    config: {config}
    opts: [SOLVER.MAX_ITER, 3]
  heads:
    config: {config}
    starts_from: detector
    step_seconds: 60
    opts: [MODEL.REGION_DH.FEATURE_CACHE, any, MODEL.REGION_DH.LR_FACTORS.BACKBONE, 0.0,
           MODEL.REGION_DH.LR_FACTORS.PROPOSAL_GENERATOR, 0.0, SOLVER.MAX_ITER, 2]
"""


@pytest.fixture(scope="module", autouse=True)
def datasets(shared_scenes):
    with registered_scenes(shared_scenes, PREFIX):
        yield


@pytest.fixture
def recipe(random_network, tmp_path):
    """The path of a recipe of two steps."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(config=random_network.config, train=TRAIN, test=TEST))
    return path


@pytest.fixture
def train_recipe(load_tool, plain_loggers, recipe, tmp_path, monkeypatch):
    """A function that runs the command in a folder and returns its exit status."""
    tool = load_tool("train_recipe")
    monkeypatch.chdir(tmp_path)

    def run(folder, *words):
        args = tool.build_parser().parse_args([str(recipe), "--output", folder, *words])
        return run_command(lambda: tool.run(args), "interrupted")

    return run


def test_interrupted_and_run_again_it_ends_with_the_same_network(
    train_recipe, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(RegionDHTrainer, "build_writers", lambda trainer: [])
    # What takes seconds.
    monkeypatch.setattr(RecipeRun, "minutes", lambda run: {})
    monkeypatch.setattr("detectron2.engine.defaults.collect_env_info", str)
    assert train_recipe("whole") == 0
    assert "step 2 of 2, heads" in capsys.readouterr().out
    assert not list(Path("whole/detector").glob("inference/*/metrics.json"))
    assert list(Path("whole/heads").glob("inference/*/metrics.json"))

    after_step = RegionDHTrainer.after_step
    stops = iter([("detector", 1), ("heads", 0)])
    stop = [next(stops)]

    def interrupt(trainer):
        after_step(trainer)
        if stop[0] == (Path(trainer.cfg.OUTPUT_DIR).name, trainer.iter):
            stop[0] = next(stops, None)
            raise KeyboardInterrupt

    monkeypatch.setattr(RegionDHTrainer, "after_step", interrupt)
    assert train_recipe("parts") == 130
    assert not Path("parts/heads").exists()
    assert train_recipe("parts") == 130
    assert train_recipe("parts") == 0
    assert re.search(r"detector: done before\n.*heads\n", capsys.readouterr().out)
    for name in ("heads/model_final.pth", "network.pth"):
        whole, parts = (read_weights(Path(x, name))["model"] for x in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)

    assert train_recipe("parts") == 0
    assert "heads: done before" in capsys.readouterr().out
    assert train_recipe("parts", "SOLVER.BASE_LR", "0.5") == 1
    line = r"error: \S+model_final\.pth was trained with SOLVER\.BASE_LR .+: delete parts/detector"
    assert re.match(line, capsys.readouterr().err)


def test_the_estimate_trains_nothing(train_recipe, tmp_path, capsys):
    assert train_recipe("none", "--estimate") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"about [2-9] minutes on this machine, if nothing else runs:", lines[0])
    # Two iterations of the second step take two minutes by the recipe.
    assert lines[2].split() == ["heads", "2"]
    assert not Path("none").exists()


def test_a_step_starts_from_the_network_of_another(recipe, tmp_path):
    run = RecipeRun(read_recipe(recipe), tmp_path / "out", train=None)
    detector, heads = read_recipe(recipe).steps
    first, second = map(run.cfg, (detector, heads))
    out = tmp_path / "out"
    assert Path(first.OUTPUT_DIR) == out / "detector"
    assert Path(second.MODEL.WEIGHTS) == out / "detector/model_final.pth"
    assert not first.MODEL.REGION_DH.FEATURE_CACHE
    assert Path(second.MODEL.REGION_DH.FEATURE_CACHE) == out / "cache"
    assert (first.DATASETS.TEST, second.DATASETS.TEST) == ((), (TEST,))


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_of_the_package(name, tmp_path):
    """Their settings are legal, and the last step trains the network of its config."""
    recipe = read_recipe(find_recipe(name))
    run = RecipeRun(recipe, tmp_path, train=None)
    last = run.cfg(recipe.steps[-1])
    used = build_cfg(recipe.network)
    for key in ("BITS", "IMAGE_ENCODERS", "IMAGE_ENCODER_SIZES", "CLASSIFIER_INPUT"):
        assert last.MODEL.REGION_DH[key] == used.MODEL.REGION_DH[key]
    assert all(run.cfg(x).SEED == 0 for x in recipe.steps)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("network:", "networks:", "key: 'networks' isn't one of network, opts, steps"),
        ("steps:", "opts:", "line 5: opts occurs twice"),
        ("network:", "#", "network is missing"),
        ("  heads:", "  detector:", "steps.detector occurs twice"),
        ("starts_from: detector", "starts_from: heads", "starts_from heads: no step before it"),
        ("step_seconds: 60", "step_seconds: long", "step heads: step_seconds is 'long'"),
        ("SOLVER.MAX_ITER, 3]", "SOLVER.MAX_ITER]", "step detector: opts: overrides come in pairs"),
        ("  detector:", "  ../detector:", "a step's name has letters"),
        ("  heads:", "  cache:", "a step's name has letters"),
        ("network:", "network: [", "no recipe: "),
    ],
)
def test_a_wrong_recipe_is_refused(recipe, old, new, told):
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    with pytest.raises(RegionDHError, match=re.escape(told)) as error:
        read_recipe(recipe)
    assert str(error.value).startswith(str(recipe))
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(InputNotFoundError, match="effnetlite_voc07_64"):
        find_recipe("effnetlite_voc07")
    assert find_recipe(tmp_path) == str(tmp_path)


def test_a_wrong_override_is_told_before_anything_is_trained(recipe, tmp_path):
    content = read_recipe(recipe)
    with pytest.raises(RegionDHError, match=r"SOLVER\.MAX_ITERS"):
        RecipeRun(content, tmp_path, opts=["SOLVER.MAX_ITERS", "1"], train=None)
    assert content.steps[1] == Step(
        "heads", content.network, content.steps[1].opts, "detector", 60.0
    )
