"""The trainer's own parts: frozen parts, the best model, evaluators, and what was asked for."""

import argparse
import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils.events import EventStorage
from torch import nn

from builders import registered_scenes
from regiondh_d2 import add_regiondh_config
from regiondh_d2.checkpoint import RegionDHCheckpointer, WeightsError, model_fingerprint
from regiondh_d2.engine import RegionDHTrainer, build_cfg, defaults, setup_cfg
from regiondh_d2.engine.defaults import asked_of
from regiondh_d2.engine.trainer import (
    BEST,
    PARTS,
    ResumableBestCheckpointer,
    build_optimizer,
    freeze_parts,
)
from regiondh_d2.evaluation import RetrievalEvaluator
from regiondh_d2.retrieval.code_store import read_codes, write_codes
from regiondh_d2.structures.codes import CodeFileError
from regiondh_d2.utils.errors import RegionDHError

PREFIX = "t_trainer_"
SCENES = f"{PREFIX}scenes_retrieval"


@pytest.fixture(autouse=True)
def loggers(monkeypatch):
    """Loggers stay as they are, for the tests that read them."""
    monkeypatch.setattr(defaults, "setup_logger", lambda *args, **kwargs: None)


# --- Frozen parts --------------------------------------------------------------------------------

# Norms with running statistics, and a layer of another kind that updates a buffer in training.
BATCH_NORMS = ("MODEL.TIMM.FREEZE_BN", "False", "MODEL.REGION_DH.NORMALIZE_FUSED", "True")


class Counter(nn.Module):
    """A layer that counts its calls in training: no norm, but updates itself as one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.count += 1
        return x


@pytest.mark.parametrize("part", PARTS)
def test_a_factor_of_zero_freezes_a_part_wholly(make_model, make_inputs, tiny_cfg, part):
    """Parameters and statistics, also after train() and evaluations, and in a copy."""
    model = make_model(*BATCH_NORMS)
    tiny_cfg.merge_from_list([*BATCH_NORMS, f"MODEL.REGION_DH.LR_FACTORS.{part}", 0.0])
    # Each part gets a norm that really updates itself, run by hand below.
    owner = model.get_submodule(PARTS[part].rstrip("."))
    owner.extra = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(Counter()), nn.Dropout(0.5))
    optimizer = build_optimizer(tiny_cfg, model)
    state = copy.deepcopy(model.state_dict())
    model = copy.deepcopy(model)  # as DDP or an average of weights may do
    optimizer = build_optimizer(tiny_cfg, model)  # a second time changes nothing
    for _ in range(2):
        model.eval()
        model.train()
        torch.manual_seed(0)
        with EventStorage():
            losses = sum(model(make_inputs((64, 64), (64, 64))).values())
        extra = model.get_submodule(PARTS[part].rstrip(".")).extra
        (losses + extra(torch.randn(5, 3)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    assert list(after) == list(state)
    frozen = [k for k in state if k.startswith(PARTS[part])]
    assert [k for k in frozen if not torch.equal(after[k], state[k])] == []
    assert any(k.endswith("extra.0.running_mean") for k in frozen)
    for other, prefix in PARTS.items():
        if other != part:
            names = [k for k in state if k.startswith(prefix)]
            assert any(not torch.equal(after[k], state[k]) for k in names), other
    assert extra[2].training  # dropout goes on
    assert extra[0].weight.requires_grad is False


def test_without_a_factor_of_zero_statistics_move(make_model, make_inputs, tiny_cfg):
    model = make_model(*BATCH_NORMS).train()
    freeze_parts(tiny_cfg, model)
    before = copy.deepcopy(model.state_dict())
    with EventStorage():
        model(make_inputs((64, 64), (64, 64)))
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert any(k.startswith("backbone.") and k.endswith("running_var") for k in moved)
    assert "roi_heads.image_hash.norm.running_mean" in moved


def test_a_frozen_part_may_itself_be_a_norm():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.BatchNorm1d(2)
            self.other = nn.Linear(2, 2)

    cfg = get_cfg()
    add_regiondh_config(cfg)
    cfg.MODEL.REGION_DH.LR_FACTORS.BACKBONE = 0.0
    model = Model()
    freeze_parts(cfg, model)
    model.train()
    model.backbone(torch.randn(4, 2))
    assert model.backbone.running_mean.abs().sum() == 0.0
    assert isinstance(model.backbone, nn.BatchNorm1d)


def test_nothing_left_to_train(make_model, tiny_cfg):
    for part in PARTS:
        tiny_cfg.MODEL.REGION_DH.LR_FACTORS[part] = 0.0
    with pytest.raises(RegionDHError, match=r"nothing is left to train: .+LR_FACTORS"):
        build_optimizer(tiny_cfg, make_model())


# --- The best model ------------------------------------------------------------------------------


class Training:
    """What the hook sees of a training: one evaluation after the other."""

    def __init__(self, folder, *opts, start=0, dataset="t_dev"):
        cfg = get_cfg()
        add_regiondh_config(cfg)
        cfg.merge_from_list(["TEST.EVAL_PERIOD", 1, *opts])
        self.metric = f"retrieval/MAP_min@{cfg.TEST.RETRIEVAL.TOPK}"
        self.folder, self.latest = folder, {}
        self.model = nn.Linear(1, 1)
        self.checkpointer = RegionDHCheckpointer(self.model, str(folder))
        self.hook = ResumableBestCheckpointer(cfg, self.checkpointer, dataset)
        storage = SimpleNamespace(latest=lambda: self.latest)
        self.hook.trainer = SimpleNamespace(
            storage=storage, start_iter=start, iter=start, max_iter=10**6
        )
        self.hook.before_train()

    def evaluate(self, value):
        """An iteration with an evaluation; the weight of the model is the metric."""
        trainer = self.hook.trainer
        self.latest[self.metric] = (value, trainer.iter)
        nn.init.constant_(self.model.weight, value)
        self.hook.after_step()
        trainer.iter += 1
        return self


def best(folder):
    """What model_best.pth holds: the metric of its weights, and the one that it tells."""
    data = torch.load(folder / "model_best.pth", weights_only=True)
    return round(data["model"]["weight"].item(), 6), data[BEST]["value"]


def test_after_a_resume_a_worse_model_never_replaces_the_best(tmp_path):
    Training(tmp_path).evaluate(0.6).evaluate(0.8)
    assert best(tmp_path) == (0.8, 0.8)
    Training(tmp_path, start=2).evaluate(0.7)
    assert best(tmp_path) == (0.8, 0.8)
    # Several resumes, also from a checkpoint before the best one.
    Training(tmp_path, start=1).evaluate(0.79)
    Training(tmp_path, start=1).evaluate(0.8)
    assert best(tmp_path) == (0.8, 0.8)
    Training(tmp_path, start=3).evaluate(0.75).evaluate(0.9).evaluate(0.85)
    Training(tmp_path, start=6).evaluate(0.87)
    assert best(tmp_path) == (0.9, 0.9)
    assert [p.name for p in tmp_path.glob("*.pth")] == ["model_best.pth"]


def test_a_kill_between_evaluation_and_saving_loses_nothing(tmp_path, monkeypatch):
    training = Training(tmp_path).evaluate(0.6)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            training.evaluate(0.8)
    assert best(tmp_path) == (0.6, 0.6)
    Training(tmp_path, start=1).evaluate(0.7)
    assert best(tmp_path) == (0.7, 0.7)


def test_a_missing_best_model_starts_anew(tmp_path):
    Training(tmp_path).evaluate(0.8)
    (tmp_path / "model_best.pth").unlink()
    Training(tmp_path, start=1).evaluate(0.7)
    assert best(tmp_path) == (0.7, 0.7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_no_number_is_never_the_best(tmp_path, value, caplog):
    Training(tmp_path).evaluate(value)
    assert not (tmp_path / "model_best.pth").exists()
    Training(tmp_path).evaluate(0.5).evaluate(value)
    assert best(tmp_path) == (0.5, 0.5)


def by_another_cutoff(path):
    return ("TEST.RETRIEVAL.TOPK", 5)


def of_version_0_1(path):
    data = torch.load(path, weights_only=True)
    del data[BEST]
    torch.save(data, path)
    return ()


def damaged(path):
    path.write_bytes(path.read_bytes()[:300])
    return ()


@pytest.mark.parametrize("change", [by_another_cutoff, of_version_0_1, damaged])
def test_a_best_model_that_cannot_be_compared_is_kept(tmp_path, change, caplog):
    path = tmp_path / "model_best.pth"
    Training(tmp_path).evaluate(0.8)
    opts = change(path)
    content = path.read_bytes()
    (tmp_path / "model_best_1.pth").write_bytes(b"older")
    Training(tmp_path, *opts, start=1).evaluate(0.7)
    assert best(tmp_path) == (0.7, 0.7)
    assert (tmp_path / "model_best_1.pth").read_bytes() == b"older"
    assert (tmp_path / "model_best_2.pth").read_bytes() == content
    assert "is kept as model_best_2.pth" in caplog.text


def test_the_last_checkpoint_follows_a_best_model_that_is_renamed(tmp_path):
    Training(tmp_path).evaluate(0.8)
    assert (tmp_path / "last_checkpoint").read_text() == "model_best.pth"
    Training(tmp_path, start=1, dataset="t_other_dev")
    assert (tmp_path / "last_checkpoint").read_text() == "model_best_1.pth"


def test_a_training_that_starts_anew_has_a_best_of_its_own(tmp_path):
    Training(tmp_path).evaluate(0.8)
    Training(tmp_path).evaluate(0.3)  # as Detectron2 replaces the other files of the folder
    assert best(tmp_path) == (0.3, 0.3)


# --- What the command line asked for -------------------------------------------------------------


@pytest.fixture
def scenes(tmp_path):
    """Registered scenes: 6 images to search in, 3 queries."""
    with registered_scenes(tmp_path / "scenes", PREFIX, database=6, queries=3):
        yield tmp_path / "scenes"


@pytest.fixture
def opts(scenes, tmp_path, tiny_cfg):
    """Overrides for a training of the tiny network, as a command line has them."""
    classes = len(MetadataCatalog.get(SCENES).thing_classes)
    tiny_cfg.merge_from_list(
        [
            *("DATASETS.TRAIN", (f"{PREFIX}regiondh_scenes_database",), "DATASETS.TEST", (SCENES,)),
            *("MODEL.ROI_HEADS.NUM_CLASSES", classes, "OUTPUT_DIR", str(tmp_path / "out")),
            *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64),
            *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()),
            *("DATALOADER.NUM_WORKERS", 0, "TEST.RETRIEVAL.TOPK", 5, "SEED", 0),
        ]
    )
    (tmp_path / "c.yaml").write_text(tiny_cfg.dump())
    return str(tmp_path / "c.yaml")


def arguments(config, *opts, **asked):
    given = {"eval_only": False, "resume": False, "num_gpus": 1, "num_machines": 1} | asked
    return argparse.Namespace(config_file=config, opts=list(opts), **given)


def test_a_script_that_trains_with_eval_only_or_in_one_process_is_refused(opts, tmp_path):
    """The script that the page on datasets had, with each of its options."""

    def script(args):
        trainer = RegionDHTrainer(setup_cfg(args))
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()

    def line(call, *args):
        with pytest.raises(RegionDHError) as error:
            call(*args)
        assert "--import MODULE_OR_FILE" in str(error.value)
        assert "\n" not in str(error.value)
        return str(error.value)

    for asked in ({"num_gpus": 2}, {"num_machines": 3}):
        number = max(asked.values())
        assert f"ask for {number} processes, but" in line(script, arguments(opts, **asked))
        assert not (tmp_path / "out").exists()

    out = tmp_path / "out"
    out.mkdir()
    (out / "model_final.pth").write_bytes(b"trained for days")
    weights = tmp_path / "w.pth"
    model = RegionDHTrainer.build_model(build_cfg(opts))
    torch.save({"model": model.state_dict()}, weights)
    evaluation = arguments(opts, "MODEL.WEIGHTS", str(weights), eval_only=True)
    assert line(script, evaluation).startswith("--eval-only was given, but this script trains")
    assert (out / "model_final.pth").read_bytes() == b"trained for days"

    def never_resumes(args):
        RegionDHTrainer(setup_cfg(args)).train()

    told = line(never_resumes, arguments(opts, resume=True))
    assert told.startswith("--resume was given, but this script starts anew")
    assert (out / "model_final.pth").read_bytes() == b"trained for days"


def test_what_was_asked_stays_with_the_config(opts):
    cfg = setup_cfg(arguments(opts, resume=True))
    for copied in (cfg, cfg.clone(), copy.deepcopy(cfg)):
        assert asked_of(copied).resume is True
        assert asked_of(copied).eval_only is False
    assert asked_of(build_cfg(opts)).resume is False
    assert cfg.dump() == build_cfg(opts).dump()


def test_weights_that_are_not_there_are_told_before_anything_is_written(opts, tmp_path):
    for path, what in ((tmp_path / "no.pth", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(WeightsError, match=f"MODEL.WEIGHTS: {path}: {what}"):
            setup_cfg(arguments(opts, "MODEL.WEIGHTS", str(path)))
    assert not (tmp_path / "out").exists()


# --- Evaluators ----------------------------------------------------------------------------------


class Subclass(RegionDHTrainer):
    """As Detectron2's projects override it."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        assert output_folder is None
        return super().build_evaluator(cfg, dataset_name, output_folder)


class Shorter(RegionDHTrainer):
    """With no more arguments than Detectron2 gives."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return super().build_evaluator(cfg, dataset_name)


class Own(RegionDHTrainer):
    """With evaluators of its own, one in another."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        inner = RetrievalEvaluator(dataset_name, topk=3, output_dir=cfg.OUTPUT_DIR)
        return DatasetEvaluators([DatasetEvaluators([inner]), Nothing()])


class Nothing(DatasetEvaluator):
    def process(self, inputs, outputs):
        pass

    def evaluate(self):
        return {}


@pytest.mark.parametrize("trainer", [RegionDHTrainer, Subclass, Shorter, Own])
def test_an_evaluator_of_a_subclass_knows_the_network(opts, tmp_path, trainer):
    cfg = build_cfg(opts)
    model = trainer.build_model(cfg).eval()
    results = trainer.test(cfg, model)
    assert results["retrieval"]["num_queries"] == 3
    (path,) = (tmp_path / "out").rglob("database.h5")
    assert read_codes(path).model_fingerprint == model_fingerprint(model)


def test_an_evaluator_that_is_given_knows_the_network_too(opts, tmp_path):
    cfg = build_cfg(opts)
    model = RegionDHTrainer.build_model(cfg).eval()
    RegionDHTrainer.test(cfg, model, RetrievalEvaluator(SCENES, topk=5, output_dir=tmp_path / "e"))
    codes = read_codes(tmp_path / "e" / SCENES / "query.h5")
    assert codes.model_fingerprint == model_fingerprint(model)
    classifier = model.roi_heads.image_hash.classifier
    np.testing.assert_array_equal(codes.class_weights[:-1].T, classifier.weight.detach())


def test_a_coded_database_is_neither_read_nor_coded_again(opts, scenes, tmp_path):
    cfg = build_cfg(opts)
    model = RegionDHTrainer.build_model(cfg).eval()
    expected = RegionDHTrainer.test(cfg, model)["retrieval"]
    path = tmp_path / "database.h5"
    (tmp_path / "out/inference" / SCENES / "database.h5").rename(path)
    # Not one of the database's images can be read any more.
    for record in DatasetCatalog.get(SCENES):
        if record["role"] == "database":
            with open(record["file_name"], "wb") as file:
                file.write(b"gone")
    cfg.TEST.RETRIEVAL.DATABASE_CODES = str(path)
    assert RegionDHTrainer.test(cfg, model)["retrieval"] == expected
    assert len(read_codes(tmp_path / "out/inference" / SCENES / "query.h5")) == 3
    assert not (tmp_path / "out/inference" / SCENES / "database.h5").exists()

    # Another network's codes, and a training that would make one, before any image is read.
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    query = next(r for r in DatasetCatalog.get(SCENES) if r["role"] == "query")
    with open(query["file_name"], "wb") as file:
        file.write(b"gone")
    with pytest.raises(CodeFileError, match="same model"):
        RegionDHTrainer.test(cfg, model)
    cfg.MODEL.REGION_DH.BITS_IMAGE = 24
    with pytest.raises(CodeFileError, match="codes of 12 bits, and the model makes 24"):
        RegionDHTrainer.test(cfg, RegionDHTrainer.build_model(cfg).eval())


def test_an_image_with_both_roles_is_a_query_still(opts, scenes, tmp_path):
    from regiondh_d2.data import register_retrieval_dataset

    name = f"{PREFIX}both"
    part = f"{PREFIX}regiondh_scenes_queries"
    register_retrieval_dataset(name, database=part, queries=part)
    cfg = build_cfg(opts, ["DATASETS.TEST", f"('{name}',)", "TEST.RETRIEVAL.BOX_AP", "False"])
    model = RegionDHTrainer.build_model(cfg).eval()
    expected = RegionDHTrainer.test(cfg, model)["retrieval"]
    cfg.TEST.RETRIEVAL.DATABASE_CODES = str(tmp_path / "d.h5")
    codes = read_codes(tmp_path / "out/inference" / name / "database.h5")
    order = np.array([2, 0, 1])
    write_codes(
        tmp_path / "d.h5",
        type(codes)(
            codes.codes[order],
            codes.bits,
            [codes.image_ids[i] for i in order],
            [codes.file_names[i] for i in order],
            labels=codes.labels[order],
            class_names=codes.class_names,
            model_fingerprint=codes.model_fingerprint,
        ),
    )
    found = RegionDHTrainer.test(cfg, model)["retrieval"]
    tied = [k for k in expected if "index_order" not in k]
    assert {k: found[k] for k in tied} == pytest.approx({k: expected[k] for k in tied})


def test_training_refuses_codes_of_a_network_that_it_changes(opts, tmp_path):
    cfg = build_cfg(opts, ["TEST.RETRIEVAL.DATABASE_CODES", str(tmp_path / "d.h5")])
    trainer = RegionDHTrainer(cfg)
    with pytest.raises(RegionDHError, match="DATABASE_CODES holds the codes of one network"):
        trainer.train()


# --- Resuming ------------------------------------------------------------------------------------


def train(config, *opts, resume=False):
    trainer = RegionDHTrainer(build_cfg(config, ["DATASETS.TEST", "()", *opts]))
    trainer.resume_or_load(resume=resume)
    if not resume:
        trainer.train()
    return trainer


def test_what_cannot_be_resumed_is_one_line_that_says_what_to_do(opts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    train(opts, "SOLVER.CHECKPOINT_PERIOD", "1")
    assert train(opts, resume=True).start_iter == 1
    sound = (out / "model_final.pth").read_bytes()

    def line(*overrides):
        with pytest.raises(WeightsError) as error:
            train(opts, *overrides, resume=True)
        text = str(error.value)
        assert "\n" not in text
        assert f"{out}/last_checkpoint names it for --resume: write the name of another" in text
        assert "model_0000000.pth" in text.partition("--resume")[2]
        assert text.endswith("or delete last_checkpoint to start from MODEL.WEIGHTS")
        return text

    final = f"{out}/model_final.pth"
    assert line("MODEL.REGION_DH.BITS", "16").startswith(f"{final} lacks ")
    frozen = line("MODEL.REGION_DH.LR_FACTORS.BACKBONE", "0.0")
    assert "state of the optimizer doesn't fit" in frozen
    for content, what in (
        (sound[: len(sound) // 2], "can't be read as weights: damaged"),
        (b"", "can't be read as weights: it is empty"),
        (b"some text\n", "can't be read as weights: damaged"),
    ):
        (out / "model_final.pth").write_bytes(content)
        assert f"{final} {what}" in line()
    torch.save({"model": train(opts).model.state_dict()}, out / "model_final.pth")
    assert "holds weights alone" in line()
    (out / "model_final.pth").unlink()
    assert f"{final}: no such file" in line()
    (out / "last_checkpoint").write_text("")
    assert "a folder" in line()
    (out / "last_checkpoint").unlink()
    assert train(opts, resume=True).start_iter == 0


def test_metrics_of_a_resumed_training_go_on(opts, tmp_path):
    """The whole way: the numbers that a checkpoint held of the best are passed over."""
    out = tmp_path / "out"
    out.mkdir()
    train(opts)
    state = torch.load(out / "model_final.pth", weights_only=True)
    state["trainer"]["hooks"] = {
        **state["trainer"].get("hooks", {}),
        "ResumableBestCheckpointer": {"best_metric": 0.6, "best_iter": 0},
    }
    torch.save(state, out / "model_final.pth")
    assert train(opts, resume=True).start_iter == 1
    assert json.loads((out / "metrics.json").read_text().splitlines()[0])
