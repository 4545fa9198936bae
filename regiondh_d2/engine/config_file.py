"""Reads config files and overrides. A mistake gives one line with file, key and value."""

from __future__ import annotations

import ast
import difflib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import yaml
from detectron2.config import CfgNode

from ..config import RENAMED_KEYS, RENAMED_VALUES, current_value, flat_items
from ..utils.display import display_name
from ..utils.errors import InputNotFoundError, RegionDHError
from .config_rules import legal_values

__all__ = ["merge_config_file", "merge_overrides", "refuse_double_keys"]

logger = logging.getLogger(__name__)

_BASE = "_BASE_"
_GROUP = "a group of keys"  # in place of a value
_URL = ("https://", "http://")
# libyaml takes a tenth of the time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class _Source:
    """A config file, and its values as text, by dotted key."""

    path: str
    values: dict[str, str]


def merge_config_file(cfg: CfgNode, path: str) -> None:
    """Put the values of a config file and of its ``_BASE_`` files into a config, in place.

    Raises:
        RegionDHError: a file is missing, unreadable or no config, names itself as its base, or has
            a key or a value that isn't known.
    """
    sources = _read(path, "config file", ())
    groups = {
        ".".join(k.split(".")[:n]) for k, _ in flat_items(cfg) for n in range(1, k.count(".") + 1)
    }
    for source in sources:
        for key in groups & source.values.keys():
            if source.values[key] != _GROUP:
                raise RegionDHError(f"{display_name(source.path)}: {_wrong(cfg, key, '')}")
    try:
        with _taking_renamed_keys(cfg, sources):
            cfg.merge_from_file(path)
        _take_renamed_values(cfg)
    except OSError:
        raise
    except Exception as error:  # raised by Detectron2, fvcore, yacs or yaml
        reason = " ".join(str(error).split()) or type(error).__name__
        found = re.search(r"config key: ([\w.]+)", reason)
        if found is None:
            raise RegionDHError(f"{display_name(path)}: no config: {reason}") from error
        key = found[1]
        # The last file with the key decides.
        source = next((s for s in reversed(sources) if key in s.values), sources[-1])
        raise RegionDHError(
            f"{display_name(source.path)}: {_wrong(cfg, key, source.values.get(key, ''))}"
        ) from error


def merge_overrides(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Put KEY VALUE pairs into a config, in place.

    Raises:
        RegionDHError: a key isn't known or a value has another type; or the pairs are incomplete.
    """
    if len(opts) % 2:
        raise RegionDHError(f"overrides come in pairs KEY VALUE; the last one is alone: {opts[-1]}")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key in RENAMED_KEYS:
            _warn_of_renamed(key)
            key = RENAMED_KEYS[key]
        known = dict(flat_items(cfg))
        if key not in known and not cfg.key_is_deprecated(key):
            raise RegionDHError(_wrong(cfg, key, value))
        try:
            cfg.merge_from_list([key, value])
            _take_renamed_values(cfg)
        except Exception as error:  # of yacs' checks
            raise RegionDHError(_wrong(cfg, key, value)) from error


@contextmanager
def _taking_renamed_keys(cfg: CfgNode, sources: Sequence[_Source]) -> Iterator[None]:
    """Let a config accept the old names of keys while files are merged into it.

    yacs itself can only refuse them. If a key occurs under both names, the last file decides.
    """
    named = [[key for key in source.values if key in RENAMED_KEYS] for source in sources]
    renamed = dict.fromkeys(key for keys in named for key in keys)
    for old in renamed:
        _node(cfg, old)[_last(old)] = _node(cfg, RENAMED_KEYS[old])[_last(RENAMED_KEYS[old])]
    try:
        yield
    finally:
        values = {old: _node(cfg, old).pop(_last(old)) for old in renamed}
    for old, value in values.items():
        new = RENAMED_KEYS[old]
        source = next(s for s in reversed(sources) if {old, new} & s.values.keys())
        if new not in source.values:
            _node(cfg, new)[_last(new)] = value
        _warn_of_renamed(old)


def _take_renamed_values(cfg: CfgNode) -> None:
    """Put the present names of values (:data:`..config.RENAMED_VALUES`) into a config."""
    for key in RENAMED_VALUES:
        node, last = _node(cfg, key), _last(key)
        new = current_value(key, node[last])
        if new != node[last]:
            logger.warning(f"{key} {node[last]} is called {new} now; rename it")
            node[last] = new


def _node(cfg: CfgNode, key: str) -> CfgNode:
    """The group of a dotted key."""
    for part in key.split(".")[:-1]:
        cfg = cfg[part]
    return cfg


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _warn_of_renamed(old: str) -> None:
    logger.warning(f"{old} is called {RENAMED_KEYS[old]} now; rename it")


def _wrong(cfg: CfgNode, key: str, value: object) -> str:
    """The message about an unknown key, or a value of another type."""
    known = dict(flat_items(cfg))
    key = RENAMED_KEYS.get(key, key)
    if key in known:
        hint = f" (write {value}.0)" if isinstance(known[key], float) and _is_whole(value) else ""
        shown = value if isinstance(value, str) else repr(value)
        return f"{key} is {shown}: it takes {legal_values(key)}{hint}"
    below = [k for k in known if k.startswith(f"{key}.")]
    if below:
        return f"{key} is a group of keys; name one of them, such as {below[0]}"
    # Its last part may belong to another group; otherwise it may be a typo.
    elsewhere = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.0)
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"Non-existent config key: {key}{f'; did you mean {near[0]}?' if near else ''}"


def _is_whole(value: object) -> bool:
    try:
        return isinstance(ast.literal_eval(str(value)), int)
    except (ValueError, SyntaxError, TypeError):
        return False


def _read(path: str, what: str, below: tuple[str, ...]) -> list[_Source]:
    """The bases of a file, then the file; ``below`` is the chain of files that led to it."""
    shown = display_name(path)
    if not os.path.isfile(path):
        kind = "is a folder" if os.path.isdir(path) else f"no such {what}"
        raise InputNotFoundError(f"{shown}: {kind}{_named_by(below)}")
    if os.path.realpath(path) in map(os.path.realpath, below):
        raise RegionDHError(f"{shown}: {_BASE} leads in a circle{_named_by(below)}")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        try:
            root = yaml.compose(text, _LOADER)
        except yaml.YAMLError:
            root = yaml.compose(text, yaml.SafeLoader)  # whose messages say more
    except UnicodeDecodeError as error:
        raise RegionDHError(f"{shown}: no config, not UTF-8 text ({error.reason})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RegionDHError(f"{shown}{line}: no valid YAML: {' '.join(problem.split())}") from error
    if not isinstance(root, yaml.MappingNode):
        kinds = {yaml.SequenceNode: "a list", yaml.ScalarNode: "text", type(None): "nothing"}
        raise RegionDHError(
            f"{shown}: no config: it holds {kinds[type(root)]} instead of KEY: VALUE lines"
            f"{_named_by(below)}"
        )
    refuse_double_keys(root, shown)
    sources = []
    for base in _bases(root, shown):
        if base.startswith("~"):
            base = os.path.expanduser(base)
        if base.startswith(_URL):
            continue
        # Relative to the folder of the file, as in Detectron2; an absolute path stays.
        sources += _read(os.path.join(os.path.dirname(path), base), "base config", (*below, path))
    return [*sources, _Source(path, dict(_values(root)))]


def _named_by(below: tuple[str, ...]) -> str:
    return f", which {_BASE} of {display_name(below[-1])} names" if below else ""


def _bases(root: yaml.MappingNode, shown: str) -> list[str]:
    for key, value in root.value:
        if key.value != _BASE:
            continue
        nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(node, yaml.ScalarNode) and node.value for node in nodes):
            raise RegionDHError(
                f"{shown}: {_BASE} takes the path of a config file, or a list of them"
            )
        return [node.value for node in nodes]
    return []


def refuse_double_keys(node: yaml.Node | None, shown: str, prefix: str = "") -> None:
    """Check that no mapping of a YAML file has a key twice, of which YAML would drop the first one.

    Raises:
        RegionDHError: a key occurs twice, or is no text.
    """
    seen = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode):
            raise RegionDHError(f"{shown}, line {key.start_mark.line + 1}: a key must be text")
        name = f"{prefix}{key.value}"
        if name in seen:
            raise RegionDHError(
                f"{shown}, line {key.start_mark.line + 1}: {name} occurs twice; keep one"
            )
        seen.add(name)
        refuse_double_keys(value, shown, f"{name}.")


def _values(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode):
            yield name, _GROUP
            yield from _values(value, f"{name}.")
        elif isinstance(value, yaml.SequenceNode):
            inner = ", ".join(getattr(n, "value", "") for n in value.value if _is_scalar(n))
            yield name, f"[{inner}]"
        else:
            yield name, value.value


def _is_scalar(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)
