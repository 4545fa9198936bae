"""Shared fixtures: a small Region-DH network on the CPU, and inputs for it.

What takes seconds to import is imported by the fixtures that need it: pytest reads this file in the
process that hands out the tests, too, and all others wait for that.
"""

import json
import logging
import os
import pickle
import resource
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import load_command
from small_network import BACKBONE, TINY

# One thread a process, also in those that tests start: there is a process for each core, and the
# threads of PyTorch that wait for work would keep the others from it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Slow tests come first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def load_tool():
    """A function from the name of a file in tools/ to what it runs, as a module."""
    return load_command


@pytest.fixture(scope="session")
def milvus_uri(tmp_path_factory):
    """The server of the tests, or a file for Milvus Lite."""
    return os.environ.get("REGIONDH_TEST_MILVUS") or str(tmp_path_factory.mktemp("lite") / "a.db")


@pytest.fixture
def new_index(request, tmp_path_factory):
    """As ``create_index``, with a new place for an engine that stores its codes.

    With ``like``, the place is that of another index.
    """
    from regiondh_d2.retrieval.engines import create_index

    made = []

    def create(bits, engine, like=None, **options):
        if engine == "shards":
            path = tmp_path_factory.mktemp("shards") / "index" if like is None else like.path
            return create_index(bits, engine, path=path, shard_rows=100, **options)
        if engine == "milvus":
            name = f"t{uuid.uuid4().hex}" if like is None else like.collection
            uri = request.getfixturevalue("milvus_uri")
            made.append(create_index(bits, engine, uri=uri, collection=name, **options))
            return made[-1]
        return create_index(bits, engine, **options)

    yield create
    for index in made:
        index.drop()


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


@pytest.fixture
def plain_loggers(monkeypatch):
    """Commands don't set up loggers, which would stay so for the tests of other modules."""
    import detectron2.engine.defaults

    from regiondh_d2.engine import defaults, trainer

    def get_logger(*args, name="detectron2", **kwargs):
        return logging.getLogger(name)

    for module in (defaults, trainer, detectron2.engine.defaults):
        monkeypatch.setattr(module, "setup_logger", get_logger)


@pytest.fixture(scope="session")
def forked():
    """A context in which a command's processes are forks of this one, which import nothing anew.

    What they are given goes through pickle, as it does to processes that are no forks. Where a fork
    may not work, as with CUDA or with several threads, they start as they always do.
    """
    import torch
    from torch import multiprocessing

    start = multiprocessing.start_processes
    works = sys.platform == "linux" and os.environ["OMP_NUM_THREADS"] == "1"
    works = works and not torch.cuda.is_available()

    def fork(worker, args, **options):
        args = pickle.loads(pickle.dumps(args))
        return start(worker, args, **options, start_method="fork")

    @contextmanager
    def patched():
        with pytest.MonkeyPatch.context() as patch:
            if works:
                patch.setattr(multiprocessing, "start_processes", fork)
            yield

    return patched


@pytest.fixture(scope="session")
def shared_scenes(tmp_path_factory):
    """A folder of scenes, 8 to search in and 3 queries, to be read only."""
    from regiondh_d2.data import generate_scenes

    return generate_scenes(
        tmp_path_factory.mktemp("shared") / "scenes", num_database=8, num_queries=3
    )


def _normalize(backbone, images):
    """Set the statistics of frozen layers to those of some images, whose features then differ."""
    import torch

    def fit(layer, inputs):
        layer.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        layer.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))

    layers = [layer for layer in backbone.modules() if hasattr(layer, "running_var")]
    hooks = [layer.register_forward_pre_hook(fit) for layer in layers]
    with torch.no_grad():
        backbone(images)
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="session")
def random_network(shared_scenes, tmp_path_factory):
    """Scenes and the weights of a random network, to be read only.

    Attributes: ``scenes``, a folder; ``weights``, a file; ``config``, the path of the config; and
    ``opts``, its overrides KEY, VALUE, which lead to differing codes and to some detections.
    """
    import torch
    from detectron2.modeling import build_model

    from regiondh_d2.engine import build_cfg
    from regiondh_d2.retrieval.images import ImageLoader

    folder = tmp_path_factory.mktemp("random_network")
    config, weights = folder / "random.yaml", folder / "weights.pth"
    base = "configs/quick_schedules/regiondh_effnetlite0_scenes_instant.yaml"
    network = {"WEIGHTS": str(weights), "TIMM": {"NAME": BACKBONE}}
    content = {"_BASE_": str(Path(__file__).parents[1] / base), "MODEL": network}
    config.write_text(json.dumps(content))
    config = str(config)
    opts = [
        *("MODEL.DEVICE", "cpu", "MODEL.REGION_DH.LATENT_INIT_STD", "0.5"),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"),
        *("TEST.RETRIEVAL.INSTANCE_MIN_SCORE", "0.05"),
    ]
    cfg = build_cfg(config, opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    images = [ImageLoader(cfg)(str(path)) for path in sorted(shared_scenes.rglob("*.jpg"))]
    _normalize(model.backbone, model.preprocess_image(images).tensor)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight)  # regions differ in class
    torch.save({"model": model.state_dict()}, weights)
    opts += ["MODEL.WEIGHTS", str(weights)]
    return SimpleNamespace(scenes=shared_scenes, weights=weights, config=config, opts=opts)


@pytest.fixture(scope="session")
def _tiny_cfg():
    from detectron2.config import get_cfg

    from regiondh_d2 import add_regiondh_config

    cfg = get_cfg()
    add_regiondh_config(cfg)
    configs = Path(__file__).parents[1] / "configs"
    cfg.merge_from_file(str(configs / "Base-RegionDH-EfficientNetLite0.yaml"))
    cfg.merge_from_list([s for line in TINY.split("\n") if line for s in line.split(" ")])
    return cfg


@pytest.fixture
def tiny_cfg(_tiny_cfg):
    """The shipped light Region-DH config, shrunk: 3 classes, 12 bits, 20 proposals, 8 fused."""
    return _tiny_cfg.clone()


@pytest.fixture
def make_model(tiny_cfg):
    """A function that builds the small network with overrides KEY, VALUE, and fixed weights."""
    import torch
    from detectron2.modeling import build_model

    def make(*opts, seed=0):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(list(opts))
        torch.manual_seed(seed)
        return build_model(cfg)

    return make


@pytest.fixture
def make_inputs():
    """A function from image sizes (H, W) to inputs with that many random objects an image."""
    import torch
    from detectron2.structures import Boxes, Instances

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
