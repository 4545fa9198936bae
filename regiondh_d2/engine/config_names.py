"""Short names of the configs that come with the package, for use in any folder.

The short name of ``configs/voc07/regiondh_effnetlite0_64.yaml`` is
``voc07/regiondh_effnetlite0_64``.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from ..utils.display import display_name
from ..utils.errors import InputNotFoundError

__all__ = ["config_names", "configs_folder", "find_config"]

SUFFIX = ".yaml"
RECIPES = "recipes"  # a folder of files that are no configs, see :mod:`.recipe`
NEAR = 3  # how many names an error suggests


def configs_folder() -> Path:
    """The folder of the configs: in an installed package, or else at the top of the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """The short names of all configs, ``Base-`` files included, sorted."""
    folder = configs_folder()
    files = [file.relative_to(folder) for file in folder.rglob(f"*{SUFFIX}")]
    return sorted(x.with_suffix("").as_posix() for x in files if x.parts[0] != RECIPES)


def find_config(name: str | os.PathLike) -> str:
    """The file of a config.

    Args:
        name: a path; or, if there is no such file, the short name of a config of the package, with
            or without ``configs/`` before it and ``.yaml`` behind it.

    Returns:
        The path: ``name`` itself if there is such a file or folder.

    Raises:
        InputNotFoundError: there is neither; the message suggests similar names.
    """
    given = os.fspath(name)
    if os.path.lexists(given):
        return given
    short = short_name(given)
    names = config_names()
    if short in names:
        return str(configs_folder() / f"{short}{SUFFIX}")
    # Similar as a whole, or with the same last part.
    last = short.rpartition("/")[2]
    near = [known for known in names if known.rpartition("/")[2] == last]
    near += [known for known in get_close_matches(short, names, NEAR, 0.6) if known not in near]
    hint = f"; did you mean {' or '.join(near[:NEAR])}?" if near else ""
    raise InputNotFoundError(f"{display_name(given)}: no such config file{hint}")


def short_name(name: str) -> str:
    """A config's name in the form of :func:`config_names`, also on Windows.

    Args:
        name: may have backslashes, ``configs/`` before it and ``.yaml`` behind it.
    """
    return name.replace("\\", "/").removeprefix("./").removeprefix("configs/").removesuffix(SUFFIX)
