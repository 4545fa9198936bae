"""Every config that a command can be given, shrunk: it trains, resumes and codes on a CPU."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from PIL import Image

from regiondh_d2 import add_regiondh_config
from regiondh_d2.checkpoint import checkpointer
from regiondh_d2.engine import trainer_class
from regiondh_d2.engine.config_names import config_names
from regiondh_d2.modeling.backbone import vgg
from regiondh_d2.retrieval.images import ImageLoader

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = [f"{name}.yaml" for name in config_names()]
# A base may be a part of a config only; each is a base of one of these.
LEAVES = [name for name in FILES if not Path(name).name.startswith("Base-")]
# Those for VOC 2012 differ from these in images and schedule alone, as a test checks.
TRAINED = [name for name in LEAVES if not name.startswith("voc12/")]
SIZE = (96, 64)

# Small inputs, few regions and thin layers; depth and structure stay those of the file.
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATASETS.TEST", ()),
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 10),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 10),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.FPN.OUT_CHANNELS", 16),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1, "SOLVER.WARMUP_ITERS", 0),
    *("DATALOADER.NUM_WORKERS", 0, "SEED", 0),
]


def quiet_trainer(cfg):
    trainer = type("QuietTrainer", (trainer_class(cfg),), {"build_writers": lambda self: []})
    return trainer(cfg)  # TensorBoard takes longer to import than all of this


@pytest.fixture
def make_dataset(tmp_path):
    """A function that registers two images with objects of the first two of some classes."""
    names = []

    def make(num_classes):
        records = []
        for index in range(2):
            path = tmp_path / f"{index}.png"
            pixels = np.random.default_rng(index).integers(0, 256, (SIZE[1], SIZE[0], 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            objects = [
                {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i}
                for i, box in enumerate([[4, 4, 60, 60], [40, 8, 90, 40]])
            ]
            record = {"file_name": str(path), "image_id": str(index), "annotations": objects}
            records.append({**record, "width": SIZE[0], "height": SIZE[1]})
        names.append(f"test_configs_{num_classes}")
        DatasetCatalog.register(names[-1], lambda: records)
        MetadataCatalog.get(names[-1]).thing_classes = [f"class{i}" for i in range(num_classes)]
        return names[-1], records

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@cache
def _read(name):
    cfg = get_cfg()
    add_regiondh_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


def load(name, *opts):
    cfg = _read(name).clone()
    cfg.merge_from_list(list(opts))
    return cfg


def random_encoder(name):
    state = timm.create_model(name, num_classes=0).state_dict()
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def parameters(model):
    return {k: v.detach().clone() for k, v in model.named_parameters() if v.requires_grad}


def test_there_are_leaves_of_every_kind():
    folders = {Path(name).parts[0] for name in LEAVES}
    assert folders >= {"voc07", "voc12", "quick_schedules"}
    assert {load(name).MODEL.BACKBONE.NAME for name in LEAVES} >= {
        "build_resnet_backbone",
        "build_resnet_fpn_backbone",
        "build_timm_backbone",
        "build_timm_fpn_backbone",
        "build_vgg16_backbone",
    }


@pytest.mark.parametrize("name", LEAVES)
def test_output_folders_are_named_after_the_files(name):
    """So that no two write to one folder."""
    if not name.startswith("quick_schedules/"):
        assert f"output/{name.removesuffix('.yaml')}" == load(name).OUTPUT_DIR


@pytest.mark.parametrize("name", LEAVES)
def test_datasets_and_weights_exist(name):
    cfg = load(name)
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        # Generated scenes are registered by the command that makes them.
        assert "scenes" in dataset or dataset in DatasetCatalog
    if cfg.MODEL.WEIGHTS.startswith("regiondh://"):
        assert PathManager.isfile(cfg.MODEL.WEIGHTS)
    else:
        assert cfg.MODEL.WEIGHTS in [f"{_read(n).OUTPUT_DIR}/model_final.pth" for n in LEAVES]


@pytest.mark.parametrize("name", LEAVES)
def test_a_config_builds_in_full_size(name):
    cfg = load(name, "MODEL.DEVICE", "meta")
    with torch.device("meta"):
        model = build_model(cfg)
    if "effnetlite0" in name:
        assert sum(p.numel() for p in model.parameters()) <= 9_000_000
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE


@pytest.mark.parametrize("name", sorted(set(LEAVES) - set(TRAINED)))
def test_a_config_of_voc12_is_that_of_voc07_on_other_images(name):
    cfg, other = load(name), load(name.replace("voc12/", "voc07/"))
    for changed in (cfg, other):
        for key in ("DATASETS", "OUTPUT_DIR"):
            changed.pop(key)
        for key in ("STEPS", "MAX_ITER", "CHECKPOINT_PERIOD"):
            changed.SOLVER.pop(key)
    assert cfg == other


@pytest.fixture
def thin_networks(monkeypatch):
    """VGG16 and ConvNeXt with an eighth of their channels, which no key of a config sets."""
    create = timm.create_model

    def create_thin(name, **options):
        if name.startswith("convnext"):
            options["dims"] = (12, 24, 48, 96)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_thin)
    stages = [tuple(width // 8 for width in widths) for widths in vgg.STAGES]
    monkeypatch.setattr(vgg, "STAGES", stages)


@pytest.mark.parametrize("name", TRAINED)
def test_a_config_trains_resumes_and_codes(
    name, make_dataset, thin_networks, tmp_path, monkeypatch
):
    cfg = load(name, *SMALL)
    monkeypatch.setattr(checkpointer, "encoder_weights", random_encoder)
    cfg.MODEL.REGION_DH.IMAGE_ENCODER_SIZES = [32 for _ in cfg.MODEL.REGION_DH.IMAGE_ENCODERS]
    dataset, records = make_dataset(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = max(1, cfg.MODEL.RESNETS.WIDTH_PER_GROUP // 8)
    if cfg.MODEL.REGION_DH.FEATURE_CACHE:
        cfg.MODEL.REGION_DH.FEATURE_CACHE = str(tmp_path / "cache")

    torch.manual_seed(0)
    trainer = quiet_trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = parameters(trainer.model)
    trainer.train()
    trained = parameters(trainer.model)
    assert all(v.isfinite().all() for v in trained.values())
    assert any(not torch.equal(v, before[k]) for k, v in trained.items())

    cfg.SOLVER.MAX_ITER = 2
    trainer = quiet_trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 1
    resumed = parameters(trainer.model)
    assert resumed.keys() == trained.keys()
    assert all(torch.equal(v, trained[k]) for k, v in resumed.items())
    trainer.checkpointer.save = lambda name, **values: None  # nothing reads this one
    trainer.train()
    assert trainer.iter == 2

    with torch.no_grad():
        model = trainer.model_of(trainer.model).eval()
        (output,) = model([ImageLoader(cfg)(records[0]["file_name"])])
    if cfg.MODEL.META_ARCHITECTURE != "ImageHash":
        assert output["instances"].image_size == SIZE[::-1]
    if cfg.MODEL.META_ARCHITECTURE in ("RegionDH", "ImageHash"):
        assert output["image_code"].shape == (cfg.MODEL.REGION_DH.BITS,)
        assert output["image_code"].dtype == torch.bool
        assert output["image_scores"].isfinite().all()
