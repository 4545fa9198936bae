"""The trainer's own parts: its log, evaluators, what was asked for, and resuming."""

import argparse
import copy
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import defaults as detectron2_defaults
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import logger as detectron2_logger
from detectron2.utils.env import seed_all_rng

from builders import registered_scenes
from regiondh_d2.checkpoint import WeightsError, model_fingerprint
from regiondh_d2.data import generate_scenes
from regiondh_d2.engine import RegionDHTrainer, build_cfg, defaults, setup_cfg, trainer_class
from regiondh_d2.engine.defaults import asked_of
from regiondh_d2.engine.training_record import KEY
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


def test_each_line_of_the_log_is_shown_once_and_kept_once(monkeypatch, tmp_path, capsys):
    name = "regiondh_d2"
    real, logger = detectron2_logger.setup_logger.__wrapped__, logging.getLogger(name)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(defaults, "setup_logger", real)
    monkeypatch.setattr(detectron2_defaults, "setup_logger", lambda *args, **kwargs: logger)
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    setup_cfg(argparse.Namespace(config_file="", opts=opts))
    capsys.readouterr()
    logging.getLogger(f"{name}.engine").info("a line")
    assert capsys.readouterr().out.count("a line") == 1
    assert (tmp_path / "log.txt").read_text().count("a line") == 1


# --- What the command line asked for -------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    return generate_scenes(folder, num_database=6, num_queries=3)


@pytest.fixture
def scenes(drawn, tmp_path):
    """Registered scenes of this test alone: 6 images to search in, 3 queries."""
    shutil.copytree(drawn, tmp_path / "scenes")
    with registered_scenes(tmp_path / "scenes", PREFIX):
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
    assert "holds only weights" in line()
    (out / "model_final.pth").unlink()
    assert f"{final}: no such file" in line()
    (out / "last_checkpoint").write_text("")
    assert "a folder" in line()
    (out / "last_checkpoint").unlink()
    assert train(opts, resume=True).start_iter == 0


def test_a_checkpoint_without_record_or_queue_is_resumed(opts, tmp_path):
    """As those of version 0.1, and where CODE_QUEUE is new."""
    train(opts, "SOLVER.CHECKPOINT_PERIOD", "1")
    path = tmp_path / "out" / "model_final.pth"
    state = torch.load(path, weights_only=True)
    del state[KEY]
    torch.save(state, path)
    assert train(opts, "MODEL.REGION_DH.CODE_QUEUE", "8", resume=True).start_iter == 1


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


@pytest.mark.parametrize("cached", [False, True])
def test_a_resumed_training_ends_with_the_same_network(opts, tmp_path, cached):
    """Images, their changes, sampled regions, statistics, the queue and all rates go on."""
    settings = [
        *("DATASETS.TEST", "()", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"),
        *("INPUT.MIN_SIZE_TRAIN", "(48, 64)", "MODEL.REGION_DH.NORMALIZE_FUSED", "True"),
        *("MODEL.REGION_DH.LOSS_WEIGHTS.SIMILARITY", "10.0", "MODEL.REGION_DH.CODE_QUEUE", "5"),
        *("MODEL.REGION_DH.LOSS_WEIGHTS.SIMILARITY_WARMUP", "3"),
    ]
    if cached:
        settings += ["MODEL.REGION_DH.FEATURE_CACHE", str(tmp_path / "cache")]
        for part in ("BACKBONE", "PROPOSAL_GENERATOR"):
            settings += [f"MODEL.REGION_DH.LR_FACTORS.{part}", "0.0"]
    out = tmp_path / "out"
    out.mkdir()

    def run(resume):
        cfg = build_cfg(opts, settings)
        seed_all_rng(cfg.SEED)
        trainer = trainer_class(cfg)(cfg)
        trainer.resume_or_load(resume)
        trainer.train()
        return torch.load(out / "model_final.pth", weights_only=True)

    undisturbed = run(resume=False)
    (out / "last_checkpoint").write_text("model_0000001.pth")
    torch.rand(7)  # what another process would have drawn
    resumed = run(resume=True)
    assert resumed["iteration"] == undisturbed["iteration"] == 3
    half = torch.load(out / "model_0000001.pth", weights_only=True)
    for part in ("model", "code_queue"):
        assert resumed[part].keys() == undisturbed[part].keys()
        assert [
            k for k, v in resumed[part].items() if not torch.equal(v, undisturbed[part][k])
        ] == []
        assert any(not torch.equal(v, undisturbed[part][k]) for k, v in half[part].items())
