"""Training on labels of images, without boxes: the same network as from boxes reduced to labels."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng

from regiondh_d2.data.datasets.scenes import SCENE_CLASSES, generate_scenes, register_scenes
from regiondh_d2.engine import trainer_class
from regiondh_d2.engine.defaults import build_cfg

SSDH = "configs/voc07/ssdh_effnetlite0_48.yaml"
SMALL = [
    *("MODEL.WEIGHTS", "", "SEED", 3, "SOLVER.MAX_ITER", 3, "SOLVER.IMS_PER_BATCH", 2),
    *("DATASETS.TEST", (), "MODEL.ROI_HEADS.NUM_CLASSES", len(SCENE_CLASSES)),
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "MODEL.DEVICE", "cpu"),
    *("MODEL.REGION_DH.LOSS_WEIGHTS.SIMILARITY", 1.0, "SOLVER.WARMUP_ITERS", 0),
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """One set of scenes by three names: with boxes, and twice with what they show alone."""
    root = tmp_path_factory.mktemp("labels_alone") / "scenes"
    generate_scenes(root, num_database=4, num_queries=1, image_size=(96, 128), seed=5)
    register_scenes(root, prefix="t_la_")
    boxes = DatasetCatalog.get("t_la_regiondh_scenes_database")

    def labels_alone():
        return [
            {k: v for k, v in record.items() if k != "annotations"}
            | {"image_labels": sorted({a["category_id"] for a in record["annotations"]})}
            for record in boxes
        ]

    DatasetCatalog.register("t_la_labels", labels_alone)
    MetadataCatalog.get("t_la_labels").thing_classes = list(SCENE_CLASSES)
    return {"boxes": "t_la_regiondh_scenes_database", "labels": "t_la_labels"}


def train(dataset, output, *opts):
    cfg = build_cfg(SSDH, [*map(str, SMALL), "DATASETS.TRAIN", f"('{dataset}',)", *opts])
    cfg.OUTPUT_DIR = str(output)
    output.mkdir()
    seed_all_rng(cfg.SEED)  # as default_setup does
    trainer = trainer_class(cfg)(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer.model_of(trainer.model).state_dict()


@pytest.mark.parametrize("cached", [False, True])
def test_labels_teach_what_boxes_reduced_to_labels_teach(datasets, tmp_path, cached):
    trained = []
    for kind, name in datasets.items():
        cache = str(tmp_path / f"cache_{kind}") if cached else ""
        opts = ["MODEL.REGION_DH.FEATURE_CACHE", cache]
        trained.append(train(name, tmp_path / kind, *opts))
    boxes, labels = trained
    assert boxes.keys() == labels.keys()
    assert [key for key in boxes if not torch.equal(boxes[key], labels[key])] == []


def test_region_dh_refuses_labels_alone_in_one_line(datasets, tmp_path):
    cfg = build_cfg("configs/voc07/regiondh_effnetlite0_48_joint.yaml", list(map(str, SMALL)))
    cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR = (datasets["labels"],), str(tmp_path)
    with pytest.raises(ValueError, match="has image_labels and no annotations") as refused:
        trainer_class(cfg)(cfg)
    assert "\n" not in str(refused.value)
    assert "learns from boxes" in str(refused.value)
