"""Shared fixtures: a small Region-DH network on the CPU, and inputs for it."""

import os
import resource
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

# One thread a process, also in those that tests start: there is a process for each core, and the
# threads of PyTorch that wait for work would keep the others from it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from commands import load_command
from regiondh_d2 import add_regiondh_config
from regiondh_d2.checkpoint import RegionDHCheckpointer
from regiondh_d2.data import generate_scenes
from regiondh_d2.engine import build_cfg

TINY = """
MODEL.DEVICE cpu
MODEL.WEIGHTS ""
MODEL.ROI_HEADS.NUM_CLASSES 3
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
MODEL.ROI_BOX_HEAD.FC_DIM 32
MODEL.REGION_DH.LIGHT_HEAD_CONV_DIM 16
MODEL.RPN.CONV_DIMS [16]
MODEL.RPN.PRE_NMS_TOPK_TRAIN 100
MODEL.RPN.PRE_NMS_TOPK_TEST 100
MODEL.RPN.POST_NMS_TOPK_TRAIN 20
MODEL.RPN.POST_NMS_TOPK_TEST 20
MODEL.REGION_DH.BITS 12
MODEL.REGION_DH.LATENT_INIT_STD 0.5
MODEL.REGION_DH.FUSION_NUM_ROIS 8
TEST.DETECTIONS_PER_IMAGE 10
"""


@pytest.fixture(scope="session")
def load_tool():
    """A function from the name of a file in tools/ to what it runs, as a module."""
    return load_command


@pytest.fixture
def full_disk():
    """A context in which no file can grow beyond some bytes: writing fails as on a full disk."""

    @contextmanager
    def limit(size):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limit


@pytest.fixture(scope="session")
def random_network(tmp_path_factory):
    """Scenes and the weights of a network whose heads are random, to be read only.

    Attributes: ``scenes``, a folder; ``weights``, a file; ``config``, the path of the config; and
    ``opts``, its overrides KEY, VALUE, which lead to differing codes and to some detections.
    """
    folder = tmp_path_factory.mktemp("random_network")
    generate_scenes(folder / "scenes", num_database=8, num_queries=3)
    name = "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml"
    config = str(Path(__file__).parents[1] / name)
    opts = [
        *("MODEL.DEVICE", "cpu", "MODEL.REGION_DH.LATENT_INIT_STD", "0.5"),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"),
        *("TEST.RETRIEVAL.INSTANCE_MIN_SCORE", "0.05"),
    ]
    cfg = build_cfg(config, opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    RegionDHCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    weights = folder / "weights.pth"
    torch.save({"model": model.state_dict()}, weights)
    opts += ["MODEL.WEIGHTS", str(weights)]
    return SimpleNamespace(scenes=folder / "scenes", weights=weights, config=config, opts=opts)


@pytest.fixture
def tiny_cfg():
    """The shipped light Region-DH config, shrunk: 3 classes, 12 bits, 20 proposals, 8 fused."""
    cfg = get_cfg()
    add_regiondh_config(cfg)
    configs = Path(__file__).parents[1] / "configs"
    cfg.merge_from_file(str(configs / "Base-RegionDH-EfficientNetLite0.yaml"))
    cfg.merge_from_list([s for line in TINY.split("\n") if line for s in line.split(" ")])
    return cfg


@pytest.fixture
def make_model(tiny_cfg):
    """A function that builds the small network with overrides KEY, VALUE, and fixed weights."""

    def make(*opts, seed=0):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(list(opts))
        torch.manual_seed(seed)
        return build_model(cfg)

    return make


@pytest.fixture
def make_inputs():
    """A function from image sizes (H, W) to inputs with that many random objects an image."""

    def make(*sizes, objects=2, num_classes=3, seed=0):
        g = torch.Generator().manual_seed(seed)
        inputs = []
        for height, width in sizes:
            corner = torch.rand(objects, 2, generator=g) * torch.tensor([width, height]) * 0.5
            extent = torch.rand(objects, 2, generator=g) * 32 + 16
            truth = Instances(
                (height, width), gt_boxes=Boxes(torch.cat([corner, corner + extent], 1))
            )
            truth.gt_classes = torch.randint(num_classes, (objects,), generator=g)
            image = torch.randint(256, (3, height, width), generator=g, dtype=torch.uint8)
            inputs.append({"image": image, "instances": truth, "height": height, "width": width})
        return inputs

    return make
