"""Two processes on the CPU, by gloo, against one: training, cached features, evaluation."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from builders import registered
from regiondh_d2.data import SCENE_CLASSES, generate_scenes, register_retrieval_dataset
from regiondh_d2.data.datasets.scenes import register_scenes
from regiondh_d2.data.voc import register_voc
from regiondh_d2.engine import CachedHeadsTrainer, RegionDHTrainer, build_cfg, feature_cache
from regiondh_d2.engine.command import run_workers
from regiondh_d2.engine.feature_cache import FeatureCache
from small_network import BACKBONE

CONFIG = Path(__file__).parents[1] / (
    "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml"
)
PREFIX = "distributed_test_"
TRAIN = f"{PREFIX}regiondh_scenes_database"
SCENES = f"{PREFIX}scenes_retrieval"
ONE_IMAGE = f"{PREFIX}one_image"
STEPS = 2
OPTIONS = {
    "all": ["MODEL.REGION_DH.NORMALIZE_FUSED", "True"],
    # The losses of H2 and its classifier: they are means over images, and nothing is sampled.
    "images": [
        *("MODEL.REGION_DH.LOSS_WEIGHTS.ALPHA", "[0.0, 0.0]"),
        *("MODEL.REGION_DH.LOSS_WEIGHTS.BETA", "[0.0, 0.0, 1.0]"),
        *("MODEL.REGION_DH.LOSS_WEIGHTS.GAMMA_H1", "[0.0, 0.0]"),
    ],
    "cached": [
        *("MODEL.REGION_DH.LR_FACTORS.BACKBONE", "0.0"),
        *("MODEL.REGION_DH.LR_FACTORS.PROPOSAL_GENERATOR", "0.0"),
    ],
    "frozen": [
        *("MODEL.REGION_DH.NORMALIZE_FUSED", "True"),
        *("MODEL.REGION_DH.LR_FACTORS.BACKBONE", "0.0"),
        *("MODEL.REGION_DH.LR_FACTORS.IMAGE_HASH", "0.0"),
    ],
    "evaluated": ["DATASETS.TEST", f"('{SCENES}', '{ONE_IMAGE}')"],
}


def register(root):
    """Six scenes and three queries, and a dataset of one image that searches for itself."""
    register_scenes(root, PREFIX)
    only = f"{ONE_IMAGE}_only"
    register_voc(only, str(root), "one", SCENE_CLASSES)
    register_retrieval_dataset(ONE_IMAGE, database=only, queries=only)


def make_cfg(kind, folder):
    cfg = build_cfg(
        str(CONFIG),
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "OUTPUT_DIR", str(folder / kind)),
            *("MODEL.TIMM.NAME", BACKBONE),
            *("DATASETS.TRAIN", f"('{TRAIN}',)", "DATASETS.TEST", "()"),
            *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.CLIP_GRADIENTS.ENABLED", "False"),
            *OPTIONS[kind],
        ],
    )
    if kind == "cached":
        cfg.MODEL.REGION_DH.FEATURE_CACHE = str(folder / "cache")
    return cfg


def images(first, last):
    """Some of the scenes, all of one size, so that padding doesn't depend on the batch."""
    mapper = DatasetMapper(True, augmentations=[T.Resize((64, 96))], image_format="RGB")
    return [mapper(record) for record in DatasetCatalog.get(TRAIN)[first:last]]


def train(cfg, batch, seed):
    """Train on one batch, again and again.

    RPN and RoI sampling are random: the seed belongs to the batch.

    Returns:
        Of each step the gradients and the state of the model by name.
    """
    trainer = RegionDHTrainer(cfg)
    trainer._trainer.reset_data_loader(lambda: [batch] * STEPS)
    model, steps = getattr(trainer.model, "module", trainer.model), []
    with EventStorage():
        for trainer.iter in range(STEPS):
            torch.manual_seed(seed)
            trainer.run_step()
            gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
            steps.append((gradients, copy.deepcopy(model.state_dict())))
    return steps


def train_on_cached_features(cfg):
    """Train as the command does, a view a part; returns how many views this process computed."""
    compute, computed = feature_cache._tables, []
    feature_cache.PART = 1
    feature_cache._tables = lambda model, views: computed.extend(views) or compute(model, views)
    trainer = CachedHeadsTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return len(computed)


def evaluate(cfg):
    torch.manual_seed(0)
    return RegionDHTrainer.test(cfg, build_model(cfg).eval())


def work(root, folder):
    """All that a process of two does; its results go to a file."""
    torch.set_num_threads(1)
    register(root)
    rank = comm.get_rank()
    share = images(2 * rank, 2 * rank + 2)
    results = {}
    torch.manual_seed(rank)  # unlike: the processes must take the weights of the first
    results["computed"] = train_on_cached_features(make_cfg("cached", folder))
    for kind in ("all", "images", "frozen"):
        torch.manual_seed(rank)
        results[kind] = train(make_cfg(kind, folder), share, seed=rank)
    results["metrics"] = evaluate(make_cfg("evaluated", folder))
    torch.save(results, folder / f"{rank}.pth")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("distributed") / "scenes"
    generate_scenes(root, num_database=6, num_queries=3)
    lists = root / "ImageSets/Main"
    (lists / "one.txt").write_text((lists / "database.txt").read_text().splitlines()[0] + "\n")
    with registered():
        register(root)
        yield root


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory, forked):
    """What two processes leave."""
    folder = tmp_path_factory.mktemp("two")
    with forked():
        run_workers(work, 2, (root, folder))
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", ["all", "images"])
def test_both_processes_hold_the_same_network_after_every_step(ranks, kind):
    for (_, first), (_, second) in zip(ranks[0][kind], ranks[1][kind], strict=True):
        assert first.keys() == second.keys()
        assert [k for k in first if not torch.equal(first[k], second[k])] == []
    start, end = ranks[0][kind][0][1], ranks[0][kind][1][1]
    name = "roi_heads.image_hash.latent.linear.weight"
    assert not torch.equal(start[name], end[name])


def test_gradients_and_running_statistics_are_the_mean_of_the_shares(root, ranks, tmp_path):
    cfg = make_cfg("all", tmp_path)
    gradients, states = [], []
    for rank in range(2):
        torch.manual_seed(0)
        model = build_model(cfg).train()
        torch.manual_seed(rank)
        with EventStorage():
            sum(model(images(2 * rank, 2 * rank + 2)).values()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
        states.append(model.state_dict())
    found, state = ranks[0]["all"][0]
    assert any(g.abs().max() > 1e-3 for g in found.values())
    for name, gradient in found.items():
        mean = (gradients[0][name] + gradients[1][name]) / 2
        torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-6, msg=name)
    for buffer in ("running_mean", "running_var"):
        name = f"roi_heads.image_hash.norm.{buffer}"
        assert not torch.equal(states[0][name], states[1][name])
        mean = (states[0][name] + states[1][name]) / 2
        torch.testing.assert_close(state[name], mean)


def test_losses_that_are_means_over_images_train_as_one_process_does(root, ranks, tmp_path):
    torch.manual_seed(0)
    (tmp_path / "images").mkdir()
    alone = train(make_cfg("images", tmp_path), images(0, 4), seed=0)
    for (gradients, state), (expected, state_alone) in zip(ranks[0]["images"], alone, strict=True):
        for name in expected:
            torch.testing.assert_close(gradients[name], expected[name], rtol=1e-3, atol=1e-6)
        for name in state:
            torch.testing.assert_close(state[name], state_alone[name], rtol=1e-4, atol=1e-6)


def test_frozen_parts_stay_what_they_were_in_both_processes(root, ranks, tmp_path):
    """Weights and running statistics, while DistributedDataParallel reduces the others."""
    torch.manual_seed(0)
    start = build_model(make_cfg("frozen", tmp_path)).state_dict()
    first, second = (steps["frozen"][-1][1] for steps in ranks)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    changed = {name for name in start if not torch.equal(start[name], first[name])}
    frozen = ("backbone.", "roi_heads.image_hash.")
    assert "roi_heads.image_hash.norm.running_mean" in start
    assert [name for name in changed if name.startswith(frozen)] == []
    assert {"roi_heads.instance_hash.linear.weight", "roi_heads.box_head.fc.0.weight"} <= changed


def test_processes_share_the_computation_of_cached_features(root, folder, ranks, tmp_path):
    assert [r["computed"] for r in ranks] == [6, 6]  # six images, each plain and mirrored
    file = f"cache/{TRAIN}.npz"
    names = sorted(str(p.relative_to(folder)) for p in (folder / "cache").iterdir())
    assert names == ["cache/.lock", file]
    assert (folder / "cached/model_final.pth").is_file()

    cfg = make_cfg("cached", tmp_path)
    torch.manual_seed(0)
    FeatureCache(cfg).ensure(build_model(cfg), TRAIN, mirrored=True)
    with np.load(folder / file) as found, np.load(tmp_path / file) as expected:
        assert found.files == expected.files
        for name in expected.files:
            # A process of two may have fewer threads, and then adds up in another order.
            if expected[name].dtype.kind == "f":
                np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, atol=1e-3)
            else:
                np.testing.assert_array_equal(found[name], expected[name])


def test_evaluation_is_that_of_one_process_bit_for_bit(root, folder, ranks):
    """Also where there is one image and so nothing to do for the second process."""
    files = sorted(folder.glob("evaluated/inference/*/*"))
    names = {f"{path.parent.name}/{path.name}" for path in files}
    assert names >= {f"{SCENES}/query.h5", f"{ONE_IMAGE}/database.h5", f"{SCENES}/metrics.json"}
    together = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = evaluate(make_cfg("evaluated", folder))  # the files name their config
    finally:
        torch.set_num_threads(threads)
    assert ranks[0]["metrics"] == alone
    assert not any(ranks[1]["metrics"].values())
    for path, content in zip(files, together, strict=True):
        assert path.read_bytes() == content, path


def test_what_the_processes_or_the_device_cannot_do_is_refused(root, tmp_path, monkeypatch):
    cfg = make_cfg("all", tmp_path)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH 4 is no multiple of the 3 processes"):
        RegionDHTrainer(cfg)
    monkeypatch.undo()
    cfg.SOLVER.AMP.ENABLED = True
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.ENABLED .+ MODEL\.DEVICE is cpu"):
        RegionDHTrainer(cfg)
