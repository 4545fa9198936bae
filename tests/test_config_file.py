"""Config files and KEY VALUE pairs: renamed keys and values."""

import logging

import pytest
from detectron2.config import get_cfg

from regiondh_d2 import add_regiondh_config
from regiondh_d2.config import (
    RENAMED_KEYS,
    RENAMED_VALUES,
    changed_settings,
    code_settings,
    flat_items,
    training_settings,
)
from regiondh_d2.engine.config_file import merge_config_file, merge_overrides

OLD, NEW = "MODEL.TIMM.HEAD_CONV_DIM", "MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM"


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_regiondh_config(cfg)
    return cfg


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(f"VERSION: 2\n{text}\n")
        return str(tmp_path / name)

    return write


def test_new_names_are_keys_and_old_names_are_none(cfg):
    keys = dict(flat_items(cfg))
    assert RENAMED_KEYS.keys().isdisjoint(keys)
    assert set(RENAMED_KEYS.values()) <= keys.keys()


def test_an_old_name_in_a_file_is_taken_with_a_warning(cfg, write, caplog):
    path = write("old.yaml", "MODEL: {TIMM: {HEAD_CONV_DIM: 12, NAME: resnet18}}")
    with caplog.at_level(logging.WARNING):
        merge_config_file(cfg, path)
    assert cfg.MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM == 12
    assert "HEAD_CONV_DIM" not in cfg.MODEL.TIMM
    assert [r.getMessage() for r in caplog.records] == [f"{OLD} is called {NEW} now; rename it"]


@pytest.mark.parametrize("old_first", [True, False])
def test_of_an_old_and_a_new_name_the_last_file_decides(cfg, write, old_first):
    texts = ["MODEL: {TIMM: {HEAD_CONV_DIM: 12}}", "MODEL: {REGION_DH: {LIGHT_HEAD_CONV_DIM: 34}}"]
    first, last = texts if old_first else texts[::-1]
    write("base.yaml", first)
    merge_config_file(cfg, write("leaf.yaml", f"_BASE_: base.yaml\n{last}"))
    assert (34 if old_first else 12) == cfg.MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM


def test_a_wrong_value_under_an_old_name_is_refused(cfg, write):
    path = write("old.yaml", "MODEL: {TIMM: {HEAD_CONV_DIM: wide}}")
    with pytest.raises(ValueError, match=r"old\.yaml: MODEL\..*HEAD_CONV_DIM is wide: it takes"):
        merge_config_file(cfg, path)
    assert "HEAD_CONV_DIM" not in cfg.MODEL.TIMM


def test_an_old_name_in_a_pair_is_taken_with_a_warning(cfg, caplog):
    merge_overrides(cfg, [OLD, "56"])
    assert cfg.MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM == 56
    assert NEW in caplog.text


def test_settings_of_an_old_name_are_the_same_settings(cfg):
    cfg.MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM = 1280
    now = code_settings(cfg)
    before = now.replace(NEW, OLD)
    assert before != now
    assert changed_settings(before, now) == {}


def test_detectron2_alone_names_the_new_key(cfg, write):
    with pytest.raises(KeyError, match=f"{OLD} was renamed to {NEW}"):
        cfg.merge_from_file(write("old.yaml", "MODEL: {TIMM: {HEAD_CONV_DIM: 12}}"))


OBJECTIVE = "MODEL.REGION_DH.OBJECTIVE"


def test_values_with_other_names_are_of_keys_that_exist(cfg):
    assert RENAMED_VALUES.keys() <= dict(flat_items(cfg)).keys()


@pytest.mark.parametrize("way", ["file", "base", "pair"])
def test_an_old_name_of_a_value_is_taken_with_a_warning(cfg, write, caplog, way):
    old = write("old.yaml", "MODEL: {REGION_DH: {OBJECTIVE: isdh}}")
    if way == "pair":
        merge_overrides(cfg, [OBJECTIVE, "isdh"])
    else:
        merge_config_file(cfg, old if way == "file" else write("leaf.yaml", "_BASE_: old.yaml"))
    assert cfg.MODEL.REGION_DH.OBJECTIVE == "idhn"
    told = [r.getMessage() for r in caplog.records]
    assert told == [f"{OBJECTIVE} isdh is called idhn now; rename it"]


@pytest.mark.parametrize("kind", [code_settings, training_settings])
def test_settings_with_an_old_name_of_a_value_are_the_same_settings(cfg, kind):
    cfg.MODEL.REGION_DH.OBJECTIVE = "idhn"
    now = kind(cfg)
    before = now.replace("'idhn'", "'isdh'")
    assert before != now
    assert changed_settings(before, now, kind) == {}
    assert changed_settings(before, kind(cfg).replace("'idhn'", "'isdh_soft'"), kind)
