"""A recipe: trainings that lead to a network, one after the other.

A recipe is a YAML file:

================ ===================================================================================
``network``      the config with which the trained network is used: a path or a short name
``opts``         overrides KEY, VALUE, ... of all steps
``steps``        by name, in their order, each with
``config``       its config: a path or a short name
``starts_from``  the step whose network it starts from; without it, ``MODEL.WEIGHTS`` of its config
``opts``         its own overrides
``step_seconds`` seconds of an iteration on cached features, for the estimate
================ ===================================================================================

Each step trains in a folder of its own name, and steps on cached features share the folder
``cache``. Only the last step evaluates. A step that is done is left out, and an unfinished one goes
on from its last checkpoint, so that a recipe with a ``SEED`` ends with the network that it would
have ended with.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..checkpoint import has_last_checkpoint, zoo
from ..data.catalog import load_dataset
from ..utils.display import display_name
from ..utils.errors import InputNotFoundError, RegionDHError, unknown_value_message
from ..utils.file_io import check_output_file
from .config_file import refuse_double_keys
from .config_names import RECIPES, SUFFIX, configs_folder, find_config
from .defaults import build_cfg, check_datasets
from .step_times import idle_seconds, seconds_an_image, time_steps
from .training_record import Training, checkpoint_to_continue, data_checksum, last_checkpoint

__all__ = ["Recipe", "RecipeRun", "Step", "find_recipe", "read_recipe", "recipe_names"]

FINAL = "model_final.pth"
NETWORK = "network.pth"

_RECIPE_KEYS = {"network": str, "opts": list, "steps": dict}
_STEP_KEYS = {"config": str, "starts_from": str, "opts": list, "step_seconds": (int, float)}


@dataclass(frozen=True)
class Step:
    """A training of a recipe; see the keys of the file."""

    name: str
    config: str
    opts: tuple[str, ...] = ()
    starts_from: str = ""
    step_seconds: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """The content of a recipe file.

    Attributes:
        path: the file.
        network: the config of the trained network.
        steps: at least one, in their order.
    """

    path: str
    network: str
    steps: tuple[Step, ...]


def recipe_names() -> list[str]:
    """The short names of the recipes that come with the package, sorted."""
    return sorted(file.stem for file in (configs_folder() / RECIPES).glob(f"*{SUFFIX}"))


def find_recipe(name: str | os.PathLike) -> str:
    """The file of a recipe: a path, or the short name of one that comes with the package.

    Raises:
        InputNotFoundError: there is neither.
    """
    given = os.fspath(name)
    if os.path.lexists(given):
        return given
    if given in recipe_names():
        return str(configs_folder() / RECIPES / f"{given}{SUFFIX}")
    raise InputNotFoundError(unknown_value_message("recipe", given, tuple(recipe_names())))


def read_recipe(path: str | os.PathLike) -> Recipe:
    """Read a recipe file.

    Raises:
        RegionDHError: no recipe: no YAML, or a key is missing, not known, or of another type; or a
            step starts from one that doesn't come before it.
        OSError: the file can't be read.
    """
    shown = display_name(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        refuse_double_keys(yaml.compose(text, yaml.SafeLoader), shown)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RegionDHError(f"{shown}: no recipe: {' '.join(str(error).split())}") from error
    recipe = _checked(content, _RECIPE_KEYS, ("network", "steps"), shown)
    common = _words(recipe.get("opts", []), f"{shown}: opts")
    steps: list[Step] = []
    for name, values in recipe["steps"].items():
        where = f"{shown}: step {name}"
        if not re.fullmatch(r"\w+", str(name)) or str(name) == "cache":
            raise RegionDHError(f"{where}: a step's name has letters, digits and _, and not cache")
        values = _checked(values, _STEP_KEYS, ("config",), where)
        start = values.get("starts_from", "")
        if start and start not in [step.name for step in steps]:
            raise RegionDHError(f"{where}: starts_from {start}: no step before it has this name")
        opts = (*common, *_words(values.get("opts", []), f"{where}: opts"))
        seconds = float(values.get("step_seconds", 0.0))
        steps.append(Step(str(name), values["config"], opts, start, seconds))
    if not steps:
        raise RegionDHError(f"{shown}: steps: there are none")
    return Recipe(os.fspath(path), recipe["network"], tuple(steps))


def _checked(content: Any, kinds: Mapping[str, Any], needed: Sequence[str], where: str) -> dict:
    """A mapping of known keys, with values of the right types."""
    if not isinstance(content, dict):
        raise RegionDHError(f"{where}: holds no KEY: VALUE lines ({', '.join(kinds)})")
    for key, value in content.items():
        if key not in kinds:
            raise RegionDHError(f"{where}: {unknown_value_message('key', str(key), tuple(kinds))}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise RegionDHError(f"{where}: {key} is {value!r}, of another type than it takes")
    for key in needed:
        if key not in content:
            raise RegionDHError(f"{where}: {key} is missing")
    return content


def _words(opts: Sequence[Any], where: str) -> list[str]:
    if len(opts) % 2:
        raise RegionDHError(f"{where}: overrides come in pairs KEY, VALUE; the last one is alone")
    return [str(word) for word in opts]


class RecipeRun:
    """Runs a recipe in a folder, or goes on with it."""

    def __init__(
        self,
        recipe: Recipe,
        folder: str | os.PathLike,
        *,
        opts: Sequence[str] = (),
        train: Callable[[list[str]], None],
        log: Callable[[str], None] = print,
    ):
        """
        Args:
            recipe: what to train.
            folder: gets a folder for each step, ``cache`` and ``network.pth``.
            opts: overrides KEY, VALUE, ... of all steps, which count more than the recipe's.
            train: trains one step, given the words after ``regiondh train``; it raises what failed.
            log: takes the lines about progress.

        Raises:
            RegionDHError: a config or an override is wrong.
            FileNotFoundError: there is no such config.
            OutputExistsError: ``network.pth`` is another program's file.
        """
        self._recipe = recipe
        self._folder = Path(folder)
        self._opts = tuple(opts)
        self._train = train
        self._log = log
        self._checksum = cache(data_checksum)
        check_output_file(self.network, inputs=[recipe.path], overwrite=None, kind="weights")
        self._words = {step: self._overrides(step) for step in recipe.steps}
        self._cfgs = {step: build_cfg(step.config, self._words[step]) for step in recipe.steps}
        for cfg in self._cfgs.values():
            check_datasets(cfg)

    @property
    def network(self) -> Path:
        """The file of the trained network, with matrices in half precision."""
        return self._folder / NETWORK

    def cfg(self, step: Step) -> CfgNode:
        """The config of a step."""
        return self._cfgs[step]

    def _overrides(self, step: Step) -> list[str]:
        """The overrides of a step, those of the folder last."""
        opts = [*step.opts, *self._opts, "OUTPUT_DIR", str(self._folder / step.name)]
        if step.starts_from:
            opts += ["MODEL.WEIGHTS", str(self._folder / step.starts_from / FINAL)]
        if build_cfg(step.config, opts).MODEL.REGION_DH.FEATURE_CACHE:
            opts += ["MODEL.REGION_DH.FEATURE_CACHE", str(self._folder / "cache")]
        return opts if step == self._recipe.steps[-1] else [*opts, "DATASETS.TEST", "()"]

    def is_done(self, step: Step) -> bool:
        """Whether a step was trained, and evaluated where that belongs to it.

        Raises:
            RegionDHError: the network in its folder was trained with something else.
            OSError: images are missing.
        """
        cfg = self.cfg(step)
        final = Path(cfg.OUTPUT_DIR, FINAL)
        now = Training.of(cfg, self._checksum)
        fix = f"delete {display_name(cfg.OUTPUT_DIR)}, or move it away, to train it again"
        if checkpoint_to_continue(cfg.OUTPUT_DIR, now, fix) != final:
            return False
        results = [Path(cfg.OUTPUT_DIR, "inference", x, "metrics.json") for x in cfg.DATASETS.TEST]
        trained = final.stat().st_mtime_ns
        return all(file.is_file() and file.stat().st_mtime_ns >= trained for file in results)

    def minutes(self) -> dict[str, float]:
        """About how long each step takes on this machine, in minutes, if nothing else runs; 0 if
        it is done.

        Iterations on images are timed here for some seconds, and so is encoding an image; those on
        cached features are taken from the recipe.

        Raises:
            RegionDHError, OSError: see :meth:`is_done`.
        """
        seconds_of: dict[str, float] = {}
        found = {step.name: 0.0 for step in self._recipe.steps}
        for step in [step for step in self._recipe.steps if not self.is_done(step)]:
            cfg = self.cfg(step)
            cached = bool(cfg.MODEL.REGION_DH.FEATURE_CACHE)
            if cached:
                seconds = step.step_seconds
            else:
                if step.config not in seconds_of:
                    measured = time_steps(cfg, cfg.SOLVER.IMS_PER_BATCH, repeat=1)
                    seconds_of[step.config] = idle_seconds(
                        cfg, measured["seconds"], measured["clock_seconds"]
                    )
                seconds = seconds_of[step.config]
            total = seconds * (cfg.SOLVER.MAX_ITER - _iterations_done(cfg))
            images = sum(len(load_dataset(name)) for name in cfg.DATASETS.TEST)
            if cached:
                images += sum(len(load_dataset(name)) for name in cfg.DATASETS.TRAIN)
            if images:
                total += images * seconds_an_image(cfg)
            found[step.name] = total / 60
        return found

    def run(self) -> None:
        """Train what isn't done, and write the network.

        Raises:
            RegionDHError, OSError: see :meth:`is_done`.
        """
        steps = self._recipe.steps
        for number, step in enumerate(steps, 1):
            title = f"step {number} of {len(steps)}, {step.name}"
            if self.is_done(step):
                self._log(f"{title}: done before")
                continue
            self._log(title)
            begun = has_last_checkpoint(str(self._folder / step.name))
            words = ["--config-file", find_config(step.config), *self._words[step]]
            self._train(["--resume", *words] if begun else words)
        zoo.halve(str(self._folder / steps[-1].name / FINAL), str(self.network))


def _iterations_done(cfg: CfgNode) -> int:
    """Iterations until the last checkpoint of a training."""
    checkpoint = last_checkpoint(cfg.OUTPUT_DIR)
    if checkpoint is None:
        return 0
    found = re.fullmatch(r"model_(\d+)\.pth", checkpoint.name)
    return int(found[1]) + 1 if found else cfg.SOLVER.MAX_ITER * (checkpoint.name == FINAL)
